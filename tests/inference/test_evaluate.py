"""`evaluate`: its measures, and its errors."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from pwiser_jax.cli import main
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.errors import UserError
from pwiser_jax.inference.evaluate import check_sessions
from pwiser_jax.training.run.metrics import read_metrics
from tests.inference.small import prepare, rows, train


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("evaluate")
    train(prepare(folder, rows()), folder / "run")
    return folder


def error_of(capsys: pytest.CaptureFixture[str], command: list[str]) -> str:
    """The one sentence of a command that a mistake ends."""
    capsys.readouterr()
    assert main(command) == 2
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1, error
    return error


def test_measures_by_session_are_numpys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    prepare = ["prepare", "synthetic", "--rows=3000", "--order-values"]
    prepare += ["--users=60", "--items=40", "--click-rate=0.4"]
    assert main([*prepare, "--conversion-rate=0.4", f"--output={data}"]) == 0
    train(data, run)
    command = ["evaluate", f"--run={run}", "--price=order_value"]
    assert main(command) == 0
    shown = capsys.readouterr().out.split("by session")[1]
    assert re.search(r"^revenue@3 +\d+ +\d+\.\d{4} +\[\d", shown, re.MULTILINE)
    assert main([*command, "--json"]) == 0
    measures = json.loads(capsys.readouterr().out)["sessions"]

    written = tmp_path / "predictions.parquet"
    source = data / "valid-00000.parquet"
    predict = ["predict", f"--run={run}", f"--input={source}", f"--output={written}"]
    assert main(predict) == 0
    rows = pl.read_parquet(source).with_columns(p=pl.read_parquet(written)["ctcvr"])
    each = {name: [] for name in ("auc", "rows", "ndcg", "revenue_1", "revenue_3")}
    for _, session in rows.group_by("group"):
        ranked = session.sort("p", descending=True)
        bought = ranked["conversion"].to_numpy() == 1
        revenue = bought * ranked["order_value"].to_numpy()
        discounts = np.log2(np.arange(len(revenue)) + 2)
        if bought.any():
            best = (np.sort(revenue)[::-1] / discounts).sum()
            each["ndcg"].append((revenue / discounts).sum() / best)
        if 0 < bought.sum() < len(bought):
            p = ranked["p"].to_numpy()
            wins = p[bought][:, None] > p[~bought]
            each["auc"].append(wins.mean())
            each["rows"].append(len(p))
        each["revenue_1"].append(revenue[:1].sum())
        each["revenue_3"].append(revenue[:3].sum())
    gauc = np.average(each["auc"], weights=each["rows"])
    assert measures["gauc"]["value"] == pytest.approx(gauc, abs=1e-9)
    assert measures["gauc"]["low"] < gauc < measures["gauc"]["high"]
    assert measures["gauc"]["sessions"] == len(each["auc"])
    for name in ("ndcg", "revenue_1", "revenue_3"):
        assert measures[name]["sessions"] == len(each[name])
        assert measures[name]["value"] == pytest.approx(np.mean(each[name]), rel=1e-9)
        half = stats.t.ppf(0.975, len(each[name]) - 1) * stats.sem(each[name])
        width = measures[name]["high"] - measures[name]["low"]
        assert width == pytest.approx(2 * half, rel=1e-9)


def test_measures_by_session_need_groups_and_a_price(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", f"--run={home / 'run'}"]
    assert main([*command, "--sessions", "--json"]) == 0
    assert list(json.loads(capsys.readouterr().out)["sessions"]) == ["gauc", "ndcg"]
    said = "--price 'price' is no extra column of"
    assert said in error_of(capsys, [*command, "--price=price"])
    alone = Rows({}, labels=np.zeros((5, 2)), group=np.arange(5))
    with pytest.raises(UserError, match="no two valid rows of data share a group: pre"):
        check_sessions(alone, Path("data"), "valid", None)
    priced = Rows({}, np.zeros((2, 2)), np.zeros(2), extra={"p": np.array([1, -1.0])})
    with pytest.raises(UserError, match="--price: column 'p', row 2 of the split"):
        check_sessions(priced, Path("data"), "valid", "p")


def every_click_converts(part: str) -> pl.DataFrame:
    """Rows of which one split has no click without a conversion."""
    here = pl.col("part") == part
    bought = pl.when(here).then("clicked").otherwise("bought").alias("bought")
    return rows().with_columns(bought)


@pytest.mark.parametrize("space", ["ctcvr", "click", "product"])
def test_a_validation_split_of_one_class_is_null_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], space: str
) -> None:
    data = prepare(tmp_path, every_click_converts("valid"))
    run = train(data, tmp_path / "run", f"--model.cvr_space={space}")
    shown = capsys.readouterr().out
    assert "no negative rows" in shown
    line = next(line for line in read_metrics(run) if line["kind"] == "valid")
    assert line["mean_auc"] is not None
    if space == "click":
        assert line["auc"]["cvr"] is None
        assert line["reason"] == {"cvr": "no negative rows"}
    assert main(["evaluate", f"--run={run}", "--json"]) == 0
    tree = json.loads(capsys.readouterr().out)
    assert tree["cvr"]["auc"]["value"] is None
    assert tree["cvr"]["auc"]["reason"] == "no negative rows"


def test_protocol_mtreclib_goes_on_where_test_lacks_a_class(tmp_path: Path) -> None:
    here = pl.col("part") == "test"
    bought = pl.when(here).then(0).otherwise("bought").alias("bought")
    data = prepare(tmp_path, rows().with_columns(bought))
    run = train(data, tmp_path / "run", "--protocol=mtreclib", "--train.epochs=2")
    lines = [line for line in read_metrics(run) if line["kind"] == "test"]
    assert [line["auc"]["ctcvr"] for line in lines] == [None, None]
    assert lines[0]["reason"] == {"ctcvr": "no positive rows"}
    assert json.loads((run / "result.json").read_text())["best"]["auc"]["ctr"] > 0


def test_data_that_were_prepared_again_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = prepare(tmp_path, rows())
    run = train(data, tmp_path / "run")
    evaluate = ["evaluate", f"--run={run}", "--split=test"]
    assert main(evaluate) == 0
    # As many ids, other values.
    renamed = pl.col("item").str.replace("item", "thing")
    prepare(tmp_path, rows().with_columns(renamed), "--overwrite")
    assert "other fields or vocabularies" in error_of(capsys, evaluate)
    assert "other fields or vocabularies" in error_of(
        capsys, [*evaluate, f"--data={data}"]
    )
    # The same ids and scales, other labels.
    learned = pl.col("part") != "test"
    labels = pl.when(learned).then("bought").otherwise(0).alias("bought")
    prepare(tmp_path, rows().with_columns(labels), "--overwrite")
    assert "holds other rows than" in error_of(capsys, evaluate)
    # On the same encoding --data measures other rows.
    prepare(tmp_path, rows(), "--overwrite")
    assert main([*evaluate, f"--data={data}"]) == 0
    assert main(evaluate) == 0


def test_a_relative_data_path_needs_the_same_working_folder_or_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path, rows())
    monkeypatch.chdir(tmp_path)
    train(Path("prepared"), Path("run"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    error = error_of(capsys, ["evaluate", "--run=../run"])
    assert "prepared: no such folder from" in error
    assert "--data" in error
    assert main(["evaluate", "--run=../run", "--data=../prepared"]) == 0


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        ("config.yaml: [", "config.yaml, line 1: not YAML"),
        ("config.yaml:- a", "config.yaml: the configuration is"),
        ("config.yaml:model: {name: dnn}", "model.name"),
        ("config.yaml:trian: {}", "did you mean 'train'?"),
        ("config.yaml:", "config.yaml is empty"),
        ("config.yaml:{}", "data.path"),
        ("config.yaml!", "holds no run: config.yaml is missing"),
        ("data!", "data: no such folder"),
        ("data/manifest.json:{", "manifest.json"),
        ("data/vocabulary.parquet:cut", "vocabulary.parquet"),
        ("checkpoints!", "no best checkpoint"),
        ("!", "no such folder"),
    ],
)
@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_damaged_run_folder_gets_one_sentence(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    damage: str,
    words: str,
) -> None:
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    name, kind, text = damage.partition("!") if "!" in damage else damage.partition(":")
    if kind == ":":
        (run / name).write_text(text)
    elif (run / name).is_dir():
        shutil.rmtree(run / name)
    else:
        (run / name).unlink()
    arguments = [command, f"--run={run}"]
    if command == "predict":
        arguments += [f"--input={home / 'rows.csv'}", f"--output={tmp_path / 'p.csv'}"]
    elif "vocabulary" in name:
        pytest.skip("evaluate encodes nothing")
    if command == "predict" and words == "data.path":
        pytest.skip("predict needs no data.path")
    assert words in error_of(capsys, arguments)
    assert not (tmp_path / "p.csv").exists()


def test_a_run_folder_that_cannot_be_written_gets_one_sentence(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    shutil.copytree(home / "run", run)
    # A folder in the file's place: permissions do not stop root.
    (run / ".evaluation_test.json.partial").mkdir()
    command = ["evaluate", f"--run={run}", "--split=test"]
    assert "cannot be written" in error_of(capsys, command)
