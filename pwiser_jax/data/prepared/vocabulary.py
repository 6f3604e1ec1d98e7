"""Vocabularies: the values that a categorical column has in train, and their ids."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from pwiser_jax.data.raw.hashing import hash_strings
from pwiser_jax.errors import UserError
from pwiser_jax.schema import CategoricalField, MultiValuedField

Field = CategoricalField | MultiValuedField
FILE = "vocabulary.parquet"
INTEGER = r"^-?\d{1,18}$"


def fit_vocabularies(
    train: pl.LazyFrame, columns: Mapping[str, pl.Expr], min_counts: Mapping[str, int]
) -> dict[str, tuple[pl.Series, int]]:
    """The values of each column in train, and the number of values with an id. Values
    with at least `min_counts` rows get an id and come first; rare values follow. Each
    part is sorted, numerically if all values are integers, else as text.
    """
    counted = [
        train.select(expr.alias("value"))
        .filter(pl.col("value").is_not_null())
        .group_by("value")
        .len("count")
        for expr in columns.values()
    ]
    tables = pl.collect_all(counted, engine="streaming") if counted else []
    return {
        name: _ordered(table, min_counts[name])
        for name, table in zip(columns, tables, strict=True)
    }


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


def encode(field: Field, value: pl.Expr, values: pl.Series) -> pl.Expr:
    """The int32 ids of text values; `values` are the kept and then the rare ones."""
    # An Enum hashes its categories once, not once for each block of rows.
    position = value.cast(pl.Enum(values), strict=False).to_physical().cast(pl.Int32)
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
