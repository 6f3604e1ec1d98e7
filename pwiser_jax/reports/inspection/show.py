"""`pwiser inspect`: a prepared folder in the terminal and as pictures."""

import math
from collections.abc import Iterable
from pathlib import Path

import matplotlib as mpl
import numpy as np
import polars as pl
from rich.console import Console
from rich.table import Table

from pwiser_jax.errors import UserError
from pwiser_jax.reports.inspection.measures import RESERVED, Inspection, inspect_folder
from pwiser_jax.reports.inspection.plots import pictures
from pwiser_jax.reports.plots import STYLE
from pwiser_jax.tasks import measured

BAR_WIDTH = 16
DPI = 144
LEVELS = "▁▂▃▄▅▆▇█"
SHOWN_COUNTS = 20


def inspect(folder: Path, batch_size: int, output: Path, console: Console) -> None:
    """Prints what the folder holds and writes a PNG of each part into `output`.

    Raises:
        UserError: no prepared folder, or `output` cannot be written.
    """
    found = inspect_folder(folder, batch_size)
    for table in tables(found):
        console.print(table)
        console.print()
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, figure in pictures(found).items():
            partial = output / f".{name}.png.partial"
            with mpl.rc_context(STYLE):
                figure.savefig(partial, format="png", dpi=DPI)
            partial.replace(output / f"{name}.png")
            console.print(str(output / f"{name}.png"), soft_wrap=True, markup=False)
    except OSError as error:
        raise UserError(
            f"{output} cannot be written ({error.strerror}): name another --output"
        ) from error


def tables(found: Inspection) -> list[Table]:
    """The parts in their order, as tables with bars for the terminal."""
    return [_splits(found), _fields(found), _conversions(found), _drift(found)]


def _table(title: str, *columns: str, left: Iterable[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    for name in columns:
        justify = "left" if name in left else "right"
        table.add_column(name, justify=justify, no_wrap=True)
    return table


def _splits(found: Inspection) -> Table:
    labels = list(next(iter(found.splits.values())).labels)
    tasks = measured(tuple(labels))
    table = _table(
        f"{found.dataset}: rows and rates by split",
        *("split", "rows", "", *(f"{label}s" for label in labels)),
        *(task.name.upper() for task in tasks),
        left=["split", ""],
    )
    most = max(split.rows for split in found.splits.values())
    for name, split in found.splits.items():
        counts = [split.rows, *(split.labels[label] for label in labels)]
        rates = (
            counts[task.rung] / counts[task.given] if counts[task.given] else 0.0
            for task in tasks
        )
        rows, *reached = (f"{count:,}" for count in counts)
        table.add_row(
            *(name, rows, bar(split.rows / most, 6), *reached),
            *(f"{rate:.3%}" for rate in rates),
        )
    return table


def _fields(found: Inspection) -> Table:
    """A line a field: its size, and the shares of its reserved ids by split."""
    names = list(found.splits)
    table = _table(
        f"Fields: ids, and the share of {', '.join(RESERVED)} in % by split",
        *("field", "ids", "", *names),
        left=["field", ""],
    )
    fields = found.fields.filter(pl.col("size").is_not_null()).rows(named=True)
    widest = max((math.log(1 + row["size"]) for row in fields), default=1.0)
    shares = {
        (row["field"], row["split"]): [100 * row[kind] for kind in RESERVED]
        for row in found.shares.rows(named=True)
    }
    for row in fields:
        kept = [shares[row["field"], split] for split in names]
        table.add_row(
            row["field"] + (f" (up to {row['width']})" if row["width"] else ""),
            f"{row['size']:,}",
            bar(math.log(1 + row["size"]) / (widest or 1), 6),
            *(" ".join(f"{share:4.1f}" for share in own) for own in kept),
        )
    numbers = len(found.fields) - len(fields)
    shared = int(found.fields["shared"].sum())
    table.caption = (
        f"and {numbers} numerical fields, missing values filled in; {shared} fields "
        "are stored once for many rows"
    )
    return table


def _conversions(found: Inspection) -> Table:
    batches = found.batches
    title = (
        f"Conversions in a batch of {batches.size:,} train rows: {batches.mean:.2f} on "
        f"average; none in {batches.empty_in_order:.1%} of the batches in file order "
        f"and, as expected, in {batches.empty_shuffled:.1%} of shuffled ones"
    )
    columns = ("conversions", "file order", "", "shuffled", " ")
    table = _table(title, *columns, left=["", " "])
    # Neighbouring counts together, where there are many.
    step = -(-len(batches.in_order) // SHOWN_COUNTS)
    starts = np.arange(0, len(batches.in_order), step)
    in_order, shuffled = (
        np.add.reduceat(np.asarray(v, float), starts)
        for v in (batches.in_order, batches.shuffled)
    )
    in_order /= max(in_order.sum(), 1)
    top = max(in_order.max(), shuffled.max())
    for start, own, expected in zip(starts, in_order, shuffled, strict=True):
        table.add_row(
            f"{start}" if step == 1 else f"{start} to {start + step - 1}",
            *(f"{own:.1%}", bar(own / top)),
            *(f"{expected:.1%}", bar(expected / top)),
        )
    return table


def _drift(found: Inspection) -> Table:
    bins = len(found.drift.ends) - 1
    table = _table(
        f"Drift: rates of train along the file, {bins} bins",
        *("label", "lowest", "highest", "95% if shuffled", "along the file"),
        left=["label", "along the file"],
    )
    for label, rates in found.drift.rates.items():
        low, high = found.drift.band(label)
        table.add_row(
            *(label, f"{rates.min():.3%}", f"{rates.max():.3%}"),
            f"{low:.3%} to {high:.3%}",
            sparkline(rates),
        )
    return table


def bar(share: float, width: int = BAR_WIDTH) -> str:
    """A horizontal bar, in eighths of a character."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def sparkline(values: np.ndarray, width: int = 20) -> str:
    """Values from 0 up as a row of blocks, neighbours averaged to fit."""
    parts = np.array_split(values, min(width, len(values)))
    means = np.array([part.mean() for part in parts])
    top = means.max() or 1.0
    return "".join(LEVELS[round(float(m / top) * (len(LEVELS) - 1))] for m in means)
