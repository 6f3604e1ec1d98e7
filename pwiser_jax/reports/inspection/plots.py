"""The pictures of `pwiser inspect`."""

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.ticker import (
    FuncFormatter,
    LogLocator,
    MaxNLocator,
    NullLocator,
    PercentFormatter,
)

from pwiser_jax.reports.inspection.measures import RESERVED, Inspection
from pwiser_jax.reports.plots import GREY, PALETTE, WIDTH, styled

HATCHES = ("", "///", "...")


PICTURES = ("splits", "sizes", "conversions", "drift", "shares")


def pictures(inspection: Inspection) -> dict[str, Figure]:
    """The pictures of a folder, by file name, of `PICTURES`."""
    figures = {
        "splits": splits(inspection),
        "sizes": sizes(inspection.fields),
        "conversions": conversions(inspection),
        "drift": drift(inspection),
    }
    if len(inspection.shares):
        figures["shares"] = shares(inspection.shares)
    return figures


@styled
def splits(inspection: Inspection) -> Figure:
    """Rows of each split, and the rate of each label."""
    names = list(inspection.splits)
    labels = inspection.labels
    lines = -(-(1 + len(labels)) // 3)
    figure = Figure(figsize=(WIDTH, 2.5 * lines), layout="constrained")
    panels = figure.subplots(lines, 3, squeeze=False).ravel()
    for panel in panels[1 + len(labels) :]:
        panel.remove()
    values = [[split.rows for split in inspection.splits.values()]]
    values += [
        [split.labels[label] / split.rows for split in inspection.splits.values()]
        for label in labels
    ]
    titles = ["rows", *(f"{label}, share of rows" for label in labels)]
    for at, panel in enumerate(panels[: 1 + len(labels)]):
        texts = [f"{v:,}" if at == 0 else f"{v:.3%}" for v in values[at]]
        bars = panel.bar(names, values[at], color=colour(at))
        panel.bar_label(bars, texts, fontsize=9, padding=2)
        panel.set_title(titles[at])
        panel.set_ylim(0, 1.15 * max(values[at]) or 1)
        panel.yaxis.set_major_locator(MaxNLocator(4))
        panel.yaxis.set_major_formatter(
            FuncFormatter(_short) if at == 0 else PercentFormatter(1)
        )
        panel.grid(axis="x", visible=False)
    return figure


def _short(value: float, _: int) -> str:
    for unit, name in ((1e6, "M"), (1e3, "k")):
        if value >= unit:
            return f"{value / unit:g} {name}"
    return f"{value:g}"


@styled
def sizes(fields: pl.DataFrame) -> Figure:
    """Ids of each field, on a logarithmic axis."""
    table = fields.filter(pl.col("size").is_not_null())
    figure = Figure(figsize=(WIDTH, _height(len(table))), layout="constrained")
    panel = figure.subplots()
    kinds = {"categorical": PALETTE[0], "multi-valued": PALETTE[1]}
    for at, (kind, color) in enumerate(kinds.items()):
        part = table.filter(kind=kind)
        if len(part):
            panel.barh(
                part["field"],
                part["size"].clip(0.5),
                color=color,
                hatch=HATCHES[at],
                edgecolor="white",
                label=kind,
            )
    for at, size in enumerate(table["size"]):
        panel.annotate(
            f"{size:,}",
            (max(size, 0.5), at),
            (3, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
        )
    panel.set_xscale("log")
    panel.xaxis.set_major_locator(LogLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(_short))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.margins(y=0.02)
    panel.set_xlim(0.5, 3 * table["size"].to_numpy().max(initial=10))
    panel.invert_yaxis()
    panel.set(
        xlabel="ids with a row of their own in the embedding table", ylabel="field"
    )
    panel.grid(axis="y", visible=False)
    if len(table):
        figure.legend(loc="outside upper right", ncols=2)
    return figure


@styled
def shares(table: pl.DataFrame) -> Figure:
    """Missing, unseen and rare of each field with ids, one panel per split."""
    names = table["split"].unique(maintain_order=True).to_list()
    fields = table["field"].unique(maintain_order=True).to_list()
    # Room between panels: the last tick of one must not touch the first of the next.
    layout = ConstrainedLayoutEngine(wspace=0.06)
    figure = Figure(figsize=(WIDTH, _height(len(fields))), layout=layout)
    panels = figure.subplots(1, len(names), squeeze=False, sharex=True, sharey=True)[0]
    for panel, name in zip(panels, names, strict=True):
        part = table.filter(split=name)
        left = np.zeros(len(part))
        for at, kind in enumerate(RESERVED):
            panel.barh(
                part["field"],
                part[kind],
                left=left,
                color=colour(at + 1),
                hatch=HATCHES[at],
                edgecolor="white",
                label=kind,
            )
            left += part[kind].to_numpy()
        panel.set_title(name)
        if not left.any():
            place = {"ha": "center", "va": "center", "transform": panel.transAxes}
            panel.text(0.5, 0.5, "none", color=GREY, **place)
        panel.xaxis.set_major_formatter(PercentFormatter(1))
        panel.xaxis.set_major_locator(MaxNLocator(3))
        panel.grid(axis="y", visible=False)
    panels[0].margins(y=0.02)
    panels[0].set_xlim(0, None)
    panels[0].invert_yaxis()
    panels[0].set_ylabel("field")
    figure.supxlabel(
        "share of rows (unseen and rare of a multi-valued field: of its values)",
        fontsize=10,
    )
    handles, texts = panels[0].get_legend_handles_labels()
    figure.legend(handles, texts, loc="outside upper right", ncols=3)
    return figure


@styled
def conversions(inspection: Inspection) -> Figure:
    """Conversions in a batch: in file order, and expected if shuffled."""
    batches = inspection.batches
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    panel = figure.subplots()
    count = np.arange(len(batches.in_order))
    total = batches.in_order.sum()
    if total:
        panel.bar(
            count,
            batches.in_order / total,
            color=PALETTE[0],
            label=f"in file order: {batches.empty_in_order:.1%} without any",
        )
    panel.plot(
        count,
        batches.shuffled,
        color=PALETTE[1],
        marker="o",
        markersize=4,
        label=f"shuffled, expected: {batches.empty_shuffled:.1%} without any",
    )
    panel.set(
        xlabel=f"conversions in a batch of {batches.size:,} train rows "
        f"(mean {batches.mean:.2f})",
        ylabel="share of batches",
    )
    panel.yaxis.set_major_formatter(PercentFormatter(1))
    panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    panel.grid(axis="x", visible=False)
    figure.legend(loc="outside upper center", ncols=2)
    return figure


@styled
def drift(inspection: Inspection) -> Figure:
    """The rate of each label along train's file, one panel per label."""
    rates = inspection.drift.rates
    size = (WIDTH, 0.6 + 2.0 * len(rates))
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(rates), 1, squeeze=False, sharex=True)[:, 0]
    middle = (inspection.drift.ends[:-1] + inspection.drift.ends[1:]) / 2
    for at, (panel, (label, rate)) in enumerate(
        zip(panels, rates.items(), strict=True)
    ):
        panel.axhspan(
            *inspection.drift.band(label), color=GREY, alpha=0.25, linewidth=0
        )
        panel.plot(middle, rate, color=colour(at + 1), marker=".", lw=1)
        panel.set(title=label, ylabel="share of rows")
        panel.set_ylim(0, 1.1 * rate.max() or 1)
        panel.yaxis.set_major_formatter(PercentFormatter(1))
        panel.yaxis.set_major_locator(MaxNLocator(4))
    panels[-1].set_xlim(0, inspection.drift.ends[-1])
    panels[-1].xaxis.set_major_formatter(FuncFormatter(_short))
    panels[-1].set_xlabel(
        "row of train, in file order (grey: 95% of such bins if rows were shuffled)"
    )
    return figure


def colour(at: int) -> str:
    """Grey for rows, then one colour per label, lowest label first."""
    return GREY if at == 0 else PALETTE[(at - 1) % len(PALETTE)]


def _height(fields: int) -> float:
    return 1.2 + 0.22 * max(fields, 3)
