"""Raw columns read as categories, whole numbers or numbers; bad values are refused.

Each `Reading` is a pair of Polars expressions: the value, null where it is missing, and
whether the raw value is bad. `refuse_bad` looks for bad values in one streaming pass
and names place, column and value.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import polars as pl

from pwiser_jax.data.raw import canonical
from pwiser_jax.data.raw.canonical import Kind, is_text, not_whole
from pwiser_jax.errors import UserError, did_you_mean

FLOAT32_MAX = 3.4028234663852886e38
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


@dataclass(frozen=True)
class Later:
    """The rows of a source from one on; called with a row, its place in the source."""

    source: Source
    before: int

    def __str__(self) -> str:
        return str(self.source)

    def __call__(self, row: int) -> str:
        return place(self.source, row + self.before)


def category(name: str, dtype: pl.DataType, kind: Kind | None = None) -> Reading:
    """A category as its canonical text, null where it is null, NaN or empty."""
    reading = canonical.canonical(pl.col(name), dtype, kind)
    if reading is None:
        raise UserError(
            f"column {name!r} holds {named(dtype)}; it cannot be a categorical field"
        )
    expected = "a whole number, as the column is categorical"
    return Reading(name, *reading, expected)


def categories(
    name: str, dtype: pl.DataType, kind: Kind | None, separator: str | None
) -> Reading:
    """The values of a multi-valued column as lists of canonical texts.

    Missing values are left out: a missing list is null or empty.
    """
    value, inner = lists(name, dtype, separator)
    reading = canonical.canonical(pl.element(), inner, kind)
    if reading is None:
        raise UserError(
            f"column {name!r} holds {named(dtype)}; expected lists of categories"
        )
    text, bad = reading
    wrong = None if bad is None else value.list.eval(bad).list.any()
    expected = "whole numbers, as the column is multi-valued"
    return Reading(name, value.list.eval(text.drop_nulls()), wrong, expected)


def lists(
    name: str, dtype: pl.DataType, separator: str | None
) -> tuple[pl.Expr, pl.DataType]:
    """The lists of a multi-valued column, and the type of their values."""
    value = pl.col(name)
    if isinstance(dtype, pl.List | pl.Array):
        value = value.arr.to_list() if isinstance(dtype, pl.Array) else value
        inner = dtype.inner
        return value, inner if isinstance(inner, pl.DataType) else inner()
    if is_text(dtype) and separator:
        return value.cast(pl.String).str.split(separator), pl.String()
    raise UserError(
        f"column {name!r} holds {named(dtype)}; a multi-valued field needs lists, or "
        "text and a separator"
    )


def whole_number(name: str, dtype: pl.DataType) -> Reading:
    """An id as int64, null where it is null, NaN or empty."""
    column = pl.col(name)
    if dtype.is_integer() or dtype == pl.Boolean:
        # Above int64, only a uint64 can be: it is unseen, as a negative id is.
        value = column.cast(pl.Int64, strict=False).fill_null(-1)
        return Reading(name, pl.when(column.is_not_null()).then(value), None, "an id")
    if dtype.is_float():
        number = pl.col(name).cast(pl.Float64).fill_nan(None)
        value = number.cast(pl.Int64, strict=False)
        return Reading(name, value, not_whole(number), "a whole number")
    if is_text(dtype):
        text = column.cast(pl.String).str.strip_chars()
        text = text.str.replace(r"^(-?\d+)\.0+$", "${1}")
        value = text.cast(pl.Int64, strict=False)
        return Reading(name, value, (text != "") & value.is_null(), "a whole number")
    raise UserError(
        f"column {name!r} holds {named(dtype)}; it cannot hold a field's ids"
    )


def number(name: str, dtype: pl.DataType, kind: Kind | None = None) -> Reading:
    """A number as float64, null where it is null, NaN or empty; infinities are bad."""
    column = pl.col(name)
    if dtype.is_numeric() or dtype == pl.Boolean:
        value = column.cast(pl.Float64).fill_nan(None)
        return Reading(name, value, value.abs() > FLOAT32_MAX, "a finite number")
    if is_text(dtype):
        text = column.cast(pl.String).str.strip_chars()
        if kind == "boolean":
            text = text.replace(canonical.TRUTHS)
        parsed = text.cast(pl.Float64, strict=False)
        value = parsed.fill_nan(None)
        bad = ((text != "") & parsed.is_null()) | (value.abs() > FLOAT32_MAX)
        return Reading(name, value, bad, "a finite number")
    raise UserError(
        f"column {name!r} holds {named(dtype)}; it cannot be a numerical field"
    )


def time_stamp(name: str, dtype: pl.DataType) -> Reading:
    """A time as int64: an integer, the day of a date, the microsecond of a datetime."""
    column = pl.col(name)
    if isinstance(dtype, pl.Datetime):
        column = canonical.utc(column, dtype)
    elif dtype != pl.Date and not dtype.is_integer():
        raise UserError(
            f"time column {name!r} holds {named(dtype)}; expected integers, dates or "
            "datetimes"
        )
    value = column.to_physical().cast(pl.Int64, strict=False)
    return Reading(name, value, value.is_null(), "a time in every row")


def group_key(name: str, dtype: pl.DataType, kind: Kind | None = None) -> Reading:
    """A group's value, to be hashed: equal for values of one canonical text."""
    value = canonical.group_value(pl.col(name), dtype, kind)
    if value is None:
        raise UserError(
            f"group column {name!r} holds {named(dtype)}; expected ids or text"
        )
    return Reading(name, value, value.is_null(), "a group in every row")


