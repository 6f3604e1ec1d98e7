"""The command line: its output, and its error messages."""

import json
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from experiments.bench.raw.make_raw import main as make_raw
from pwiser_jax import __version__
from pwiser_jax.cli import main
from pwiser_jax.cli import parser as cli_parser
from pwiser_jax.config import Config, config_of
from pwiser_jax.training.run.metrics import read_metrics

TINY = [
    "--model.embedding_dim=4",
    "--model.expert=[8]",
    "--model.experts=2",
    "--model.tower=[4]",
    "--train.epochs=1",
    "--data.batch_size=256",
]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CSV of 3,000 rows with a schema beside it, prepared and trained on."""
    folder = tmp_path_factory.mktemp("table")
    rng = np.random.default_rng(0)
    rows = 3_000
    user, item = rng.integers(0, 200, rows), rng.integers(0, 30, rows)
    price = rng.normal(size=rows)
    click = rng.random(rows) < 1 / (1 + np.exp(-(price - item / 15)))
    bought = click & (rng.random(rows) < 0.3)
    frame = pl.DataFrame(
        {
            "user": user,
            "item": [f"item {i}" for i in item],
            "price": price,
            "clicked": click.astype(int),
            "bought": bought.astype(int),
        }
    )
    frame.write_csv(folder / "rows.csv")
    schema = {
        "categorical": ["item"],
        "numerical": ["price"],
        "labels": {"click": "clicked", "conversion": "bought"},
        "group": "user",
        "split": {"by": "group", "valid": 0.2, "test": 0.2},
    }
    (folder / "schema.yaml").write_text(yaml.safe_dump(schema))
    prepare = ["prepare", "table", f"--source={folder / 'rows.csv'}"]
    prepare += [f"--schema={folder / 'schema.yaml'}", f"--output={folder / 'prepared'}"]
    assert main(prepare) == 0
    train = [
        "train",
        f"--data.path={folder / 'prepared'}",
        f"--output={folder / 'run'}",
    ]
    assert main([*train, *TINY]) == 0
    return folder


def test_evaluate_prints_json_and_writes_the_same(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["evaluate", f"--run={table / 'run'}", "--split=test"]
    assert main(command) == 0
    shown = capsys.readouterr().out
    for name in ("CTR", "CTCVR", "CVR"):
        assert f"\n{name} " in shown
    assert "\nconversion over click only " in shown
    assert "\nconversion over no click " in shown
    assert main([*command, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    written = json.loads((table / "run" / "evaluation_test.json").read_text())
    assert printed == written
    assert printed["split"] == "test"
    for task in ("ctr", "ctcvr", "cvr"):
        assert printed[task]["auc"]["low"] < printed[task]["auc"]["high"]
    assert "conversion_over_click_only" in printed["pairs"]["ctcvr"]


def test_prepared_and_raw_rows_get_the_same_probabilities_in_order(
    table: Path, tmp_path: Path
) -> None:
    run, prepared = table / "run", table / "prepared"
    raw = pl.read_csv(table / "rows.csv")
    # Without labels, in another order of columns, as Parquet.
    raw.select("price", "user", "item").write_parquet(tmp_path / "raw.parquet")
    for name in ("rows.csv", "raw.parquet"):
        source = (table if name.endswith("csv") else tmp_path) / name
        out = tmp_path / f"{name}.out.parquet"
        assert (
            main(["predict", f"--run={run}", f"--input={source}", f"--output={out}"])
            == 0
        )
    a, b = (
        pl.read_parquet(tmp_path / f"{name}.out.parquet")
        for name in ("rows.csv", "raw.parquet")
    )
    assert a.columns == ["ctr", "ctcvr", "cvr"]
    assert a.height == raw.height
    assert a.equals(b)
    out = tmp_path / "valid.parquet"
    source = prepared / "valid-00000.parquet"
    assert (
        main(["predict", f"--run={run}", f"--input={source}", f"--output={out}"]) == 0
    )
    valid = pl.read_parquet(out)["ctr"].to_numpy()
    # The valid rows are a part of the raw ones, in the same order.
    ctr = a["ctr"].to_numpy()
    positions = np.searchsorted(np.sort(ctr), valid)
    assert np.allclose(
        np.sort(ctr)[np.minimum(positions, len(ctr) - 1)], valid, atol=1e-6
    )
    assert 0.1 < len(valid) / len(ctr) < 0.3


def test_a_value_that_train_never_saw_can_be_predicted(
    table: Path, tmp_path: Path
) -> None:
    source, out = tmp_path / "new.csv", tmp_path / "new.parquet"
    source.write_text("item,price\nitem 3,0.5\nnever seen,0.5\n,0.5\n")
    arguments = [f"--run={table / 'run'}", f"--input={source}", f"--output={out}"]
    assert main(["predict", *arguments]) == 0
    assert pl.read_parquet(out).height == 3


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["train", "--output=X"], "data.path"),
        (["train", "--output=X", "--data.path=nowhere"], "nowhere"),
        (["train", "--output=X", "--model.dropuot=0.1"], "dropuot"),
        (["train", "--output=X", "--model.name=dnn"], "model.name"),
        (["train", "--output=X", "--data=nowhere"], "--data.OPTION"),
        (["train", "--output=X", "--train.epochs=0"], "train.epochs"),
        (["train", "--output=X", "--loss.lambdas=-1"], "loss.lambdas"),
        (["train", "--output=X", "--config=none.yaml"], "none.yaml"),
        (["train", "--output=X", "--protocol=mine"], "protocol"),
        (
            ["train", "--output=X", "--max-steps-without-checkpoint=0"],
            "train.max_steps_without_checkpoint",
        ),
        (["evaluate", "--run=nowhere"], "nowhere"),
        (["evaluate", "--run={run}", "--split=train"], "split"),
        (["evaluate", "--run={run}", "--data={table}"], "manifest.json"),
        (["predict", "--run={run}", "--input=none.csv", "--output=X.csv"], "none.csv"),
        (
            ["predict", "--run={run}", "--input={table}/schema.yaml", "--output=X.csv"],
            ".csv",
        ),
        (["prepare", "table", "--source=none.csv", "--schema=s", "--output=X"], "s"),
        (["prepare", "tabel"], "did you mean 'table'?"),
        ([], "command"),
        (["evaluat", "--run=X"], "did you mean 'evaluate'?"),
        (["train", "--output=X", "--dropout=0.1"], "did you mean '--model.dropout'?"),
        (["train", "--data.path=X"], "--output is required"),
        (["prepare", "table", "--source=X"], "--output and --schema are required"),
        (
            ["prepare", "kuairand", "--source=X", "--output=Y", "--min-count=few"],
            "--min-count is few; expected a whole number",
        ),
        (
            ["train", "--output=X", "--loss.lambdas=much"],
            "--loss.lambdas is much; expected a number, numbers by name",
        ),
        (
            ["train", "--output=X", "--train.seed=2147483648"],
            "train.seed is 2147483648",
        ),
        (["train", "--output=X", "--train.seed=null"], "--train.seed is null"),
        (["train", "--output=X", "--optimizer.l2=nan"], "optimizer.l2 is nan"),
        (["train", "--output=X", "--profile", "maybe"], "'maybe' is not expected here"),
    ],
)
def test_a_mistake_gets_one_sentence_and_exit_code_2(
    table: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    filled = [a.format(table=table, run=table / "run") for a in arguments]
    try:
        code = main(filled)
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert words in error
    assert "error:" in error
    assert len(error.splitlines()) == 1, error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train: {seed: null}", "train.seed is null; expected a whole number"),
        ("trian: {seed: 1}", "there is no option trian; did you mean 'train'?"),
        ("train: {sed: 1}", "there is no option train.sed; did you mean 'seed'?"),
        ("train: {seed: true}", "train.seed is true; expected a whole number"),
        ("train: {seed: 1e400}", "train.seed is 1e400"),
        ("loss: {lambdas: {ctr: null}}", "loss.lambdas is"),
        ("loss: {lambdas: [1]}", "loss.lambdas is [1]"),
        ("model: {levels: [[a]]}", "expected a list of lists of whole numbers"),
        ("model: 3", "model is 3; expected options with values"),
        ("- a", "expected options with values"),
        ("a: [", "c.yaml, line 1: not YAML"),
        ("a: &x [1]\nb: [" + "*x, " * 200 + "]", "more than 100 YAML aliases"),
        ("loss: {bank: 2}\nloss: {}", "line 2: not YAML (the key loss is there twice)"),
        ("#" * (1 << 21), "larger than 1 MB"),
        ("optimizer: {learning_rate: .inf}", "learning_rate is Infinity"),
        ("optimizer: {schedule: warmup}", "schedule warmup needs optimizer.warmup"),
        ("optimizer: {shard_tables: 3}", "shard_tables is 3; expected true or false"),
    ],
)
def test_a_wrong_configuration_gets_one_sentence_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, words: str
) -> None:
    (tmp_path / "c.yaml").write_text(text)
    run = tmp_path / "run"
    assert main(["train", f"--config={tmp_path / 'c.yaml'}", f"--output={run}"]) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
    assert not re.search("typing|<class|Traceback", error)
    assert not run.exists()


def test_single_options_go_over_those_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "c.yaml").write_text("train: {seed: 3, epochs: 7}\nmodel:\n")
    argv = ["train", f"--config={tmp_path / 'c.yaml'}", "--train.seed=0", "--output=X"]
    given = cli_parser(argv).parse(argv, defaults=False).train
    config = config_of(given)
    assert (config.train.seed, config.train.epochs) == (0, 7)
    assert config.model == Config().model
    assert Config.from_dict(config.to_dict()) == config
    assert Config.from_dict({"train": {"seed": 0, "epochs": 7}}) == config


@pytest.mark.parametrize(
    "command", [["--help"], ["train", "--help"], ["prepare", "table", "-h"]]
)
def test_help_is_in_words_and_spells_options_with_dashes(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command)
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert not re.search(r"<class|typing\.|Literal|Union", text)
    assert not re.search(r"--[a-z]+_[a-z_]*(?![\w.])", text)
    assert ("--num-processes" in text) == (command[0] == "train")
    assert ("--on-bad-label" in text) == (command[0] == "prepare")


def test_options_may_have_dashes_and_flags_need_no_value(
    table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    prepare = ["prepare", "table", f"--source={table / 'rows.csv'}"]
    prepare += [f"--schema={table / 'schema.yaml'}", f"--output={table / 'again'}"]
    assert main([*prepare, "--on-bad-label", "drop"]) == 0
    assert main(prepare) == 2
    assert "--overwrite" in capsys.readouterr().err
    assert main([*prepare, "--overwrite"]) == 0


def test_the_synthetic_funnel_is_prepared_with_every_option(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "funnel"
    options = ["--rows=10000", "--users=50", "--items=20", "--labels=3"]
    rates = ["--click-rate=0.4", "--conversion-rate=0.4"]
    prepare = ["prepare", "synthetic", *options, *rates]
    assert main([*prepare, f"--output={output}"]) == 0
    assert "orders" in capsys.readouterr().out
    assert json.loads((output / "manifest.json").read_text())["options"]["items"] == 20
    wrong = tmp_path / "wrong"
    assert main(["prepare", "synthetic", "--labels=9", f"--output={wrong}"]) == 2
    assert capsys.readouterr().err == "pwiser: error: --labels is 9; expected 2 to 5\n"
    assert list(tmp_path.iterdir()) == [output]


def test_preparing_and_inspecting_do_without_jax(tmp_path: Path) -> None:
    program = """
