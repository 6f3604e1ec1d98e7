"""Tests of differences as tables, and the plots of settings."""

import numpy as np
import polars as pl
import pytest
from scipy import stats

from pwiser_jax.reports import plots, tables


@pytest.fixture(scope="module")
def results() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    rows = [
        ("synthetic", "mmoe", task, loss, seed, 0.7 + gain + rng.normal(0, 0.002))
        for task, gain in (("ctr", 0.0), ("ctcvr", 0.01))
        for loss, gain in (("bce", 0.0), ("pwiser", gain))
        for seed in range(8)
    ]
    names = ["dataset", "model", "task", "loss", "seed", "auc"]
    return pl.DataFrame(rows, schema=names, orient="row")


def test_significance_is_scipys(results: pl.DataFrame) -> None:
    tests = tables.significance(results)
    assert tests["task"].to_list() == ["ctr", "ctcvr"]
    for row in tests.iter_rows(named=True):
        a, b = (
            results.filter(task=row["task"], loss=loss).sort("seed")["auc"].to_numpy()
            for loss in ("pwiser", "bce")
        )
        assert row["p"] == pytest.approx(stats.ttest_rel(a, b).pvalue)
        assert row["wilcoxon"] == pytest.approx(stats.wilcoxon(a, b).pvalue)
        assert row["difference"] == pytest.approx((a - b).mean())
        assert row["sd"] == pytest.approx(np.std(a - b, ddof=1))
        assert row["pairs"] == 8
        assert row["seeds"] > 8
    smaller, larger = sorted(tests["p"])
    assert sorted(tests["p_holm"]) == pytest.approx(
        [2 * smaller, max(larger, 2 * smaller)]
    )
    alone = tables.significance(results.filter(pl.col("seed") == 0))
    assert alone.height == 0
    assert alone.columns == tests.columns


def test_difference_text_shows_what_there_is() -> None:
    minus = "\N{MINUS SIGN}"
    assert tables.difference_text(0.1, -0.2, 0.4, ".1f") == f"+0.1 [{minus}0.2, +0.4]"
    dash, nan = "\N{EN DASH}", float("nan")
    assert tables.difference_text(None, None, None) == dash
    assert tables.difference_text(0.1, nan, nan, ".1f") == f"+0.1 [{dash}, {dash}]"


def test_interval_lines_are_drawn_where_they_are() -> None:
    rows = [
        (task, loss, x, 0.1 * x + k, 0.1 * x + k - 0.05, 0.1 * x + k + 0.05)
        for task in ("ctr", "ctcvr")
        for k, loss in enumerate(("bce", "pwiser"))
        for x in (0.0, 0.5, 1.0)
    ]
    names = ["panel", "line", "x", "value", "low", "high"]
    table = pl.DataFrame(rows, schema=names, orient="row")
    figure = plots.interval_lines(table, "share", "AUC", zero="as BCE", percent=True)
    panels = figure.axes
    assert [panel.get_title() for panel in panels] == ["CTR", "CTCVR"]
    zero, bce, pwiser = panels[0].get_lines()
    assert list(zero.get_ydata()) == [0, 0]
    assert list(bce.get_ydata()) == pytest.approx([0.0, 0.05, 0.1])
    assert list(pwiser.get_ydata()) == pytest.approx([1.0, 1.05, 1.1])
    # Side by side, and by no more than a hair.
    assert np.allclose(bce.get_xdata(), pwiser.get_xdata(), atol=0.02)
    assert not np.array_equal(bce.get_xdata(), pwiser.get_xdata())
    assert bce.get_marker() != pwiser.get_marker()
    assert panels[0].get_ylabel() == "AUC"
    plots.to_svg(figure)


def test_interval_lines_on_a_logarithmic_axis_are_shifted_alike() -> None:
    names = ["panel", "line", "x", "value", "low", "high"]
    rows = [("ctr", line, x, 0.0, -1.0, 1.0) for line in "ab" for x in (10.0, 1000.0)]
    table = pl.DataFrame(rows, schema=names, orient="row")
    figure = plots.interval_lines(table, "rows", "AUC", log=True)
    panel = figure.axes[0]
    assert panel.get_xscale() == "log"
    svg = plots.to_svg(figure)
    assert "mathdefault" not in svg
    assert "<!-- 1,000 -->" in svg or ">1,000<" in svg
    first, second = (np.array(line.get_xdata(), float) for line in panel.get_lines())
    ratios = second / first
    assert ratios[0] == pytest.approx(ratios[1])
    assert 1 < ratios[0] < 1.1


def test_a_grid_is_drawn_as_cells_with_the_best_framed() -> None:
    rows = [
        (f"m1 = {m1}", x, y, -((x - 0.1) ** 2) - (y - 0.4) ** 2 - m1)
        for m1 in (0.1, 0.2)
        for x in (0.03, 0.1, 0.3)
        for y in (0.2, 0.4)
    ]
    table = pl.DataFrame(rows, schema=["panel", "x", "y", "value"], orient="row")
    figure = plots.grid_cells(table, "lambda", "m2", "AUC", "best on validation")
    first, second, colours = figure.axes
    (frame,) = first.patches
    assert frame.get_xy() == (0.5, 0.5)
    assert not second.patches
    for panel in (first, second):
        assert panel.images[0].get_array().shape == (2, 3)
        assert len(panel.texts) == 6
    assert first.images[0].get_array()[1, 1] == pytest.approx(-0.1)
    assert [text.get_text() for text in first.get_xticklabels()] == [
        "0.03",
        "0.1",
        "0.3",
    ]
    assert first.get_xlabel() == "lambda"
    assert first.get_ylabel() == "m2"
    assert colours.get_ylabel() == "AUC"
    plots.to_svg(figure)
