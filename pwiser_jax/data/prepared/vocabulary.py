"""Vocabularies: the values that a categorical column has in train, and their ids."""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from pwiser_jax.data.raw.frames import frames_of
from pwiser_jax.data.raw.hashing import hash_strings
from pwiser_jax.errors import UserError
from pwiser_jax.schema import CategoricalField, MultiValuedField

Field = CategoricalField | MultiValuedField
FILE = "vocabulary.parquet"
INTEGER = r"^-?\d{1,18}$"


CHUNK = 1 << 19
"""Rows that are counted at once."""
PER_VALUE = 128
"""Bytes that a value of a vocabulary takes while it is counted, besides its text."""
PARTS = 16
"""Values are counted in so many parts by their hash: a merge copies one at a time."""
SKETCH = 4096
"""Smallest hashes that are kept, to estimate the number of values of a hashed field."""


class Hashed(NamedTuple):
    """A field whose vocabulary is larger than the budget.

    Args:
        values: estimated number of its values.
        ids: the ids that they are hashed into.
    """

    values: int
    ids: int

    @property
    def shared(self) -> int:
        """The expected number of values that share their id with another one."""
        alone = (1 - 1 / self.ids) ** max(self.values - 1, 0)
        return round(self.values * (1 - alone))


class Vocabularies(NamedTuple):
    """By field: its values with the number that have an id, or how it is hashed."""

    values: dict[str, tuple[pl.Series, int]]
    hashed: dict[str, Hashed]


def fit_vocabularies(
    train: pl.LazyFrame,
    columns: Mapping[str, pl.Expr],
    min_counts: Mapping[str, int],
    lists: Collection[str] = (),
    budget: int | None = None,
) -> Vocabularies:
    """The values of each column in train, and the number of values with an id.

    Values with at least `min_counts` rows get an id and come first; rare values follow.
    Each part is sorted, numerically if all values are integers, else as text.

    Args:
        train: the rows.
        columns: column -> its texts.
        min_counts: by column.
        lists: the columns that hold lists of texts.
        budget: bytes of all vocabularies. Beyond it the largest field is hashed, into
            as many ids as a power of two has below the values that it had by then.
            None: all are counted exactly.
    """
    counts = {name: _Counts() for name in columns}
    selected = train.select(expr.alias(name) for name, expr in columns.items())
    for chunk in frames_of(selected, CHUNK) if columns else ():
        for name, count in counts.items():
            values = chunk[name].explode() if name in lists else chunk[name]
            count.add(values.drop_nulls())
        while budget is not None and sum(c.bytes for c in counts.values()) > budget:
            max(counts.values(), key=lambda count: count.bytes).hash()
    hashed = {name: c.hashed() for name, c in counts.items() if c.ids}
    ordered = {
        name: _ordered(count.table(), min_counts[name])
        for name, count in counts.items()
        if not count.ids
    }
    return Vocabularies(ordered, hashed)


class _Counts:
    """The rows of each value so far; after `hash`, a sketch of how many there are."""

    def __init__(self) -> None:
        self.ids = 0
        # Tables in PARTS parts; each has at least twice the values of the next.
        self._tables: list[list[pl.DataFrame]] = []
        self._sketch = np.empty(0, np.uint64)

    @property
    def bytes(self) -> int:
        """An upper bound: a value in several tables counts in each."""
        return sum(
            PER_VALUE * part.height + int(part["value"].str.len_bytes().sum())
            for table in self._tables
            for part in table
        )

    def add(self, values: pl.Series) -> None:
        if self.ids:
            self._note(values.unique())
            return
        counted = values.rename("value").value_counts(name="count")
        at = counted["value"].hash() % PARTS
        added = [counted.filter(at == part) for part in range(PARTS)]
        while self._tables and _height(self._tables[-1]) < 2 * _height(added):
            added = _merged(self._tables.pop(), added)
        self._tables.append(added)

    def table(self) -> pl.DataFrame:
        """All values with their rows."""
        while len(self._tables) > 1:
            last = self._tables.pop()
            self._tables.append(_merged(self._tables.pop(), last))
        empty = pl.DataFrame(schema={"value": pl.String, "count": pl.UInt32})
        return pl.concat(self._tables[0]) if self._tables else empty

    def hash(self) -> None:
        values = self.table()["value"]
        self.ids = 1 << max(len(values).bit_length() - 1, 0)
        self._note(values)
        self._tables = []

    def hashed(self) -> Hashed:
        kept = self._sketch
        if len(kept) < SKETCH:
            return Hashed(len(kept), self.ids)
        # The k-th smallest of n uniform hashes is about k / n.
        return Hashed(round((SKETCH - 1) * 2.0**64 / float(kept[-1])), self.ids)

    def _note(self, values: pl.Series) -> None:
        for piece in values.to_frame().iter_slices(CHUNK):
            hashes = hash_strings(piece.to_series())
            self._sketch = np.unique(np.concatenate([self._sketch, hashes]))[:SKETCH]


def _height(table: list[pl.DataFrame]) -> int:
    return sum(part.height for part in table)


