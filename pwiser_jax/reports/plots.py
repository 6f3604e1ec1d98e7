"""Plots of results, without a display or global state, for colour-blind readers too.

Each function returns a matplotlib Figure, made to be read at the width of a page. The
palette is Okabe and Ito's (https://jfly.uni-koeln.de/color/); losses and levels also
differ in marker or line style.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from io import BytesIO, StringIO
from itertools import product
from typing import Any, ParamSpec

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, PercentFormatter

from pwiser_jax.metrics import Reliability
from pwiser_jax.reports.tables import number_text

BLACK, GREY = "#000000", "#767676"
PALETTE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"]
MARKERS = ["o", "s", "^", "D", "v", "P", "X"]  # one more than colours: no pair twice
ORANGE = PALETTE[4]
# One colour means one loss in every plot; other losses are black.
COLOURS = {"bce": GREY, "pwiser tuned": "#882255", "bce tuned": "#332288"} | dict(
    zip(("pwiser", "ladder", "ranknet", "jrc", "logit", "focal"), PALETTE, strict=True)
)
# Losses in legends and axes; others are shown by name.
TITLES = {"bce": "BCE", "pwiser": "PWiseR"} | {
    "bce tuned": "tuned BCE",
    "pwiser tuned": "tuned PWiseR",
}
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
    table: pl.DataFrame,
    baseline: str = "bce",
    metric: str = "AUC",
    rows: Sequence[str] = ("model", "dataset"),
    titles: Mapping[str, str] = TITLES,
) -> Figure:
    """Mean paired differences with intervals: one panel per task, zero marked.

    Args:
        table: `tables.summary`; rows without a difference are left out.
        baseline: the loss that the differences are to, for the axis.
        metric: name of the compared measure, for the axis.
        rows: the columns that name a row of the plot; those after the first only where
            there are several. With the loss among them each row has one mark.
        titles: names of losses as they are shown.

    Outliers are arrows at the edge, with their values.

    Raises:
        ValueError: no row has a difference.
    """
    table = table.filter(pl.col("difference").is_not_null())
    if table.is_empty():
        raise ValueError(f"no run can be paired with one of the loss {baseline}")
    tasks, losses = (_distinct(table, name) for name in ("task", "loss"))
    looks = {loss: point for loss, (point, _) in _looks(losses, baseline).items()}
    keys = [rows[0], *(name for name in rows[1:] if table[name].n_unique() > 1)]
    places = table.select(keys).unique(maintain_order=True).rows()
    beside = 1 if "loss" in keys else len(losses)  # marks of one row
    height = 1.1 + len(places) * max(0.25 + 0.17 * len(keys), 0.2 * beside + 0.12)
    # Room between panels: the last tick of one must not touch the first of the next.
    layout = ConstrainedLayoutEngine(wspace=0.06)
    figure = Figure(figsize=(WIDTH, max(height, 2.0)), layout=layout)
    axes = figure.subplots(1, len(tasks), squeeze=False, sharey=True)[0]
    for panel, task in zip(axes, tasks, strict=True):
        panel.axvline(0, color=BLACK, linewidth=1)
        part = table.filter(pl.col("task") == task)
        limits = robust_limits(part)
        for row in part.iter_rows(named=True):
            offset = losses.index(row["loss"]) - (beside - 1) / 2 if beside > 1 else 0
            y = places.index(tuple(row[k] for k in keys)) + offset * 0.7 / beside
            _whisker(panel, row, y, looks[row["loss"]], limits)
        panel.set_title(task.upper())
        panel.tick_params(axis="x", labelsize=9)
        panel.tick_params(axis="y", length=0)
        panel.xaxis.set_major_locator(MaxNLocator(3, steps=[1, 2, 5, 10]))
        if limits is not None:
            panel.set_xlim(*limits)
        # The zero line is the only meaningful vertical.
        panel.spines["left"].set_visible(False)
    names = ["\n".join(_title(str(key), titles) for key in place) for place in places]
    axes[0].set_yticks(range(len(places)), names)
    axes[0].set_ylim(len(places) - 0.5, -0.5)
    who = f"{metric} of {_title(losses[0], titles)}" if len(losses) == 1 else metric
    text = f"{who} minus that of {_title(baseline, titles)}"
    text = f"{text}; mean over paired seeds, 95% intervals"
    figure.supxlabel(text, fontsize=10)
    if beside > 1:
        _legend(
            figure, [Line2D([], [], label=k, **v) for k, v in looks.items()], titles
        )
    return figure


def robust_limits(table: pl.DataFrame) -> tuple[float, float] | None:
    """Limits of an axis that an outlier does not stretch; None where there is none.

    Four times the median distance from 0 that an interval reaches holds all but
    outliers.
    """
    ends = table.select(
        pl.min_horizontal("difference", "low").alias("from"),
        pl.max_horizontal("difference", "high").alias("to"),
    ).to_numpy()
    reach = 4 * float(np.median(np.abs(ends).max(axis=1)))
    if reach == 0 or np.abs(ends).max() <= 1.5 * reach:
        return None
    inside = ends[np.abs(ends).max(axis=1) <= reach]
    low, high = min(inside.min(), 0), max(inside.max(), 0)
    # An outlier on one side leaves the other side as it is.
    if ends.min() < -reach:
        low = min(low, -reach)
    if ends.max() > reach:
        high = max(high, reach)
    room = 0.06 * (high - low)
    return float(low - room), float(high + room)


def _whisker(
    axes: Axes,
    row: Mapping[str, Any],
    y: float,
    look: dict[str, Any],
    limits: tuple[float, float] | None,
) -> None:
    """A point with its interval; a single pair has none, and its point is hollow."""
    value, color = row["difference"], look["color"]
    if row["low"] is not None:
        axes.hlines(y, row["low"], row["high"], color=color, linewidth=2)
    low, high = limits or (-np.inf, np.inf)
    if low < value < high:
        face = "white" if row["low"] is None else color
        axes.plot(value, y, markerfacecolor=face, **look)
        return
    left = value <= low
    axes.plot(low if left else high, y, "<" if left else ">", color=color)
    axes.annotate(
        number_text(value, "+.3f"),
        (low if left else high, y),
        (8 if left else -8, 5),
        textcoords="offset points",
        ha="left" if left else "right",
        fontsize=8,
    )


@styled
def interval_lines(
    table: pl.DataFrame,
    x: str,
    y: str,
    *,
    zero: str | None = None,
    baseline: str = "bce",
    percent: bool = False,
    log: bool = False,
    titles: Mapping[str, str] = TITLES,
) -> Figure:
    """A measure over a setting, with intervals: one panel per task, one line per loss.

    Args:
        table: columns panel, line, x, value, low, high (null: no interval).
        x, y: labels of the axes, with units.
        zero: label of the line at 0, such as "as BCE"; None: no line.
        baseline: the line drawn in grey.
        percent: show x, a share, in percent.
        log: x is above 0 and drawn on a logarithmic axis.
        titles: names of lines as they are shown.
    """
    panels, lines = _distinct(table, "panel"), _distinct(table, "line")
    looks = {name: a | b for name, (a, b) in _looks(lines, baseline).items()}
    xs = table["x"].to_numpy()
    span = float(np.ptp(np.log10(xs) if log else xs))
    figure = Figure(figsize=(WIDTH, 3.4), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, name in zip(axes, panels, strict=True):
        if zero is not None:
            panel.axhline(0, color=BLACK, linewidth=1)
        for k, (line, look) in enumerate(looks.items()):
            rows = table.filter(panel=name, line=line).sort("x")
            # Shifted, so that the intervals of two lines do not overlap.
            shift, at = (k - (len(lines) - 1) / 2) * 0.012 * span, rows["x"].to_numpy()
            at = at * 10**shift if log else at + shift
            panel.plot(at, rows["value"], markersize=5, **look)
            panel.vlines(at, rows["low"], rows["high"], color=look["color"], lw=1.5)
        panel.set_title(name.upper())
        panel.set_ylim(*_heights(table.filter(panel=name)))
        panel.locator_params(axis="y", nbins=6)
        if log:
            panel.set_xscale("log")
            _label_log(panel.xaxis, float(min(xs)), float(max(xs)))
        else:
            panel.locator_params(axis="x", nbins=6, integer=not percent)
        if percent:
            panel.xaxis.set_major_formatter(PercentFormatter(1, decimals=0))
    figure.supxlabel(x, fontsize=10)
    axes[0].set_ylabel(y)
    _legend(figure, [Line2D([], [], label=k, **v) for k, v in looks.items()], titles)
    return figure


def _label_log(axis: Axis, low: float, high: float) -> None:
    """Labels a logarithmic axis of these ends with plain numbers."""
    subs = (1.0, 2.0, 5.0) if high < 300 * low else (1.0,)
    axis.set_major_locator(LogLocator(subs=subs))
    axis.set_major_formatter("{x:,g}")
    axis.set_minor_locator(NullLocator())


def _heights(table: pl.DataFrame) -> tuple[float | None, float | None]:
    """Limits that hold every point, and all but very long intervals."""
    finite = table.filter(pl.col("value").is_finite())
    half = (finite["high"] - finite["low"]).median()
    if half is None:
        return None, None
    low, high = finite.select(
        pl.min_horizontal(
            "value", pl.max_horizontal("low", pl.col("value") - half)
        ).min(),
        pl.max_horizontal("value", pl.min_horizontal("high", pl.col("value") + half))
        .max()
        .alias("high"),
    ).row(0)
    room = 0.05 * (high - low)
    return low - room, high + room


@styled
def grid_cells(
    table: pl.DataFrame, x: str, y: str, value: str, best: str = "best"
) -> Figure:
    """A measure over two settings, one cell per point, one panel per third setting.

    Args:
        table: columns panel, x, y, value; missing points are empty cells.
        x, y, value: labels of the axes and the colour scale, with units.
        best: label of the framed cell, which has the largest value.

    The settings are spaced evenly, whatever their numbers. Colours are viridis, whose
    lightness rises with the value; the worst point's does not stretch them.
    """
    panels = _distinct(table, "panel")
    xs, ys = (sorted(table[name].unique()) for name in ("x", "y"))
    figure = Figure(figsize=(WIDTH, 1.5 + 0.5 * len(ys)), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    finite = table.filter(pl.col("value").is_finite())
    numbers = finite["value"].to_numpy()
    middle, top = (np.median(numbers), numbers.max()) if len(numbers) else (0, 1)
    bottom = max(numbers.min(initial=top), top - 4 * (top - middle))
    peak = finite.sort("value", descending=True, maintain_order=True).head(1)
    shown = None
    for panel, name in zip(axes, panels, strict=True):
        cells = {
            (row["x"], row["y"]): row["value"]
            for row in finite.filter(panel=name).iter_rows(named=True)
        }
        grid = np.array([[cells.get((a, b), np.nan) for a in xs] for b in ys])
        look = {"cmap": "viridis", "vmin": bottom, "vmax": top}
        shown = panel.imshow(grid, origin="lower", aspect="auto", **look)
        for (a, b), number in cells.items():
            dark = number < bottom + 0.6 * (top - bottom)
            panel.text(
                *(xs.index(a), ys.index(b), f"{number:.4f}"),
                color="white" if dark else BLACK,
                ha="center",
                va="center",
                fontsize=8,
            )
        for row in peak.filter(panel=name).iter_rows(named=True):
            corner = xs.index(row["x"]) - 0.5, ys.index(row["y"]) - 0.5
            frame = Rectangle(corner, 1, 1, fill=False, linewidth=3, edgecolor=ORANGE)
            frame.set(clip_on=False, label=best, zorder=3)
            panel.add_patch(frame)
            figure.legend(handles=[frame], loc="outside upper center")
        panel.set_xticks(range(len(xs)), [f"{a:g}" for a in xs])
        panel.set_yticks(range(len(ys)), [f"{b:g}" for b in ys])
        panel.grid(visible=False)
        panel.set_title(str(name))
        panel.set_xlabel(x)
    axes[0].set_ylabel(y)
    if shown is not None:
        figure.colorbar(shown, ax=list(axes), label=value, format="%.4f")
    return figure


@styled
def training_curves(
    curves: pl.DataFrame, x: str = "epoch", baseline: str = "bce"
) -> Figure:
    """Validation AUC while training: thin lines are seeds, bold ones their means.

    One row of panels per model, one column per task.

    Args:
        curves: columns model, task, loss, seed, auc and x; one row an evaluation.
        x: "epoch" or "step".
        baseline: the loss drawn in grey.

    A mean ends where the first of its seeds stopped, since the mean of fewer seeds
        would jump.
    """
    models, tasks, losses = (_distinct(curves, c) for c in ("model", "task", "loss"))
    looks = {loss: line for loss, (_, line) in _looks(losses, baseline).items()}
    size = (WIDTH, 0.9 + 2.5 * len(models))
    # Room between rows: a title must not touch the tick labels above it.
    figure = Figure(figsize=size, layout=ConstrainedLayoutEngine(h_pad=0.08))
    axes = figure.subplots(len(models), len(tasks), squeeze=False, sharex="row")
    for (i, model), (j, task) in product(enumerate(models), enumerate(tasks)):
        panel = axes[i, j]
        for loss in losses:
            rows = curves.filter(model=model, task=task, loss=loss)
            _curve(panel, rows.filter(pl.col("auc").is_finite()), x, looks[loss])
        panel.set_title(f"{model}, {task.upper()}" if len(models) > 1 else task.upper())
        panel.xaxis.set_major_locator(MaxNLocator(6, integer=True, min_n_ticks=1))
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
    # A line of a single point is invisible: draw a marker.
    marker = "o" if len(mean) == 1 else None
    axes.plot(mean[x], mean["auc"], linewidth=2.4, marker=marker, **look)


@styled
def score_distributions(
    scores: Mapping[str, np.ndarray],
    level: np.ndarray,
    level_names: Sequence[str],
    task: str = "ctcvr",
) -> Figure:
    """Density of a task's logit by level; one panel per model or loss, shared axes.

    Args:
        scores: logits f[rows] by the name of what gave them, such as BCE and PWiseR.
        level: int[rows], the rung that each row reached.
        level_names: names of the levels 0, 1, ...
        task: task of the logits, for the axis.
    """
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes = figure.subplots(1, len(scores), squeeze=False, sharex=True, sharey=True)[0]
    # Quantiles by level, so that the few conversions are not cut off.
    ends = [
        np.quantile(z[level == k], [0.001, 0.999])
        for z, k in product(scores.values(), np.unique(level))
    ]
    low, high = np.min(ends), np.max(ends)
    edges = np.linspace(low, high if high > low else low + 1, 61)
    looks = [
        {"color": (GREY, *PALETTE)[k % 7], "linestyle": ("--", *DASHES)[k % 6]}
        for k in range(len(level_names))
    ]
    counts = [int(np.count_nonzero(level == k)) for k in range(len(level_names))]
    for panel, (name, z) in zip(axes, scores.items(), strict=True):
        for k, look in enumerate(looks):
            if counts[k]:
                # Rows beyond the edges count in the outer bins: each area is 1.
                inside = np.clip(z[level == k], edges[0], edges[-1])
                bins = _merged(edges, counts[k])
                density, _ = np.histogram(inside, bins, density=True)
                panel.stairs(density, bins, linewidth=1.8, **look)
        panel.set_title(_title(name))
        panel.set_xlabel(f"{task.upper()} score (logit)")
        panel.locator_params(axis="x", nbins=6)
    # After all are drawn: setting a limit ends the autoscaling of shared axes.
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

    Bins without positives cannot be on a logarithmic axis and are left out.
    """
    figure = Figure(figsize=(WIDTH, 3.5), layout="constrained")
    axes = figure.subplots(1, len(curves), squeeze=False)[0]
    losses = list(
        dict.fromkeys(loss for by_loss in curves.values() for loss in by_loss)
    )
    looks: dict[str, Look] = {
        loss: a | b | {"markersize": 4}
        for loss, (a, b) in _looks(losses, baseline).items()
    }
    for panel, (task, by_loss) in zip(axes, curves.items(), strict=True):
        panel.set(xscale="log", yscale="log", title=task.upper())
        drawn = []
        for loss, table in by_loss.items():
            shown = table.observed > 0
            points = table.predicted[shown], table.observed[shown]
            panel.plot(*points, **looks[loss])
            drawn += [*points[0], *points[1]]
        ends = [min(drawn, default=0.001), max(drawn, default=1.0)]
        panel.plot(ends, ends, color=BLACK, linewidth=0.8, zorder=0)
        for axis in (panel.xaxis, panel.yaxis):
            _label_log(axis, *ends)
        panel.set_xlabel("mean predicted probability")
    axes[0].set_ylabel("share of positives")
    _legend(figure, [Line2D([], [], label=k, **v) for k, v in looks.items()])
    return figure


