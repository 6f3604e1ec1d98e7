"""The experiments, on a few rows: runs are paired, resume, and are trained once."""

import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments import all as experiments
from experiments.bench.raw.make_raw import main as make_raw
from experiments.lib import grid as grids
from experiments.lib.relabel import relabelled
from experiments.lib.runs import paired_runs
from pwiser_jax.atomic import locked
from pwiser_jax.data.aliccp.prepare import prepare_aliccp
from pwiser_jax.data.datasets.aliexpress import prepare_aliexpress
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.errors import UserError

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
TINY = (
    "train.epochs=2",
    "data.batch_size=512",
    "model.bottom=[8]",
    "model.expert=[8]",
    "model.experts=2",
    "model.tower=[]",
    "model.embedding_dim=4",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    prepare_synthetic(folder, rows=6_000, seed=1, users=300, items=100)
    return folder


def arguments(
    data: Path, folder: Path, name: str, *more: str, configs: str = "synthetic"
) -> list[str]:
    return [
        "--only",
        name,
        f"--data={data}",
        f"--configs={CONFIGS / configs}",
        f"--output={folder / 'out'}",
        "--models=shared_bottom",
        "--set",
        *TINY,
        *more,
    ]


def runs_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.jsonl")}


def test_the_papers_table_and_what_follows_from_its_runs(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = arguments(data, tmp_path, "paper_table", "--seeds=2")
    assert experiments.main(command) == 0
    out = tmp_path / "out"
    results = pl.read_parquet(out / "results" / "paper_table.parquet")
    assert results.height == 2 * 2 * 3 * 3  # losses x seeds x tasks x metrics
    assert set(results["experiment"]) == {"paper_table"}
    for run, digest in results.select("run", "config_hash").unique().rows():
        assert (out / "cells" / run / "result.json").exists()
        assert run.endswith(digest)
    aucs = results.filter((pl.col("metric") == "auc") & (pl.col("task") == "ctcvr"))
    by_loss = dict(aucs.group_by("loss").agg(pl.col("value").mean()).rows())
    assert "CTCVR" in capsys.readouterr().out
    assert "| pwiser |" in (out / "results" / "paper_table.md").read_text()
    page = (out / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 4
    assert "http-equiv" not in page
    assert "<script" not in page
    gap = by_loss["pwiser"] - by_loss["bce"]
    shown = f"{gap:+.4f}".replace("-", "\N{MINUS SIGN}")
    assert f"CTCVR AUC ({shown}" in page
    assert f"CTCVR AUC ({shown}" in (out / "findings.md").read_text()
    assert page.index("The answer") < page.index("The paper&#39;s table")
    runs = runs_of(tmp_path)
    assert len(runs) == 4

    # A table that was cut off is made again, without training.
    table = out / "results" / "paper_table.parquet"
    table.write_bytes(table.read_bytes()[:-100])
    assert experiments.main(command) == 0
    assert "damaged" in capsys.readouterr().err
    assert pl.read_parquet(table).equals(results)
    assert runs_of(tmp_path) == runs


@pytest.mark.parametrize(
    "name",
    [
        "noise",
        "significance",
        "calibration",
        "comparison",
        *(
            pytest.param(name, marks=pytest.mark.long)
            for name in (
                *("terms", "ladders", "drift", "nightly"),
                *("interplay", "growth", "revenue", "classical"),
            )
        ),
    ],
)
def test_experiments_end_to_end(
    data: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each writes its section; the same command again trains and measures nothing."""
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"])  # which --quick adds to
    small = replace(experiments.SCALES["quick"], worlds=5, pairs=4, overrides=())
    small = replace(small, batch_sizes=(256, 512))
    monkeypatch.setitem(experiments.SCALES, "quick", small)
    for module in (name, "comparison"):
        monkeypatch.setattr(
            f"experiments.{module}.MODEL", "shared_bottom", raising=False
        )
    command = arguments(data, tmp_path, name, "train.epochs=1", "--quick")
    assert experiments.main(command) == 0
    runs = runs_of(tmp_path)
    table = tmp_path / "out" / "results" / f"{name}.parquet"
    first = pl.read_parquet(table)
    assert experiments.main(command) == 0
    assert runs_of(tmp_path) == runs
    assert pl.read_parquet(table).sort(first.columns).equals(first.sort(first.columns))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "nan" not in (tmp_path / "out" / "findings.md").read_text()
    assert experiments.experiment_of(name).title in page


@pytest.mark.parametrize("dataset", ["aliexpress", "aliccp"])
def test_the_papers_table_from_raw_files(dataset: str, tmp_path: Path) -> None:
    raw, folder = tmp_path / "raw", tmp_path / f"{dataset}_data"
    if dataset == "aliexpress":
        assert make_raw([dataset, f"--output={raw}", "--rows=40000"]) == 0
        prepare_aliexpress(raw, folder, valid_fraction=0.3)
    else:
        options = ["--rows=12000", "--lines=300", "--test-rows=9000"]
        assert make_raw([dataset, f"--output={raw}", *options]) == 0
        prepare_aliccp(raw, folder, valid_fraction=0.3, on_bad_label="nest")
    options = "train.epochs=1", "--seeds=1"
    command = arguments(folder, tmp_path, "paper_table", *options, configs=dataset)
    assert experiments.main(command) == 0
    results = pl.read_parquet(tmp_path / "out" / "results" / "paper_table.parquet")
    aucs = results.filter((pl.col("metric") == "auc") & (pl.col("task") == "ctr"))
    assert aucs["value"].is_between(0, 1).all()
    assert aucs.height == 2


def test_paired_runs_start_from_the_same_weights_and_see_the_same_batches(
    data: Path,
) -> None:
    configs = CONFIGS / "synthetic"
    planned = paired_runs(configs, ["mmoe"], ["bce", "pwiser"], range(2))
    assert [(run.loss, run.seed) for run in planned] == [
        ("bce", 0),
        ("pwiser", 0),
        ("bce", 1),
        ("pwiser", 1),
    ]
    configs = [run.config for run in planned]
    assert configs[0].train == configs[1].train
    assert configs[0].model == configs[1].model
    assert configs[0].train.seed != configs[2].train.seed
    assert len({run.name for run in planned}) == 4


def test_a_killed_experiment_goes_on_where_it_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = arguments(data, tmp_path, "paper_table", "--seeds=1")
    with monkeypatch.context() as patch:
        killed = partial(grids.train_sweep, stop_after=3)
        patch.setattr(grids, "train_sweep", killed)
        assert experiments.main(command) == 130
    assert not (tmp_path / "out" / "report.html").exists()
    assert not list(tmp_path.rglob("result.json"))
    heard: list[str] = []
    monkeypatch.setattr(grids._Bar, "line", lambda bar, text: heard.append(text))
    assert experiments.main(command) == 0
    assert "resuming from the checkpoint at step 3" in heard
    assert len(list(tmp_path.rglob("result.json"))) == 2


def exit_code(command: list[str]) -> object:
    try:
        return experiments.main(command)
    except SystemExit as stopped:  # what the parser itself refuses
        return stopped.code


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--data=nowhere"], "nowhere"),
        (["--configs=nowhere"], "nowhere"),
        (["--kuairand=nowhere"], "nowhere"),
        (["--datasets", "kuaishou"], "no 'kuaishou'; there are"),
        (["--seeds=0"], "seeds"),
        (["--only", "comparison", "--seeds=1"], "needs at least 2 (--seeds)"),
        (["--models", "gpt"], "gpt"),
        (["--only", "everything"], "everything"),
        (["--quick", "--full"], "choose one"),
        (["--cluster=head"], "expected auto, local or the HOST:PORT"),
        (["--protocol=mtreclib", "--split=valid"], "measure --split test"),
        (["--set", "train.epochz=2"], "epochz"),
        (["--set", "optimizer.learning_rate=-1"], "learning_rate"),
    ],
)
def test_a_mistake_gets_one_sentence(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    word: str,
) -> None:
    command = [*arguments(data, tmp_path, "paper_table"), *more]
    assert exit_code(command) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert word in error[-1]
    assert not (tmp_path / "out").exists()


def test_a_split_without_rows_is_told_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "prepared"
    with pytest.warns(UserWarning, match="test split is empty"):
        prepare_synthetic(folder, rows=6_000, users=300, items=100, test=0)
    assert experiments.main(arguments(folder, tmp_path, "paper_table")) == 2
    assert "has no test rows" in capsys.readouterr().err
    assert not runs_of(tmp_path)


def test_runs_have_their_tags_as_columns(data: Path, tmp_path: Path) -> None:
    overrides = ("--train.epochs=1", "--model.bottom=[4]")
    (run,) = paired_runs(
        CONFIGS / "synthetic", ["shared_bottom"], ["bce"], [0], overrides
    )
    tagged = [
        replace(run, tags={"noise": 0.1, "day": 3}),
        replace(run, tags={"noise": 0, "who": "me"}),
    ]
    results = grids.results_of(tagged, data, tmp_path, "valid")
    ctr = results.filter(pl.col("task") == "ctr")
    assert ctr["noise"].to_list() == [0.1, 0.0]
    assert ctr["day"].to_list() == [3, None]
    assert ctr["who"].to_list() == [None, "me"]
    assert ctr["run"].n_unique() == 1
    with pytest.raises(UserError, match="nothing to run"):
        grids.results_of([], data, tmp_path, "valid")


def test_a_report_is_made_again_from_its_tables(data: Path, tmp_path: Path) -> None:
    command = arguments(data, tmp_path, "paper_table", "--seeds=2")
    assert experiments.main(command) == 0
    out, again = tmp_path / "out", tmp_path / "again"
    tables = [f"--tables={out / 'results'}", f"--output={again}"]
    assert experiments.main([*command, *tables]) == 0
    findings = (out / "findings.md").read_text()
    assert (again / "findings.md").read_text() == findings
    assert (again / "effect.png").read_bytes().startswith(b"\x89PNG")
    assert not runs_of(again)


def test_a_report_of_committed_tables_loads_no_jax(tmp_path: Path) -> None:
    program = """
import sys
from experiments.all import main
code = main(sys.argv[1:])
print(code, sorted({"jax", "flax", "optax", "orbax"} & sys.modules.keys()))
"""
    tables = CONFIGS.parent / "experiments" / "results" / "kuairand_seeds"
    options = ["--full", "--seeds=60", f"--tables={tables}", f"--output={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", program, *options],
        cwd=CONFIGS.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []"


@pytest.mark.parametrize(
    ("share", "options", "task", "reason"),
    [
        (1, (), "cvr", "no negative rows"),
        # Epochs are chosen on test, where the mean AUC is that of CTR alone.
        (0, ("--protocol=mtreclib",), "ctcvr", "no positive rows"),
    ],
)
def test_a_measure_that_does_not_exist_is_shown_with_its_reason(
    data: Path,
    tmp_path: Path,
    share: int,
    options: tuple[str, ...],
    task: str,
    reason: str,
) -> None:
    """Every click of test converts, or none: there is no CVR to rank."""
    folder = tmp_path / "prepared"

    def change(labels: np.ndarray) -> np.ndarray:
        return np.stack([labels[:, 0], share * labels[:, 0]], axis=1)

    relabelled(data, folder, ("test",), change, {})
    command = arguments(folder, tmp_path, "paper_table", "--seeds=2", *options)
    assert experiments.main(command) == 0
    results = pl.read_parquet(tmp_path / "out" / "results" / "paper_table.parquet")
    aucs = results.filter((pl.col("metric") == "auc") & (pl.col("task") == task))
    assert aucs["value"].null_count() == aucs.height == 4
    assert set(aucs["reason"]) == {reason}
    page = (tmp_path / "out" / "report.html").read_text()
    assert f"\N{EN DASH} ({reason})" in page
    assert "nan" not in (tmp_path / "out" / "findings.md").read_text()


def test_a_run_is_never_made_twice_at_once(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands that share runs take turns; the second makes only what is missing."""
    monkeypatch.setattr(grids, "WAIT", 0.01)
    planned = paired_runs(
        CONFIGS / "synthetic", ["shared_bottom"], ["bce"], [0], ["--train.epochs=1"]
    )
    at_work = threading.Event()
    counts: list[int] = []

    def train_sweep(configs: object, folders: list[Path], bar: object) -> None:
        counts.append(len(folders))
        at_work.set()
        time.sleep(0.2)
        for folder in folders:
            folder.mkdir(parents=True)
            best = {"epoch": 0, "step": 1, "mean_auc": None, "auc": {}}
            result = {"best": best, "steps": 1, "stopped": "epochs"}
            (folder / "result.json").write_text(json.dumps(result))
            (folder / "evaluation_valid.json").write_text(json.dumps(nothing))

    missing = {"value": None, "low": None, "high": None, "reason": "no rows"}
    task = {"rows": 0, "positives": 0, "auc": missing, "log_loss": None}
    nothing = dict.fromkeys(("ctr", "ctcvr", "cvr"), task)
    nothing |= {"split": "valid", "rows": 0, "groups": 0, "pairs": {}}
    monkeypatch.setattr(grids, "train_sweep", train_sweep)
    work = partial(grids.results_of, planned, data, tmp_path, "valid")
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(work)
        at_work.wait()
        second = threads.submit(work)
        assert first.result().equals(second.result())
    assert counts == [1]


def test_two_reports_into_one_folder_are_refused(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "out").mkdir()
    with locked(tmp_path / "out", "writing a report"):
        assert experiments.main(arguments(data, tmp_path, "paper_table")) == 2
    assert "is in use" in capsys.readouterr().err
    assert not runs_of(tmp_path)


@pytest.mark.long
def test_an_experiment_on_a_cluster_equals_itself_without(
    data: Path, tmp_path: Path
) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install '.[cluster]'")
    results = []
    for folder, options in (("on", ["--cluster=local"]), ("alone", [])):
        words = arguments(data, tmp_path / folder, "paper_table")
        at = words.index("--set")
        # A process of its own: Ray's workers and devices are not the tests'.
        command = ["-m", "experiments.all", *words[:at], *options, *words[at:]]
        subprocess.run([sys.executable, *command], check=True)
        (table,) = (tmp_path / folder).rglob("paper_table.parquet")
        results.append(pl.read_parquet(table).drop("run"))
    assert results[0].equals(results[1])
