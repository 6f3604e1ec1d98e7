"""Statistics of a prepared folder: rates, fields, batches, drift. They are counted in
streaming passes over the Parquet files; memory holds a few numbers per field, batch and
line of the shared table.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy import stats

from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import Split, refuse_damaged
from pwiser_jax.data.raw.frames import frames_of, scan_parquet
from pwiser_jax.errors import UserError
from pwiser_jax.schema import COMMON, CategoricalField, MultiValuedField

CHUNK = 65_536
BINS = 100
BIN_ROWS = 500  # at least: rates of fewer rows are noise
RESERVED = ("missing", "unseen", "rare")

IdField = CategoricalField | MultiValuedField


@dataclass(frozen=True)
class Batches:
    """Conversions in the batches of train, in file order and if shuffled.

    Args:
        size: rows of a batch; the incomplete one at the end is left out.
        in_order: int64[K + 1], file-order batches with 0, 1, ..., K conversions.
        shuffled: float64[K + 1], the same expected of batches drawn at random
            (hypergeometric); the last entry is for K or more.
        mean: expected conversions in a batch, in either order.
    """

    size: int
    in_order: np.ndarray
    shuffled: np.ndarray
    mean: float

    @property
    def empty_in_order(self) -> float:
        """Share of the file-order batches without a conversion; NaN without batches."""
        total = self.in_order.sum()
        return float(self.in_order[0] / total) if total else float("nan")

    @property
    def empty_shuffled(self) -> float:
        """Share of batches drawn at random that are expected to have no conversion."""
        return float(self.shuffled[0])


@dataclass(frozen=True)
class Drift:
    """Label rates of train along the file, in bins of almost equal size.

    Args:
        ends: int64[bins + 1], the rows where bins begin and end.
        rates: label -> float64[bins], labels over rows.
    """

    ends: np.ndarray
    rates: Mapping[str, np.ndarray]

    def band(self, label: str) -> tuple[float, float]:
        """The range of 95% of a shuffled file's bins (normal approximation)."""
        sizes = np.diff(self.ends)
        rate = float(np.average(self.rates[label], weights=sizes))
        spread = 1.96 * np.sqrt(rate * (1 - rate) / sizes.mean())
        return max(rate - spread, 0.0), rate + spread


@dataclass(frozen=True)
class Inspection:
    """The statistics that `inspect` shows.

    Args:
        dataset: name of the dataset.
        labels: lowest rung first, in the order of the ladder.
        splits: rows and labels by split, those with rows.
        fields: one row per field: field, kind, size (ids of its own; null: a number),
            width (values of a list), shared.
        shares: one row per field with ids and split: field, split, missing, unseen,
            rare (over rows; for lists, unseen and rare are over values), values (mean
            number of them in a row).
        batches: conversions in batches of train.
        drift: label rates along train.
    """

    dataset: str
    labels: tuple[str, ...]
    splits: Mapping[str, Split]
    fields: pl.DataFrame
    shares: pl.DataFrame
    batches: Batches
    drift: Drift


def inspect_folder(folder: Path, batch_size: int) -> Inspection:
    """Computes the statistics of a prepared folder.

    Raises:
        UserError: no prepared folder, a batch size below 1, or damaged files.
    """
    if batch_size < 1:
        raise UserError(f"--batch-size is {batch_size}; expected 1 or more")
    prepared = Prepared(folder)
    manifest = prepared.manifest
    refuse_damaged(folder, manifest, manifest.files_named)
    splits = {name: split for name, split in manifest.splits.items() if split.rows}
    try:
        batches, drift = _along_the_file(prepared, batch_size)
        shares = [
            row for name in splits for row in _shares(prepared, name, splits[name])
        ]
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"{folder}: rows are missing or damaged ({reason}); run prepare again"
        ) from None
    return Inspection(
        manifest.dataset,
        prepared.schema.labels,
        splits,
        _fields(prepared),
        _table(shares),
        batches,
        drift,
    )


def _scan(prepared: Prepared, split: str) -> pl.LazyFrame:
    files = prepared.manifest.splits[split].files
    return scan_parquet([prepared.folder / name for name in files])