def to_svg(figure: Figure) -> str:
    """The figure as SVG; the same figure gives the same text on one machine."""
    buffer = StringIO()
    with mpl.rc_context(STYLE):
        # Solving the layout again at each drawing would move it slightly.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        # What `savefig` calls after another drawing, for a layout that is solved here.
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return buffer.getvalue()


def to_png(figure: Figure) -> bytes:
    """The figure as PNG, 100 pixels an inch; a figure that `to_svg` has not drawn."""
    buffer = BytesIO()
    with mpl.rc_context(STYLE):
        figure.savefig(buffer, format="png", dpi=100, metadata={"Software": None})
    return buffer.getvalue()


def _title(loss: str, titles: Mapping[str, str] = TITLES) -> str:
    return titles.get(loss, TITLES.get(loss, loss))


def _distinct(table: pl.DataFrame, name: str) -> list[str]:
    return table[name].unique(maintain_order=True).to_list()


Look = dict[str, Any]


def _looks(losses: Sequence[str], baseline: str) -> dict[str, tuple[Look, Look]]:
    """Marker and line style of each loss.

    A line may be named LOSS, SETTING: the loss gives the colour. The baseline's lines
    are dashed.
    """
    looks = {}
    for k, name in enumerate(losses):
        colour = COLOURS.get(name.partition(", ")[0], BLACK)
        dash = "--" if name == baseline else DASHES[k % len(DASHES)]
        looks[name] = (
            {"color": colour, "marker": MARKERS[k % len(MARKERS)]},
            {"color": colour, "linestyle": dash},
        )
    return looks


def _legend(
    figure: Figure, lines: list[Line2D], titles: Mapping[str, str] = TITLES
) -> None:
    for line in lines:
        label = _title(str(line.get_label()), titles)
        # Matplotlib leaves out labels that begin with an underscore.
        line.set_label(f" {label}" if label.startswith("_") else label)
    longest = max(len(str(line.get_label())) for line in lines)
    columns = min(len(lines), max(1, 110 // (longest + 8)))
    figure.legend(handles=lines, loc="outside upper center", ncols=columns)


def _merged(edges: np.ndarray, count: int) -> np.ndarray:
    """Merges bins of a level with few rows, whose fine histogram is noise."""
    step = 1 if count >= 2000 else 2 if count >= 500 else 4 if count >= 100 else 6
    return edges[::step]