import sys
from pwiser_jax.cli import main
code = main(sys.argv[1:])
print(code, sorted({"jax", "flax", "numba"} & sys.modules.keys()))
"""
    prepared = str(tmp_path / "prepared")
    prepare = ["prepare", "synthetic", f"--output={prepared}", "--rows=10000"]
    for command in (prepare, ["inspect", prepared]):
        done = subprocess.run(
            [sys.executable, "-c", program, *command],
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.splitlines()[-1] == "0 []"


def test_the_console_command_and_the_module_are_the_same() -> None:
    command = [sys.executable, "-m", "pwiser_jax", "--version"]
    out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert __version__ in out


def test_an_interrupt_while_modules_are_imported_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Importing:
        def find_spec(self, name: str, *_: object) -> None:
            if name == "pwiser_jax.cli":
                raise KeyboardInterrupt

    monkeypatch.delitem(sys.modules, "pwiser_jax.cli")
    monkeypatch.delattr("pwiser_jax.cli")
    monkeypatch.setattr(sys, "meta_path", [Importing(), *sys.meta_path])
    from pwiser_jax.__main__ import main as command

    assert command() == 130
    assert capsys.readouterr().err == "pwiser: interrupted\n"


def test_preparing_works_in_a_process_of_its_own(tmp_path: Path) -> None:
    """There the command sets up the interpreter as calls of `main` do not."""
    raw, options = tmp_path / "raw", ["--rows=12000", "--lines=300", "--test_rows=4000"]
    assert make_raw(["aliccp", f"--output={raw}", *options]) == 0
    for dataset, given in {
        "synthetic": ["--rows=500", "--users=50"],
        "aliccp": [f"--source={raw}", "--on-bad-label=nest", "--valid-fraction=0.3"],
    }.items():
        output = tmp_path / dataset
        command = [sys.executable, "-m", "pwiser_jax", "prepare", dataset]
        subprocess.run([*command, *given, f"--output={output}"], check=True)
        assert (output / "manifest.json").is_file()


def train_command(table: Path, run: Path) -> list[str]:
    options = [*TINY, "--train.epochs=6", "--train.patience=6"]
    options += ["--train.log_every=1", "--train.checkpoint_every=2"]
    options += [f"--data.path={table / 'prepared'}", f"--output={run}"]
    return [sys.executable, "-m", "pwiser_jax", "train", *options]


@pytest.fixture(scope="module")
def unstopped(table: Path) -> Path:
    run = table / "unstopped"
    subprocess.run(train_command(table, run), capture_output=True, check=True)
    return run


@pytest.mark.parametrize(
    ("sent", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130)],
)
def test_a_stopped_run_goes_on_to_the_metrics_of_an_unstopped_one(
    table: Path,
    unstopped: Path,
    tmp_path: Path,
    sent: signal.Signals,
    code: int,
) -> None:
    run = tmp_path / "run"
    command = train_command(table, run)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    checkpoints = run / "checkpoints" / "last"
    while not any(path.name.isdigit() for path in checkpoints.glob("*")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.05)
    process.send_signal(sent)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert "run the same command again" in error
    assert "Traceback" not in error
    assert not (run / "result.json").exists()
    again = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "resuming from the checkpoint at step" in again.stderr
    assert read_metrics(run) == read_metrics(unstopped)
    results = [(folder / "result.json").read_text() for folder in (run, unstopped)]
    assert results[0] == results[1]