def _along_the_file(prepared: Prepared, batch_size: int) -> tuple[Batches, Drift]:
    labels = prepared.schema.labels
    total = prepared.manifest.splits["train"].rows
    bins = max(min(BINS, total // BIN_ROWS), 1)
    ends = np.arange(bins + 1) * total // bins
    label_counts = np.zeros((bins, len(labels)), np.int64)
    whole = total // batch_size
    conversions = np.zeros(whole + 1, np.int64)  # and those of the incomplete batch
    start = 0
    for frame in frames_of(_scan(prepared, "train").select(labels), CHUNK):
        rows = np.arange(start, start + frame.height)
        start += frame.height
        at = np.searchsorted(ends, rows, side="right") - 1
        values = frame.to_numpy()
        for column in range(len(labels)):
            label_counts[:, column] += np.bincount(
                at[values[:, column] == 1], minlength=bins
            )
        batch = rows[values[:, -1] == 1] // batch_size
        # A chunk touches a few batches: counting from the first of them is enough.
        first = start - frame.height
        counts = np.bincount(batch - first // batch_size)
        conversions[first // batch_size :][: len(counts)] += counts
    if start != total:
        raise UserError(
            f"{prepared.folder}: train has {start} rows, the manifest says {total}; "
            "run prepare again"
        )
    rates = label_counts / np.diff(ends)[:, None]
    positives = int(label_counts[:, -1].sum())
    return (
        _batches(conversions[:whole], total, positives, batch_size),
        Drift(ends, {name: rates[:, k] for k, name in enumerate(labels)}),
    )


def _batches(counts: np.ndarray, total: int, positives: int, size: int) -> Batches:
    in_order = np.bincount(counts, minlength=1)
    size = min(size, total)
    law = (total, positives, size)
    # Up to the largest count of either; the last entry holds the tail.
    last = max(len(in_order) - 1, int(stats.hypergeom.ppf(0.9999, *law)))
    in_order = np.pad(in_order, (0, last + 1 - len(in_order)))
    shuffled = stats.hypergeom.pmf(np.arange(last + 1), *law)
    shuffled[-1] = stats.hypergeom.sf(last - 1, *law)
    return Batches(size, in_order, shuffled, size * positives / total)


def _fields(prepared: Prepared) -> pl.DataFrame:
    schema = prepared.schema
    kinds: Sequence[tuple[str, Sequence[Any]]] = (
        ("categorical", schema.categorical),
        ("multi-valued", schema.multi_valued),
        ("numerical", schema.numerical),
    )
    rows = [
        {
            "field": field.name,
            "kind": kind,
            "size": getattr(field, "size", None),
            "width": getattr(field, "width", None),
            "shared": field.name in schema.common,
        }
        for kind, fields in kinds
        for field in fields
    ]
    types = {
        "field": pl.String,
        "kind": pl.String,
        "size": pl.Int64,
        "width": pl.Int64,
        "shared": pl.Boolean,
    }
    return pl.DataFrame(rows, schema=types)


def _shares(prepared: Prepared, name: str, split: Split) -> Iterator[dict[str, Any]]:
    """Shares of one split, field by field in the schema's order."""
    schema = prepared.schema
    separate = [f for f in schema.embedded if f.name not in schema.common]
    shared = [f for f in schema.embedded if f.name in schema.common]
    sums = _sums(_scan(prepared, name), separate)
    table = prepared.manifest.common
    if table is not None:
        # Each common line counts once per row that uses it.
        times = np.zeros(table.rows, np.int64)
        for frame in frames_of(_scan(prepared, name).select(COMMON), CHUNK):
            times += np.bincount(frame[COMMON].to_numpy(), minlength=table.rows)
        lines = scan_parquet(prepared.folder / table.file)
        start = 0
        for frame in frames_of(lines, CHUNK):
            part = pl.Series(TIMES, times[start : start + frame.height])
            start += frame.height
            part_sums = _sums(frame.with_columns(part).lazy(), shared)
            sums |= {key: sums.get(key, 0) + value for key, value in part_sums.items()}
    for field in schema.embedded:
        row: dict[str, Any] = {"field": field.name, "split": name}
        values = sums[f"{field.name}\0values"]
        for kind in RESERVED:
            of_rows = kind == "missing" or isinstance(field, CategoricalField)
            over = split.rows if of_rows else values
            row[kind] = sums[f"{field.name}\0{kind}"] / over if over else 0.0
        yield row | {"values": values / split.rows}


TIMES = "\0times"  # no column of a folder can have this name


def _sums(frame: pl.LazyFrame, fields: Sequence[IdField]) -> dict[str, int]:
    """Rows or values that are missing, unseen and rare, and values, by field."""
    weighted = TIMES in frame.collect_schema()
    times = pl.col(TIMES) if weighted else pl.lit(1, pl.Int64)
    sums: list[pl.Expr] = []
    for field in fields:
        column = pl.col(field.name)
        if isinstance(field, MultiValuedField):
            counts = {
                "values": column.list.len(),
                "missing": column.list.len() == 0,
                "unseen": column.list.count_matches(pl.lit(field.unseen, pl.Int32)),
                "rare": column.list.count_matches(pl.lit(field.rare, pl.Int32)),
            }
        else:
            counts = {
                "values": column != field.missing,
                "missing": column == field.missing,
                "unseen": column == field.unseen,
                "rare": column == field.rare,
            }
        sums += [
            (count.cast(pl.Int64) * times).sum().alias(f"{field.name}\0{kind}")
            for kind, count in counts.items()
        ]
    if not sums:
        return {}
    return frame.select(sums).collect(engine="streaming").row(0, named=True)


def _table(shares: list[dict[str, Any]]) -> pl.DataFrame:
    types = {"field": pl.String, "split": pl.String}
    types |= dict.fromkeys((*RESERVED, "values"), pl.Float64)
    return pl.DataFrame(shares, schema=types)
