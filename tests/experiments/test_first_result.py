"""The benchmark of the wait for a first result, on a few rows."""

import sys
from pathlib import Path

import polars as pl
import pytest

from experiments.bench import first_result
from experiments.bench.compiling import step_seconds
from experiments.bench.training_cell import Cell

SMALL = "[model.embedding_dim=4, 'model.bottom=[8]', 'model.tower=[4]']"


@pytest.mark.long
def test_it_measures_cold_and_warm_runs_and_writes_a_table_and_a_plot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(first_result, "missing_packages", lambda python: ["torch"])
    some = ["--models=[shared_bottom]", "--compiled=[shared_bottom]"]
    options = ["--rows=20_000", *some, "--rounds=1"]
    places = [f"--work={tmp_path / 'work'}", f"--output={tmp_path / 'out'}"]
    assert first_result.main([*places, *options, f"--set={SMALL}"]) == 0
    table = pl.read_csv(tmp_path / "out.csv")
    hows = ["first", "again", "tracing", "compiling"]
    assert table["how"].to_list() == hows
    assert table["seconds"].min() > 0
    assert table["peak_mib"].drop_nulls().min() > 100
    text = (tmp_path / "out.md").read_text()
    assert f"No PyTorch: {sys.executable} lacks torch." in text
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")


def test_a_table_and_a_plot_compare_runs_of_one_round():
    runs = [
        ("PyTorch", 0, 10.0, 400.0),
        ("first", 0, 5.0, 600.0),
        ("PyTorch", 1, 30.0, 400.0),
        ("first", 1, 10.0, 800.0),
    ]
    table = pl.DataFrame(
        [("mmoe", *run) for run in runs],
        schema=["model", "how", "round", "seconds", "peak_mib"],
        orient="row",
    )
    _, first = first_result.formatted(table).rows()
    assert first == (
        "mmoe",
        "first",
        "7.5 (5.0 to 10.0)",
        "2.50 (2.00 to 3.00)",
        "700",
        "1.75 (1.50 to 2.00)",
    )
    bars = first_result.plot(table).axes[0].patches
    assert [bar.get_width() for bar in bars] == [20.0, 7.5]


def test_compiling_a_step_has_two_stages():
    changes = '{"bottom": [4], "tower": []}'
    seconds = step_seconds(Cell(model="shared_bottom", batch=4, dim=2, changes=changes))
    assert tuple(seconds) == first_result.STEP
    assert min(seconds.values()) > 0
    rounds = [("tracing", 1.0, 2.0), ("compiling", 3.0, 5.0)]
    table = pl.DataFrame(
        [
            {"model": "ple", "how": how, "round": turn, "seconds": one}
            for how, *values in rounds
            for turn, one in enumerate(values)
        ]
    )
    (line,) = first_result.formatted_step(table).rows()
    texts = ("1.5 (1.0 to 2.0)", "4.0 (3.0 to 5.0)", "5.5 (4.0 to 7.0)")
    assert line == ("ple", *texts)


def test_packages_that_a_python_lacks_are_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(first_result, "NEEDED", ("json", "no_such_package"))
    missing = first_result.missing_packages(Path(sys.executable))
    assert missing == ["no_such_package"]