def require(
    frame: pl.LazyFrame, names: Iterable[str | None], source: Source
) -> pl.Schema:
    """The frame's schema; refuses a frame without one of the named columns."""
    schema = frame.collect_schema()
    missing = [name for name in dict.fromkeys(names) if name and name not in schema]
    if missing:
        hint = did_you_mean(missing[0], schema.names()) if len(missing) == 1 else ""
        columns = "column" if len(missing) == 1 else "columns"
        listed = ", ".join(map(repr, missing))
        raise UserError(f"{source} has no {columns} {listed}{hint}")
    return schema


def first_rows(frame: pl.LazyFrame, bad: Sequence[pl.Expr]) -> dict[int, int]:
    """The first 0-based row where an expression holds, by the expression's number."""
    if not bad:
        return {}
    # Not `filter`: the streaming engine reads each filtered column on its own, and
    # keeps the rows that one has read until the slowest has read them too.
    row = pl.col(ROW)
    firsts = [pl.when(at).then(row).min().alias(str(k)) for k, at in enumerate(bad)]
    rows = frame.with_row_index(ROW).select(firsts).collect(engine="streaming")
    return {k: row for k, row in enumerate(rows.row(0)) if row is not None}


def value_at(frame: pl.LazyFrame, column: str, row: int) -> Any:
    """The raw value of one cell, for an error's sentence."""
    return frame.select(column).slice(row, 1).collect().item()


def written(value: Any) -> str:
    """A value as a user would write it, for an error's sentence."""
    if isinstance(value, pl.Series | list | tuple):
        return f"[{', '.join(map(written, value))}]"
    if isinstance(value, dict):
        pairs = (f"{key}: {written(item)}" for key, item in value.items())
        return f"{{{', '.join(pairs)}}}"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, str | bytes) else str(value)


def named(dtype: pl.DataType) -> str:
    """A column's type in an error's sentence: without Polars' parameters."""
    if isinstance(dtype, pl.List | pl.Array):
        inner = dtype.inner
        inner = inner if isinstance(inner, pl.DataType) else inner()
        return f"List({named(inner)})"
    if isinstance(dtype, pl.Datetime):
        return f"Datetime({dtype.time_unit}, {dtype.time_zone or 'no time zone'})"
    return type(dtype).__name__


def shown(value: Any) -> str:
    """A raw value in an error's sentence."""
    empty = value is None or (isinstance(value, str) and not value.strip())
    return "is empty" if empty else f"holds {written(value)}"


def refuse_bad(
    frame: pl.LazyFrame, readings: Iterable[Reading], source: Source
) -> None:
    """Raises a UserError that names the first bad row, its column and its value."""
    checked = [reading for reading in readings if reading.bad is not None]
    rows = first_rows(frame, [r.bad for r in checked if r.bad is not None])
    if rows:
        first = min(rows, key=lambda key: rows[key])
        column, row = checked[first].column, rows[first]
        raise UserError(
            f"{place(source, row + 1)}: column {column!r} "
            f"{shown(value_at(frame, column, row))}; expected {checked[first].expected}"
        )
