"""`pwiser inspect`: a prepared folder in the terminal and as pictures."""

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pwiser_jax.data.prepared.leaks import REFUSED, WARNED, FeatureAuc, feature_aucs
from pwiser_jax.data.prepared.manifest import read_manifest
from pwiser_jax.errors import UserError
from pwiser_jax.reports.inspection.measures import RESERVED, Inspection, inspect_folder
from pwiser_jax.reports.inspection.plots import PICTURES, pictures
from pwiser_jax.reports.plots import STYLE
from pwiser_jax.reports.tables import UNDEFINED
from pwiser_jax.tasks import measured

BAR_WIDTH = 16
DPI = 144
LEVELS = "▁▂▃▄▅▆▇█"
SHOWN_COUNTS = 20
SHOWN_FEATURES = 8


def inspect(
    folder: Path,
    batch_size: int,
    output: Path,
    console: Console,
    *,
    overwrite: bool = False,
) -> None:
    """Prints what the folder holds and writes a PNG of each part into `output`.

    Raises:
        UserError: no prepared folder, `output` cannot be written, or it holds such
            pictures and `overwrite` is not set.
    """
    earlier = [name for name in PICTURES if (output / f"{name}.png").exists()]
    if earlier and not overwrite:
        raise UserError(f"{output / earlier[0]}.png exists; --overwrite replaces it")
    inspection = inspect_folder(folder, batch_size)
    for table in tables(inspection):
        console.print(table)
        console.print()
    console.print(_alone(feature_aucs(folder, read_manifest(folder))))
    console.print()
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures(inspection).items():
            partial = output / f".{name}.png.partial"
            with mpl.rc_context(STYLE):
                figure.savefig(partial, format="png", dpi=DPI)
            partial.replace(output / f"{name}.png")
            console.print(str(output / f"{name}.png"), soft_wrap=True, markup=False)
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror}): name another --output"
        ) from error


def tables(inspection: Inspection) -> list[Table]:
    """The tables of the terminal, in their order."""
    return [
        _splits(inspection),
        _fields(inspection),
        _conversions(inspection),
        _drift(inspection),
    ]