def _merged(
    first: list[pl.DataFrame], second: list[pl.DataFrame]
) -> list[pl.DataFrame]:
    """Empties both tables, so that the parts that are merged are freed at once."""
    merged = []
    while first:
        both = pl.concat([first.pop(0), second.pop(0)], rechunk=False)
        merged.append(both.group_by("value").agg(pl.col("count").sum()))
    return merged


def _ordered(table: pl.DataFrame, min_count: int) -> tuple[pl.Series, int]:
    rare = pl.col("count") < min_count
    by: list[pl.Expr] = [rare, pl.col("value")]
    if table["value"].str.contains(INTEGER).all():
        # "7" and "007" are one number but two values: order them as text.
        by.insert(1, pl.col("value").cast(pl.Int64))
    ordered = table.sort(by)
    return ordered["value"], ordered.height - int(ordered.select(rare.sum()).item())


def extended(
    known: pl.Series, size: int, newer: pl.Series, kept: int
) -> tuple[pl.Series, int]:
    """A vocabulary with the values of newer rows, as `fit_vocabularies` returns one.

    Args:
        known: the values so far; the first `size` have ids, which they keep.
        size: the number of ids so far.
        newer: the values of the newer rows; the first `kept` get an id if they have
            none, the next free ones in their order.
        kept: how many are frequent enough there.
    """
    ids = pl.concat([known[:size], _without(newer[:kept], known[:size])])
    rare = pl.concat([known[size:], _without(newer[kept:], known[size:])])
    return pl.concat([ids, _without(rare, ids)]), len(ids)


def _without(values: pl.Series, others: pl.Series) -> pl.Series:
    """The values that are none of `others`, in their order."""
    left, right = (pl.DataFrame({"value": each}) for each in (values, others))
    return left.join(right, on="value", how="anti", maintain_order="left")["value"]


def encode(field: Field, value: pl.Expr, values: pl.Enum) -> pl.Expr:
    """The int32 ids of text values; `values` are the kept and then the rare ones."""
    position = value.cast(values, strict=False).to_physical().cast(pl.Int32)
    return (
        pl.when(value.is_null())
        .then(field.missing)
        .when(position.is_null())
        .then(field.unseen)
        .when(position >= field.size)
        .then(field.rare)
        .otherwise(position)
        .cast(pl.Int32)
    )


def encode_own_ids(field: CategoricalField, value: pl.Expr) -> pl.Expr:
    """Int32 ids of values that are already ids, 0 .. size - 1."""
    return (
        pl.when(value.is_null())
        .then(field.missing)
        .when((value < 0) | (value >= field.size))
        .then(field.unseen)
        .otherwise(value)
        .cast(pl.Int32)
    )


def encode_buckets(field: Field, value: pl.Expr) -> pl.Expr:
    """The int32 ids of text values that are hashed into `field.size` of them."""

    def bucket(values: pl.Series) -> pl.Series:
        hashed = hash_strings(values.fill_null("")) % np.uint64(field.size)
        return pl.Series(values.name, hashed.astype(np.int32))

    hashed = value.map_batches(bucket, return_dtype=pl.Int32, is_elementwise=True)
    return pl.when(value.is_null()).then(field.missing).otherwise(hashed).cast(pl.Int32)


def write_vocabularies(
    folder: Path,
    fields: Sequence[Field],
    values: Mapping[str, pl.Series],
) -> None:
    """vocabulary.parquet: columns field, value and id; fields in the schema's order."""
    tables = [
        pl.DataFrame({"value": values[field.name]}, schema={"value": pl.String})
        .with_row_index("id")
        .select(
            pl.lit(field.name).alias("field"),
            "value",
            pl.when(pl.col("id") < field.size)
            .then("id")
            .otherwise(field.rare)
            .cast(pl.Int32)
            .alias("id"),
        )
        for field in fields
        if field.name in values
    ]
    empty = pl.DataFrame(
        schema={"field": pl.String, "value": pl.String, "id": pl.Int32}
    )
    pl.concat([empty, *tables]).write_parquet(
        folder / FILE, compression="zstd", compression_level=1
    )


def read_vocabularies(
    folder: Path, fields: Sequence[Field], sha256: str
) -> dict[str, pl.Series]:
    """The values of fields from a prepared folder, in the order of their ids.

    Raises:
        UserError: the file is missing, damaged, or not the one with this hash.
    """
    try:
        if (
            sha256
            and hashlib.sha256((folder / FILE).read_bytes()).hexdigest() != sha256
        ):
            raise OSError("another file")
        table = pl.read_parquet(folder / FILE, glob=False)
        parts = table.partition_by("field", as_dict=True, maintain_order=True)
        empty = pl.Series("value", [], pl.String)
        return {
            field.name: parts[field.name,]["value"] if (field.name,) in parts else empty
            for field in fields
        }
    except (OSError, pl.exceptions.PolarsError):
        raise UserError(
            f"{folder / FILE} is missing or damaged: run prepare again"
        ) from None
