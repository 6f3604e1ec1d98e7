"""The experiment scripts, on a few rows: paired, resumable, nothing run twice."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from experiments import grid as grids
from experiments.ablation import ABLATION
from experiments.compare import main
from experiments.integration import INTEGRATION
from pwiser_jax.data.synthetic import prepare_synthetic
from pwiser_jax.errors import UserError
from pwiser_jax.training.metrics import read_metrics

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "synthetic"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "prepared"
    prepare_synthetic(folder, rows=6_000, seed=1, users=300, items=100)
    return folder


def arguments(data: Path, folder: Path, *more: str) -> list[str]:
    return [
        f"--data={data}",
        f"--configs={CONFIGS}",
        f"--output={folder / 'out'}",
        f"--runs={folder / 'runs'}",
        "--models=[shared_bottom]",
        '--set=["train.epochs=2", "model.bottom=[8]", "data.batch_size=512"]',
        *more,
    ]


def test_integration_then_ablation_share_runs(data: Path, tmp_path: Path) -> None:
    assert main(INTEGRATION, arguments(data, tmp_path, "--seeds=2")) == 0
    results = pl.read_csv(tmp_path / "out" / "results.csv")
    assert results.height == 2 * 2 * 3  # losses x seeds x tasks
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count("data:image/svg+xml;base64,") == 3
    assert "http-equiv" not in page
    assert "<script" not in page
    for name in ("table.csv", "table.md"):
        assert "pwiser" in (tmp_path / "out" / name).read_text()
    table = pl.read_csv(tmp_path / "out" / "table.csv")
    pwiser = table.filter((pl.col("loss") == "pwiser") & (pl.col("task") == "ctr"))
    by_loss = results.filter(pl.col("task") == "ctr").group_by("loss").agg("auc")
    aucs = dict(by_loss.rows())
    gaps = [a - b for a, b in zip(aucs["pwiser"], aucs["bce"], strict=True)]
    assert pwiser["difference"].item() == pytest.approx(sum(gaps) / 2)
    runs = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert len(runs) == 4

    assert main(ABLATION, arguments(data, tmp_path, "--seeds=1")) == 0
    again = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    assert len(again) == 4 + 6
    assert all(again[path] == when for path, when in runs.items())


def test_paired_runs_start_from_the_same_weights_and_see_the_same_batches(
    data: Path,
) -> None:
    cells = list(
        grids.Grid(CONFIGS, data, ["mmoe"], ["bce", "pwiser"], seeds=2).cells()
    )
    assert [(cell.loss, cell.seed) for cell in cells] == [
        ("bce", 0),
        ("pwiser", 0),
        ("bce", 1),
        ("pwiser", 1),
    ]
    configs = [cell.config for cell in cells]
    assert configs[0].train == configs[1].train
    assert configs[0].model == configs[1].model
    assert configs[0].train.seed != configs[2].train.seed
    assert len({cell.name for cell in cells}) == 4


def test_a_killed_experiment_goes_on_where_it_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = grids.train, []

    def dies_in_the_second(*args: Any, **options: Any) -> Any:
        calls.append(args)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args, **options)

    monkeypatch.setattr(grids, "train", dies_in_the_second)
    assert main(INTEGRATION, arguments(data, tmp_path, "--seeds=1")) == 130
    assert not (tmp_path / "out").exists()
    first = next(tmp_path.rglob("metrics.jsonl"))
    when = first.stat().st_mtime_ns
    assert main(INTEGRATION, arguments(data, tmp_path, "--seeds=1")) == 0
    assert first.stat().st_mtime_ns == when
    assert read_metrics(first.parent)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        (["--data=nowhere"], "nowhere"),
        (["--configs=nowhere"], "nowhere"),
        (["--seeds=0"], "empty"),
        (["--protocol=mtreclib"], "--split test"),
        (["--models=[]"], "empty"),
        (['--set=["train.epochz=2"]'], "epochz"),
    ],
)
def test_a_mistake_gets_one_sentence(
    data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    word: str,
) -> None:
    assert main(INTEGRATION, [*arguments(data, tmp_path), *more]) == 2
    error = capsys.readouterr().err.strip()
    assert word in error
    assert len(error.splitlines()) == 1


def test_cells_of_any_kind_have_their_tags_as_columns(
    data: Path, tmp_path: Path
) -> None:
    overrides = ("--train.epochs=1", "--model.bottom=[4]")
    grid = grids.Grid(CONFIGS, data, ["shared_bottom"], ["bce"], 1, overrides)
    (cell,) = grid.cells()
    tagged = [
        replace(cell, tags={"noise": 0.1, "day": 3}),
        replace(cell, tags={"noise": 0, "who": "me"}),
    ]
    results = grids.run_cells(tagged, data, tmp_path, "valid")
    ctr = results.filter(pl.col("task") == "ctr")
    assert ctr["noise"].to_list() == [0.1, 0.0]
    assert ctr["day"].to_list() == [3, None]
    assert ctr["who"].to_list() == [None, "me"]
    assert ctr["run"].n_unique() == 1
    with pytest.raises(UserError, match="no cell"):
        grids.run_cells([], data, tmp_path, "valid")
