"""Plots of results: no display, no global state, colours that all readers can tell.

Each function returns a matplotlib Figure, made to be read at the width of a page. The
palette is Okabe and Ito's (https://jfly.uni-koeln.de/color/); losses and levels differ
in marker or line style as well, so that nothing hangs on colour alone.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from io import StringIO
from itertools import product
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator, PercentFormatter

from pwiser_jax.metrics import Reliability

BLACK, GREY = "#000000", "#767676"
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]  # one more than colours: no pair twice
DASHES = ["-", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2))]
WIDTH = 9.0  # inches; at 10 pt, text is as large as that of a page around it
STYLE: dict[Any, Any] = {
    "font.size": 10,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "figure.facecolor": "white",
    "figure.dpi": 72,  # of SVG: what the layout is solved for
    "svg.hashsalt": "pwiser_jax",
    "text.parse_math": False,  # names may hold a $
}

Made = ParamSpec("Made")


def styled(make: Callable[Made, Figure]) -> Callable[Made, Figure]:
    @wraps(make)
    def styled(*args: Made.args, **kwargs: Made.kwargs) -> Figure:
        with mpl.rc_context(STYLE):
            return make(*args, **kwargs)

    return styled


@styled
def differences(
    table: pl.DataFrame, baseline: str = "bce", metric: str = "AUC"
) -> Figure:
    """Mean paired differences with their intervals: a panel a task, zero marked.

    Args:
        table: `tables.summary`; rows without a difference are left out.
        baseline: the loss that the differences are to, for the axis.
        metric: what is compared, for the axis.

    Raises:
        ValueError: no row has a difference.
    """
    table = table.filter(pl.col("difference").is_not_null())
    if table.is_empty():
        raise ValueError(f"no run can be paired with one of the loss {baseline}")
    tasks, losses = (_distinct(table, name) for name in ("task", "loss"))
    looks = {
        loss: {"color": look["color"], "marker": MARKERS[k % len(MARKERS)]}
        for k, (loss, look) in enumerate(_looks(losses, baseline).items())
    }
    places = table.select("dataset", "model").unique(maintain_order=True).rows()
    several = len({dataset for dataset, _ in places}) > 1
    names = [f"{model}\n{dataset}" if several else model for dataset, model in places]
    height = 1.1 + len(places) * max(0.42, 0.2 * len(losses) + 0.12)
    # Room between panels: the last tick of one is not to touch the first of the next.
    layout = ConstrainedLayoutEngine(wspace=0.06)
    figure = Figure(figsize=(WIDTH, max(height, 2.0)), layout=layout)
    axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for panel, task in zip(axes, tasks, strict=True):
        panel.axvline(0, color=BLACK, linewidth=1)
        for row in table.filter(pl.col("task") == task).iter_rows(named=True):
            middle = losses.index(row["loss"]) - (len(losses) - 1) / 2
            y = places.index((row["dataset"], row["model"]))
            _whisker(panel, row, y + middle * 0.7 / len(losses), looks[row["loss"]])
        panel.set_title(task.upper())
        panel.tick_params(axis="x", labelsize=9)
        panel.tick_params(axis="y", length=0)
        panel.locator_params(axis="x", nbins=4)
        # The zero line is the only vertical that means something.
        panel.spines["left"].set_visible(False)
    axes[0].set_yticks(range(len(places)), names)
    axes[0].set_ylim(len(places) - 0.5, -0.5)
    who = f"{metric} of {losses[0]}" if len(losses) == 1 else metric
    text = f"{who} minus that of {baseline} (mean over paired seeds, 95% interval)"
    figure.supxlabel(text, fontsize=10)
    if len(losses) > 1:
        _legend(figure, [Line2D([], [], label=k, **v) for k, v in looks.items()])
    return figure


def _whisker(
    axes: Axes, row: Mapping[str, Any], y: float, look: dict[str, Any]
) -> None:
    """A point with its interval; a single pair has none, and its point is hollow."""
    if row["low"] is None:
        axes.plot(row["difference"], y, markerfacecolor="white", **look)
    else:
        axes.hlines(y, row["low"], row["high"], color=look["color"], linewidth=2)
        axes.plot(row["difference"], y, **look)


@styled
def interval_lines(
    table: pl.DataFrame,
    x: str,
    y: str,
    *,
    zero: str | None = None,
    baseline: str = "bce",
    percent: bool = False,
) -> Figure:
    """A measure along a setting, with intervals: a panel a task, a line a loss.

    Args:
        table: columns panel, line, x, value, low, high (null: no interval).
        x, y: what the axes show, with units.
        zero: what lies at 0, marked where given, such as "as BCE".
        baseline: the line drawn in grey.
        percent: show x, a share, in percent.
    """
    panels, lines = _distinct(table, "panel"), _distinct(table, "line")
    looks: dict[str, dict[str, Any]] = {
        line: look | {"marker": MARKERS[k % len(MARKERS)]}
        for k, (line, look) in enumerate(_looks(lines, baseline).items())
    }
    span = float(np.ptp(table["x"].to_numpy()))
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, name in zip(axes, panels, strict=True):
        if zero is not None:
            panel.axhline(0, color=BLACK, linewidth=1)
        for k, (line, look) in enumerate(looks.items()):
            rows = table.filter(panel=name, line=line).sort("x")
            # A little aside, that intervals of two lines do not hide each other.
            at = rows["x"].to_numpy() + (k - (len(lines) - 1) / 2) * 0.012 * span
            panel.plot(at, rows["value"], markersize=5, **look)
            panel.vlines(at, rows["low"], rows["high"], color=look["color"], lw=1.5)
        panel.set_title(name.upper())
        panel.locator_params(axis="y", nbins=6)
        panel.locator_params(axis="x", nbins=6, integer=not percent)
        if percent:
            panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.supxlabel(x, fontsize=10)
    axes[0].set_ylabel(y)
    _legend(figure, [Line2D([], [], label=k, **v) for k, v in looks.items()])
    return figure


@styled
def surfaces(
    table: pl.DataFrame, x: str, y: str, value: str, best: str = "best"
) -> Figure:
    """A measure over two settings as filled contours: a panel a third setting.

    Args:
        table: columns panel, x, y, value; a row for every x and y of each panel.
        x, y, value: what the axes and the colours show, with units.
        best: what the star is called that stands at the largest value of all.

    The settings are spaced evenly, whatever their numbers. Colours are viridis, whose
    lightness rises with the value.
    """
    panels = _distinct(table, "panel")
    xs, ys = (sorted(table[name].unique()) for name in ("x", "y"))
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    numbers = table["value"].to_numpy()
    levels = np.linspace(numbers.min(), numbers.max() + 1e-9, 11)
    peak = table.sort("value", descending=True).row(0, named=True)
    drawn = None
    for panel, name in zip(axes, panels, strict=True):
        rows = table.filter(panel=name)
        cells = {(r["x"], r["y"]): r["value"] for r in rows.iter_rows(named=True)}
        grid = np.array([[cells[a, b] for a in xs] for b in ys])
        drawn = panel.contourf(grid, levels=levels, cmap="viridis")
        if name == peak["panel"]:
            at = xs.index(peak["x"]), ys.index(peak["y"])
            (star,) = panel.plot(*at, "*", color="white", clip_on=False, label=best)
            star.set(markersize=14, markeredgecolor=BLACK)
            figure.legend(handles=[star], loc="outside upper center")
        panel.set_xticks(range(len(xs)), [f"{a:g}" for a in xs])
        panel.set_yticks(range(len(ys)), [f"{b:g}" for b in ys])
        panel.grid(visible=False)
        panel.set_title(str(name))
        panel.set_xlabel(x)
    axes[0].set_ylabel(y)
    if drawn is not None:
        figure.colorbar(drawn, ax=list(axes), label=value, format="%.4f")
    return figure


@styled
def training_curves(
    curves: pl.DataFrame, x: str = "epoch", baseline: str = "bce"
) -> Figure:
    """Validation AUC while training: thin lines are seeds, bold ones their means.

    A row of panels a model, a column a task.

    Args:
        curves: columns model, task, loss, seed, auc and x; one row an evaluation.
        x: "epoch" or "step".
        baseline: the loss drawn in grey.

    A mean ends where the first of its seeds stopped: beyond, it would be one of other
    seeds, and jump.
    """
    models, tasks, losses = (_distinct(curves, c) for c in ("model", "task", "loss"))
    looks = _looks(losses, baseline)
    size = (WIDTH, 0.9 + 2.5 * len(models))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(models), len(tasks), squeeze=False, sharex="row")
    for (i, model), (j, task) in product(enumerate(models), enumerate(tasks)):
        panel = axes[i, j]
        for loss in losses:
            rows = curves.filter(model=model, task=task, loss=loss)
            _curve(panel, rows.filter(pl.col("auc").is_finite()), x, looks[loss])
        panel.set_title(f"{model}, {task.upper()}" if len(models) > 1 else task.upper())
        panel.locator_params(axis="x", integer=True, nbins=6)
        panel.locator_params(axis="y", nbins=5)
        if i == len(models) - 1:
            panel.set_xlabel(x)
        if j == 0:
            panel.set_ylabel("validation AUC")
    _legend(figure, [Line2D([], [], lw=2.4, label=k, **v) for k, v in looks.items()])
    return figure


def _curve(axes: Axes, rows: pl.DataFrame, x: str, look: dict[str, Any]) -> None:
    for seed in rows.sort(x).partition_by("seed", maintain_order=True):
        color = look["color"]
        axes.plot(seed[x], seed["auc"], color=color, linewidth=0.7, alpha=0.45)
    mean = (
        rows.group_by(x)
        .agg(pl.col("auc").mean(), pl.col("seed").n_unique())
        .filter(pl.col("seed") == rows["seed"].n_unique())
        .sort(x)
    )
    # A single evaluation is a point: a line of one point cannot be seen.
    marker = "o" if len(mean) == 1 else None
    axes.plot(mean[x], mean["auc"], linewidth=2.4, marker=marker, **look)


@styled
def score_distributions(
    scores: Mapping[str, np.ndarray],
    level: np.ndarray,
    level_names: Sequence[str],
    task: str = "ctcvr",
) -> Figure:
    """Density of a task's logit by level, a panel a model or loss on shared axes.

    Args:
        scores: logits f[rows] by the name of what gave them, such as BCE and PWiseR.
        level: int[rows], the rung that each row reached.
        level_names: of level 0, 1, ...
        task: whose logits these are, for the axis.
    """
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes = figure.subplots(1, len(scores), squeeze=False, sharex=True, sharey=True)[0]
    # By level: the few conversions are no tail of all the rows.
    ends = [
        np.quantile(z[level == k], [0.001, 0.999])
        for z, k in product(scores.values(), np.unique(level))
    ]
    low, high = np.min(ends), np.max(ends)
    edges = np.linspace(low, high if high > low else low + 1, 61)
    looks = _looks(["no", *level_names[1:]], "no").values()
    counts = [int(np.count_nonzero(level == k)) for k in range(len(level_names))]
    for panel, (name, z) in zip(axes, scores.items(), strict=True):
        for k, look in enumerate(looks):
            if counts[k]:
                # Rows beyond the edges count in the outer bins: each area is 1.
                inside = np.clip(z[level == k], edges[0], edges[-1])
                own = _merged(edges, counts[k])
                density, _ = np.histogram(inside, own, density=True)
                panel.stairs(density, own, linewidth=1.8, **look)
        panel.set_title(name)
        panel.set_xlabel(f"{task.upper()} score (logit)")
    # Once all are drawn: a limit ends the scaling of the axes that the panels share.
    axes[0].set_ylim(bottom=0)
    axes[0].set_ylabel("density")
    labels = [
        f"{name.replace('_', ' ')} ({count:,} rows)"
        for name, count in zip(level_names, counts, strict=True)
    ]
    lines = [
        Line2D([], [], lw=1.8, label=label, **look)
        for label, look in zip(labels, looks, strict=True)
    ]
    _legend(figure, lines)
    return figure


@styled
def reliability_curves(
    curves: Mapping[str, Mapping[str, Reliability]], baseline: str = "bce"
) -> Figure:
    """Observed against predicted rate in bins of equal mass, on logarithmic axes.

    Args:
        curves: by task (a panel each) and then by loss; `metrics.reliability`.
        baseline: the loss drawn in grey.

    Bins without a positive cannot stand on a logarithmic axis and are left out.
    """
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    losses = list(dict.fromkeys(loss for own in curves.values() for loss in own))
    looks = {
        loss: look | {"marker": MARKERS[k % len(MARKERS)], "markersize": 4}
        for k, (loss, look) in enumerate(_looks(losses, baseline).items())
    }
    for panel, (task, own) in zip(axes, curves.items(), strict=True):
        panel.set(xscale="log", yscale="log", title=task.upper())
        drawn = []
        for loss, table in own.items():
            shown = table.observed > 0
            points = table.predicted[shown], table.observed[shown]
            panel.plot(*points, **looks[loss])
            drawn += [*points[0], *points[1]]
        ends = [min(drawn, default=0.001), max(drawn, default=1.0)]
        panel.plot(ends, ends, color=BLACK, linewidth=0.8, zorder=0)
        subs = (1.0, 2.0, 5.0) if ends[1] < 300 * ends[0] else (1.0,)
        for axis in (panel.xaxis, panel.yaxis):
            axis.set_major_locator(LogLocator(subs=subs))
            axis.set_major_formatter("{x:g}")
            axis.set_minor_locator(NullLocator())
        panel.set_xlabel("mean predicted probability")
    axes[0].set_ylabel("share of positives")
    _legend(figure, [Line2D([], [], label=k, **v) for k, v in looks.items()])
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as SVG; the same figure gives the same text on one machine."""
    buffer = StringIO()
    with mpl.rc_context(STYLE):
        # A layout that is solved again at each drawing would move a little each time.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    return buffer.getvalue()


def _distinct(table: pl.DataFrame, name: str) -> list[str]:
    return table[name].unique(maintain_order=True).to_list()


def _looks(losses: Sequence[str], baseline: str) -> dict[str, dict[str, Any]]:
    """Colour and line style by loss: grey dashes for the baseline, then by order."""
    others = [loss for loss in losses if loss != baseline]
    return {
        loss: {"color": GREY, "linestyle": "--"}
        if loss == baseline
        else {
            "color": PALETTE[others.index(loss) % len(PALETTE)],
            "linestyle": DASHES[others.index(loss) % len(DASHES)],
        }
        for loss in losses
    }


def _legend(figure: Figure, lines: list[Line2D]) -> None:
    longest = max(len(str(line.get_label())) for line in lines)
    columns = min(len(lines), max(1, 110 // (longest + 8)))
    figure.legend(handles=lines, loc="outside upper center", ncols=columns)


def _merged(edges: np.ndarray, count: int) -> np.ndarray:
    """Fewer, wider bins for a level of few rows, whose fine histogram is noise."""
    step = 1 if count >= 2000 else 2 if count >= 500 else 4 if count >= 100 else 6
    return edges[::step]