def _table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    left: Sequence[str] = (),
    caption: str = "",
) -> Table:
    """A table for the terminal. Names are not interpreted as markup; a name too long
    for its column wraps."""
    table = Table(
        title=Text(title, "table.title"),
        caption=Text(caption, "table.caption") if caption else None,
        title_justify="left",
        box=None,
        padding=(0, 2, 0, 0),
    )
    for name in columns:
        if name in left:
            table.add_column(Text(name), overflow="fold", min_width=min(len(name), 8))
        else:
            table.add_column(Text(name), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _splits(inspection: Inspection) -> Table:
    """One line per label and task, lowest label first; one column per split."""
    tasks = measured(inspection.labels)
    names = ["rows", *inspection.labels, *(task.name.upper() for task in tasks)]
    columns = []
    for split in inspection.splits.values():
        counts = [split.rows, *(split.labels[label] for label in inspection.labels)]
        rates = (
            counts[task.rung] / counts[task.given] if counts[task.given] else math.nan
            for task in tasks
        )
        texts = (UNDEFINED if math.isnan(rate) else f"{rate:.3%}" for rate in rates)
        columns.append([*(f"{count:,}" for count in counts), *texts])
    return _table(
        f"{inspection.dataset}: rows, labels and rates by split",
        ["", *inspection.splits],
        zip(names, *columns, strict=True),
        left=[""],
    )


def _fields(inspection: Inspection) -> Table:
    """One line per field: its size, and the shares of its reserved ids by split."""
    names = list(inspection.splits)
    fields = inspection.fields.filter(pl.col("size").is_not_null()).rows(named=True)
    widest = max((math.log(1 + row["size"]) for row in fields), default=1.0)
    shares = {
        (row["field"], row["split"]): [100 * row[kind] for kind in RESERVED]
        for row in inspection.shares.rows(named=True)
    }
    lines = [
        (
            row["field"] + (f" (up to {row['width']})" if row["width"] else ""),
            f"{row['size']:,}",
            bar(math.log(1 + row["size"]) / (widest or 1), 6),
            *(
                " ".join(f"{share:4.1f}" for share in shares[row["field"], split])
                for split in names
            ),
        )
        for row in fields
    ]
    numbers = len(inspection.fields) - len(fields)
    shared = int(inspection.fields["shared"].sum())
    return _table(
        f"Fields: ids, and the share of {', '.join(RESERVED)} in % by split",
        ["field", "ids", "", *names],
        lines,
        left=["field", ""],
        caption=f"and {numbers} numerical fields, missing values filled in; {shared} "
        "fields are stored once for many rows",
    )


def _conversions(inspection: Inspection) -> Table:
    batches = inspection.batches
    title = (
        f"Conversions in a batch of {batches.size:,} train rows: {batches.mean:.2f} on "
        f"average; none in {batches.empty_in_order:.1%} of the batches in file order "
        f"and, as expected, in {batches.empty_shuffled:.1%} of shuffled ones"
    )
    columns = ("conversions", "file order", "", "shuffled", " ")
    # Merge neighbouring counts, if there are many.
    step = -(-len(batches.in_order) // SHOWN_COUNTS)
    starts = np.arange(0, len(batches.in_order), step)
    in_order, shuffled = (
        np.add.reduceat(np.asarray(v, float), starts)
        for v in (batches.in_order, batches.shuffled)
    )
    in_order /= max(in_order.sum(), 1)
    top = max(in_order.max(), shuffled.max())
    lines = [
        (
            f"{start}" if step == 1 else f"{start} to {start + step - 1}",
            *(f"{share:.1%}", bar(share / top)),
            *(f"{expected:.1%}", bar(expected / top)),
        )
        for start, share, expected in zip(starts, in_order, shuffled, strict=True)
    ]
    return _table(title, columns, lines, left=["", " "])


def _drift(inspection: Inspection) -> Table:
    bins = len(inspection.drift.ends) - 1
    lines = []
    for label, rates in inspection.drift.rates.items():
        low, high = inspection.drift.band(label)
        ends = f"{rates.min():.3%}", f"{rates.max():.3%}"
        lines.append((label, *ends, f"{low:.3%} to {high:.3%}", sparkline(rates)))
    return _table(
        f"Drift: label rates along the train rows, {bins} bins",
        ["label", "lowest", "highest", "95% if shuffled", "along the file"],
        lines,
        left=["label", "along the file"],
    )


def _alone(aucs: Sequence[FeatureAuc]) -> Table:
    """The features that predict a label best on their own."""
    best = sorted(aucs, key=lambda each: -each.low)[:SHOWN_FEATURES]
    return _table(
        "Features alone: AUC for a label on a sample of train",
        ["feature", "label", "by its", "AUC", "at least (95%)"],
        [
            (
                each.feature,
                each.label,
                "missing values" if each.by == "missing" else each.by,
                f"{each.auc:.3f}",
                f"{each.low:.3f}" if each.low > WARNED else "",
            )
            for each in best
        ],
        left=["feature", "label", "by its"],
        caption=f"the best {len(best)} of {len(aucs)}; prepare warns above {WARNED} "
        f"and refuses above {REFUSED}",
    )


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """A horizontal bar, with a resolution of an eighth of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def sparkline(values: np.ndarray, width: int = 20) -> str:
    """Draws values from 0 up as a row of blocks; neighbours are averaged to fit."""
    parts = np.array_split(values, min(width, len(values)))
    means = np.array([part.mean() for part in parts])
    top = means.max() or 1.0
    return "".join(LEVELS[round(float(m / top) * (len(LEVELS) - 1))] for m in means)
