"""Raw columns read as categories, whole numbers or numbers, and what is refused there.

Each reading is a pair of Polars expressions: the value, null where it is missing, and
whether the raw value is bad. Bad values are found by one streaming pass and refused
with the place, the column and the value.
"""

from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any, NamedTuple

import polars as pl

from pwiser_jax.errors import UserError

FLOAT32_MAX = 3.4028234663852886e38
INT64_LIMIT = 2.0**63
ROW = "__pwiser_row__"

Source = str | Callable[[int], str]
"""A name, or a function from a 1-based row to its place, whose text is the name."""


class Reading(NamedTuple):
    """How a raw column is read: its value, which rows are bad, what was expected."""

    column: str
    value: pl.Expr
    bad: pl.Expr | None
    expected: str


def place(source: Source, row: int) -> str:
    """Where a 1-based row is, for an error's sentence."""
    return source(row) if callable(source) else f"{source}, row {row}"


def is_text(dtype: pl.DataType) -> bool:
    """Text, or the type that a column of nothing but nulls has."""
    return isinstance(dtype, pl.String | pl.Categorical | pl.Enum | pl.Null)


def category(name: str, dtype: pl.DataType) -> Reading:
    """A category as a string, null where it is null, NaN or empty.

    Whole numbers are written in plain decimal, so 3, 3.0, "3" and "3.0" are one value.
    """
    column = pl.col(name)
    if dtype.is_integer() or dtype.is_temporal():
        return Reading(name, column.cast(pl.String), None, "a category")
    if dtype == pl.Boolean:
        value = column.cast(pl.Int8).cast(pl.String)
        return Reading(name, value, None, "a category")
    if dtype.is_float():
        value, bad = _whole(name)
        expected = "a whole number, as the column is categorical"
        return Reading(name, value.cast(pl.String), bad, expected)
    if is_text(dtype):
        text = _without_zero_fraction(column.cast(pl.String))
        return Reading(name, pl.when(text != "").then(text), None, "a category")
    raise UserError(f"column {name!r} holds {dtype}; it cannot be a categorical field")


def whole_number(name: str, dtype: pl.DataType) -> Reading:
    """An id as int64, null where it is null, NaN or empty."""
    column = pl.col(name)
    if dtype.is_integer() or dtype == pl.Boolean:
        # Above int64, only a uint64 can be: it is unseen, as a negative id is.
        value = column.cast(pl.Int64, strict=False).fill_null(-1)
        return Reading(name, pl.when(column.is_not_null()).then(value), None, "an id")
    if dtype.is_float():
        return Reading(name, *_whole(name), "a whole number")
    if is_text(dtype):
        text = _without_zero_fraction(column.cast(pl.String).str.strip_chars())
        value = text.cast(pl.Int64, strict=False)
        return Reading(name, value, (text != "") & value.is_null(), "a whole number")
    raise UserError(f"column {name!r} holds {dtype}; it cannot hold a field's ids")


def number(name: str, dtype: pl.DataType) -> Reading:
    """A number as float64, null where it is null, NaN or empty; infinities are bad."""
    column = pl.col(name)
    if dtype.is_numeric() or dtype == pl.Boolean:
        value = column.cast(pl.Float64).fill_nan(None)
        return Reading(name, value, value.abs() > FLOAT32_MAX, "a finite number")
    if is_text(dtype):
        text = column.cast(pl.String).str.strip_chars()
        parsed = text.cast(pl.Float64, strict=False)
        value = parsed.fill_nan(None)
        bad = ((text != "") & parsed.is_null()) | (value.abs() > FLOAT32_MAX)
        return Reading(name, value, bad, "a finite number")
    raise UserError(f"column {name!r} holds {dtype}; it cannot be a numerical field")


def time_stamp(name: str, dtype: pl.DataType) -> Reading:
    """A time as int64: an integer as it is, a date's day, a datetime's microsecond."""
    column = pl.col(name)
    if isinstance(dtype, pl.Datetime):
        column = column.dt.timestamp("us")
    elif dtype != pl.Date and not dtype.is_integer():
        raise UserError(
            f"time column {name!r} holds {dtype}; expected integers, dates or datetimes"
        )
    value = column.to_physical().cast(pl.Int64, strict=False)
    return Reading(name, value, value.is_null(), "a time in every row")


def group_key(name: str, dtype: pl.DataType) -> Reading:
    """A group's value, to be hashed: whole numbers, dates or text in every row."""
    column = pl.col(name)
    if dtype.is_float():
        value, fraction = _whole(name)
        bad = value.is_null() | fraction
        return Reading(name, value, bad, "a group in every row")
    if dtype.is_integer() or dtype.is_temporal() or is_text(dtype):
        return Reading(name, column, column.is_null(), "a group in every row")
    raise UserError(f"group column {name!r} holds {dtype}; expected ids or text")


def _whole(name: str) -> tuple[pl.Expr, pl.Expr]:
    """Value and badness of a float column that should hold whole numbers."""
    number = pl.col(name).fill_nan(None)
    bad = (number != number.floor()) | (number.abs() >= INT64_LIMIT)
    return number.cast(pl.Int64, strict=False), bad


def _without_zero_fraction(text: pl.Expr) -> pl.Expr:
    return text.str.replace(r"^(-?\d+)\.0+$", "${1}")


def require(
    frame: pl.LazyFrame, names: Iterable[str | None], source: Source
) -> pl.Schema:
    """The frame's schema; refuses a frame that lacks one of the named columns."""
    schema = frame.collect_schema()
    missing = [name for name in dict.fromkeys(names) if name and name not in schema]
    if missing:
        near = get_close_matches(missing[0], schema.names(), n=1)
        hint = f" (did you mean {near[0]!r}?)" if near and len(missing) == 1 else ""
        columns = "column" if len(missing) == 1 else "columns"
        listed = ", ".join(map(repr, missing))
        raise UserError(f"{source} has no {columns} {listed}{hint}")
    return schema


def first_rows(frame: pl.LazyFrame, bad: Sequence[pl.Expr]) -> dict[int, int]:
    """Number of the expression -> the first 0-based row where it holds, if any."""
    if not bad:
        return {}
    firsts = [pl.col(ROW).filter(at).min().alias(str(k)) for k, at in enumerate(bad)]
    found = frame.with_row_index(ROW).select(firsts).collect(engine="streaming")
    return {k: row for k, row in enumerate(found.row(0)) if row is not None}


def value_at(frame: pl.LazyFrame, column: str, row: int) -> Any:
    """The raw value of one cell, for an error's sentence."""
    return frame.select(column).slice(row, 1).collect().item()


def shown(value: Any) -> str:
    """A raw value in an error's sentence."""
    return "is empty" if value is None or value == "" else f"holds {value!r}"


def refuse_bad(
    frame: pl.LazyFrame, readings: Iterable[Reading], source: Source
) -> None:
    """Raise a UserError that names the first bad row, its column and its value."""
    checked = [reading for reading in readings if reading.bad is not None]
    found = first_rows(frame, [r.bad for r in checked if r.bad is not None])
    if found:
        first = min(found, key=lambda key: found[key])
        column, row = checked[first].column, found[first]
        raise UserError(
            f"{place(source, row + 1)}: column {column!r} "
            f"{shown(value_at(frame, column, row))}; expected {checked[first].expected}"
        )
