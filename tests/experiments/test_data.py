"""The data of the experiments, and their result table."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments.grid_search import at, best_point, edge_text, on_edge, points
from experiments.grid_search import main as grid_search
from experiments.ladders import every_margin
from experiments.lib.datasets import given, industrial, kuairand, synthetic
from experiments.lib.industrial import prepare_industrial
from experiments.lib.relabel import shuffled_conversions
from experiments.lib.result_table import ResultTable, long_rows
from experiments.lib.runs import Run, fixed
from experiments.lib.streams import days_of, deal, prepare_shift
from experiments.lib.study import SCALES, Study
from experiments.lib.words import average_difference
from pwiser_jax.config import Config, LossConfig
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.errors import UserError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    prepare_synthetic(folder, rows=6_000, seed=1, users=300, items=100)
    return folder


def test_shuffled_conversions_keep_clicks_and_counts(
    data: Path, tmp_path: Path
) -> None:
    shuffled_conversions(data, tmp_path / "shuffled")
    for split in ("train", "valid", "test"):
        old = Prepared(data).load(split).labels
        new = Prepared(tmp_path / "shuffled").load(split).labels
        assert np.array_equal(old[:, 0], new[:, 0])
        assert old[:, 1].sum() == new[:, 1].sum()
        assert (new[:, 1] <= new[:, 0]).all()
        assert not np.array_equal(old[:, 1], new[:, 1])


def test_the_industrial_table_is_prepared_as_any_table(tmp_path: Path) -> None:
    manifest = prepare_industrial(tmp_path / "one", 5_000)
    assert manifest.dataset == "table"
    assert manifest.options["schema"]["group"] == "request_id"
    rows = {name: split.rows for name, split in manifest.splits.items()}
    assert sum(rows.values()) == 5_000
    assert min(rows.values()) > 500
    prepare_industrial(tmp_path / "two", 5_000)
    for name in ("one", "two"):
        log = (tmp_path / f"{name}_raw" / "log.tsv").read_bytes()
        assert log == (tmp_path / "one_raw" / "log.tsv").read_bytes()
        text = (tmp_path / name / "manifest.json").read_text()
        assert text == (tmp_path / "one" / "manifest.json").read_text()


def test_datasets_are_made_when_needed(tmp_path: Path) -> None:
    dataset = synthetic(tmp_path, 2_000)
    assert not dataset.folder.exists()
    assert Prepared(dataset.ready()).manifest.dataset == "synthetic"
    assert not industrial(tmp_path, 2_000).folder.exists()
    with pytest.raises(UserError, match="nowhere"):
        given(tmp_path / "nowhere", tmp_path).ready()


RESULTS = pl.DataFrame(
    {
        "dataset": "synthetic",
        "model": "mmoe",
        "loss": ["bce", "pwiser", "bce", "pwiser"],
        "seed": [0, 0, 1, 1],
        "noise": [0.1, 0.1, 0.2, None],
        "split": "test",
        "task": "ctr",
        "auc": [0.7, 0.71, 0.7, 0.73],
        "log_loss": 0.3,
        "best_epoch": 2,
        "run": ["a", "b", "c", "d"],
        "config_hash": "0",
    }
)


def test_a_result_table_keeps_every_number_once(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "table.parquet"
    table = ResultTable(path, "mine")
    table.add(long_rows(RESULTS))
    table.add(long_rows(RESULTS.with_columns(pl.col("auc") + 0.1)))
    stored = pl.read_parquet(path)
    assert stored.height == 4 * 3
    aucs = stored.filter(pl.col("metric") == "auc")
    assert aucs["value"].to_list() == pytest.approx([0.8, 0.81, 0.8, 0.83])
    assert aucs["tags"].to_list() == ['{"noise": 0.1}'] * 2 + ['{"noise": 0.2}', "{}"]
    runs = aucs.filter(run="a")
    assert table.of_runs(runs, ("auc", "log_loss")).height == 2
    assert table.of_runs(runs, ("auc", "ece")).is_empty()
    assert [p.name for p in path.parent.iterdir()] == ["table.parquet"]
    assert ResultTable(path, "mine").frame.equals(stored)


def test_results_have_the_datasets_title_and_its_table_the_name(
    tmp_path: Path,
) -> None:
    dataset = kuairand(tmp_path, tmp_path, "long_view", 20_000)
    path = tmp_path / "table.parquet"
    named = RESULTS.with_columns(pl.lit(dataset.name).alias("dataset"))
    ResultTable(path, "table").add(long_rows(named))
    study = Study(tmp_path, tmp_path, SCALES["quick"], [dataset], tables=tmp_path)
    results = study.run("table", [Run("mmoe", "pwiser", 1, fixed(Config()))], dataset)
    title = "KuaiRand-Pure (conversions are long views; 20,000 train rows)"
    assert results.select("dataset", "auc").rows() == [(title, pytest.approx(0.73))]
    measured = study.measure("table", results, dataset, ("auc",), lambda _: {})
    assert measured["dataset"].to_list() == [title]
    assert set(pl.read_parquet(path)["dataset"]) == {
        "kuairand, long view (20,000 train rows)"
    }


@pytest.mark.parametrize("damage", ["cut", "other", "empty"])
def test_a_damaged_table_is_told_and_begun_anew(
    tmp_path: Path, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "table.parquet"
    ResultTable(path, "mine").add(long_rows(RESULTS))
    if damage == "other":
        pl.DataFrame({"a": [1]}).write_parquet(path)
    else:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    table = ResultTable(path, "mine")
    error = capsys.readouterr().err.strip()
    assert len(error.splitlines()) == 1
    assert "table.parquet is damaged" in error
    assert table.frame.is_empty()
    table.add(long_rows(RESULTS))
    assert pl.read_parquet(path).height == 12


def test_average_difference_is_over_seeds() -> None:
    gap = average_difference(RESULTS, "ctr")
    assert gap.value == pytest.approx(0.02)
    more = pl.concat([RESULTS, RESULTS.with_columns(pl.lit("ple").alias("model"))])
    again = average_difference(more, "ctr")
    assert (again.low, again.high) == pytest.approx((gap.low, gap.high))
    assert np.isnan(average_difference(RESULTS, "cvr").value)


def test_days_are_dealt_without_a_look_ahead(tmp_path: Path) -> None:
    prepare_shift(tmp_path / "shift", 12_000)
    days = days_of(tmp_path / "shift")
    assert days == list(range(14))
    deal(tmp_path / "shift", tmp_path / "day", 0, 5)
    base, dealt = Prepared(tmp_path / "shift"), Prepared(tmp_path / "day")
    assert dealt.schema == base.schema
    train, valid, test = (dealt.load(name) for name in ("train", "valid", "test"))
    for rows, expected in ((train, set(range(6))), (valid, {5}), (test, {6})):
        assert rows.time is not None
        assert set(rows.time.tolist()) == expected
    assert not set(train.group.tolist()) & set(valid.group.tolist())
    both = [base.load(name) for name in ("train", "valid", "test")]
    times = np.concatenate([rows.time for rows in both if rows.time is not None])
    assert len(train) + len(valid) == (times <= 5).sum()
    # Rates shift, exposures do not.
    rates = []
    for name in ("train", "valid", "test"):
        assert dealt.manifest.splits[name].rows == len(dealt.load(name))
    for chosen in (times < 7, times >= 7):
        labels = np.concatenate([rows.labels for rows in both])[chosen]
        rates.append((labels[:, 0].mean(), labels[:, 1].sum() / labels[:, 0].sum()))
    assert rates[0] == pytest.approx((0.2, 0.1), abs=0.08)
    assert rates[1] == pytest.approx((0.12, 0.2), abs=0.08)


def test_points_of_a_grid_become_configurations() -> None:
    grid = points(**{"lambda": (0.1, 0.3), "m1": (0.1,), "m2": (0.2, 0.4)})
    assert len(grid) == 4
    ranked = Config(loss=LossConfig(ranking="pwiser"))
    config = at(ranked, grid[3])
    assert config.loss.lambdas == 0.3
    assert config.loss.margins == {"conversion>click": 0.1, "conversion>exposure": 0.4}
    assert config.optimizer == Config().optimizer
    other = at(Config(), {"learning_rate": 0.01, "l2": 0.0})
    assert other.optimizer.learning_rate == 0.01
    assert other.loss == Config().loss
    table = pl.DataFrame({"lambda": [0.1, 0.3, 1.0], "auc": [0.7, 0.8, float("nan")]})
    assert best_point(table) == {"lambda": 0.3}
    assert on_edge(table) == []
    assert on_edge(table.head(2)) == ["lambda"]
    assert "edge of the grid in lambda" in edge_text(table.head(2))
    with pytest.raises(UserError, match="no point"):
        best_point(table.filter(pl.col("auc").is_nan()))


@pytest.mark.parametrize("values", [["--lambdas", "-1", "-2"], ["--m1"]])
def test_a_grid_without_a_valid_point_is_told(
    data: Path, tmp_path: Path, values: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    configs = Path(__file__).resolve().parents[2] / "configs" / "synthetic"
    command = [f"--data={data}", f"--configs={configs}", f"--output={tmp_path / 'out'}"]
    assert grid_search([*command, *values]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].endswith("error: the grid has no valid point")
    assert not (tmp_path / "out").exists()


def test_the_ladders_margins_are_a_tenth_a_rung() -> None:
    assert every_margin(("click", "conversion")) == {
        "click>exposure": 0.1,
        "conversion>exposure": 0.2,
        "conversion>click": 0.1,
    }
