r"""One canonical text for each value of a category or group, for all file types.

A column's kind decides, and it is a property of the whole column: its type in Parquet,
or, for text (every column of a CSV file, and text in Parquet), the kind whose form all
of its filled values have.

    kind     type in Parquet  form as text                     canonical text
    number   integer, float   7, -3, 7.0, 1e16, nan            7; nan is missing
    boolean  boolean          true, True, TRUE, false, ...     1 or 0
    date     date, datetime   2022-05-03, 2022-05-03 14:30:00  2022-05-03 14:30:00
    clock    time             14:30:00                         14:30:00
    text     string, decimal  anything else                    itself

- Text is never parsed: it loses outer spaces, and nothing else. One value of another
  form makes all of a column text, so that 007 and 1e5 stay what they are; so does a
  fraction, such as 7.5.
- A float's whole number is written as that integer below 2^53 (7.0 is 7), and above as
  the shortest text of the float. Floats with fractions are refused as categories.
- A datetime has six digits after the second, or none where they are 0, and at midnight
  it is its date. `T`, fractions and zones (Z, UTC, +02:00) are read; a time with a zone
  is converted to UTC, also from Parquet.
- A column with both 7 and 7.0 is reported; if it is of numbers, both are 7.
- The kinds belong to the prepared folder: `predict` reads a value by them, so that the
  other values of its file do not matter.
"""

from collections import Counter
from collections.abc import Callable, Collection, Mapping
from typing import Literal, NamedTuple

import polars as pl

Kind = Literal["number", "boolean", "date", "clock", "text"]

SAMPLE = 10_000
"""Number of rows read first, to exclude most kinds before the whole column is read."""
BLOCK = 1 << 17
"""Number of rows whose distinct values are tested at once."""
INT64_LIMIT = 2.0**63
EXACT_LIMIT = 2.0**53
"""Float64 represents every integer below this."""

WHOLE = r"^(?:0|-?[1-9]\d{0,19})$"
ZERO_FRACTION = r"^-?(?:0|[1-9]\d{0,18})\.0+$"
LARGE = r"^-?[1-9](?:\.\d{1,16})?e\+?1[678]$|^nan$|^NaN$"
TRUTHS = {
    **dict.fromkeys(("true", "True", "TRUE"), "1"),
    **dict.fromkeys(("false", "False", "FALSE"), "0"),
}
TEXT_TYPES = (pl.String, pl.Categorical, pl.Enum, pl.Decimal, pl.Null)
CLOCK = "%H:%M:%S%.f"
ZONE = r"(?: ?UTC|Z|[+-]\d\d:?\d\d)"
DATE = rf"^\d{{4}}-\d\d-\d\d(?:[T ]\d\d:\d\d:\d\d(?:\.\d{{1,9}})?{ZONE}?)?$"


class Kinds(NamedTuple):
    """Kinds by column, and the columns that hold both 7 and 7.0."""

    kinds: dict[str, Kind]
    mixed: list[str]


def is_text(dtype: pl.DataType) -> bool:
    """Text, or a type that is read as its text: decimals, and nulls alone."""
    return isinstance(dtype, TEXT_TYPES)


def kind_of_type(dtype: pl.DataType) -> Kind | None:
    """The kind of a typed column; None: text, whose values decide, or another type."""
    if dtype.is_integer() or dtype.is_float():
        return "number"
    if dtype == pl.Boolean:
        return "boolean"
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        return "date"
    return "clock" if dtype == pl.Time else None


def kinds_of(frame: pl.LazyFrame, values: Mapping[str, pl.Expr]) -> Kinds:
    """The kinds of columns; reads text columns that may be of another kind once.

    Args:
        frame: the rows.
        values: column -> its values, for lists the exploded ones.
    """
    types = frame.select(e.alias(n) for n, e in values.items()).collect_schema()
    kinds: dict[str, Kind] = {}
    texts: dict[str, pl.Expr] = {}
    for name, dtype in types.items():
        kind = kind_of_type(dtype)
        if kind is not None:
            kinds[name] = kind
        elif is_text(dtype):
            texts[name] = values[name].cast(pl.String)
    mixed: list[str] = []
    possible = _counts(frame.head(SAMPLE), texts, dict.fromkeys(texts, KINDS))
    likely: dict[str, list[Kind]] = {}
    for name, count in possible.items():
        fits: list[Kind] = [kind for kind in KINDS if count[kind] == count["filled"]]
        if fits or count["whole"]:
            likely[name] = fits
    counts = _counts(frame, {name: texts[name] for name in likely}, likely)
    for name in texts:
        count = (counts if name in likely else possible)[name]
        kinds[name] = "text"
        for kind in likely.get(name, ()):
            if count[kind] == count["filled"] > 0:
                kinds[name] = kind
                break
        if count["whole"] and count["zero_fraction"]:
            mixed.append(name)
    return Kinds({name: kinds[name] for name in values if name in kinds}, mixed)


KINDS: tuple[Kind, ...] = ("number", "boolean", "date", "clock")


def _counts(
    frame: pl.LazyFrame,
    texts: Mapping[str, pl.Expr],
    kinds: Mapping[str, Collection[Kind]],
) -> dict[str, Counter[str]]:
    """For each column, the numbers of filled values and of values of each form.

    Only the forms of `kinds` are counted, by column. A value counts once in each block
    of rows, so that few values are parsed.
    """
    counts = {name: Counter[str]() for name in texts}
    columns = {c: None for text in texts.values() for c in text.meta.root_names()}
    rows = frame.select(list(columns))
    for block in rows.collect_batches(chunk_size=BLOCK) if texts else ():
        distinct = block.select(
            text.unique().implode().alias(name) for name, text in texts.items()
        )
        for name in texts:
            text = distinct.select(_stripped(pl.col(name).explode()))
            forms = _forms(pl.col(name), kinds[name])
            tests = text.select(test.sum().alias(form) for form, test in forms.items())
            counts[name].update(tests.row(0, named=True))
    return counts


def _forms(text: pl.Expr, kinds: Collection[Kind]) -> dict[str, pl.Expr]:
    """Whether text is filled, and has the form of a whole number or of some kinds."""
    whole = text.str.contains(WHOLE) & _integer(text).is_not_null()
    fraction = text.str.contains(ZERO_FRACTION)
    forms: dict[Kind, pl.Expr] = {
        "number": whole | fraction | text.str.contains(LARGE),
        "boolean": text.is_in(list(TRUTHS)),
        "date": text.str.contains(DATE) & moment(text).is_not_null(),
        "clock": _clock(text).is_not_null(),
    }
    return {
        "filled": text.is_not_null(),
        "whole": whole,
        "zero_fraction": fraction,
        **{kind: forms[kind] for kind in kinds},
    }


def canonical(
    value: pl.Expr, dtype: pl.DataType, kind: Kind | None
) -> tuple[pl.Expr, pl.Expr | None] | None:
    """The canonical text of values, null where one is missing, and which are bad.

    Args:
        value: raw values.
        dtype: their type.
        kind: the column's kind; it matters for text alone. None: a folder that an
            earlier version prepared, where any text lost a zero fraction.

    Returns:
        None for a type that cannot be a category.
    """
    if dtype.is_integer():
        return value.cast(pl.String), None
    if dtype == pl.Boolean:
        return value.cast(pl.Int8).cast(pl.String), None
    if dtype.is_float():
        number = _exact(value, dtype)
        return _number_text(number), not_whole(number)
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        return _moment_text(utc(value, dtype)), None
    if dtype == pl.Time:
        return _clock_text(value), None
    if not is_text(dtype):
        return None
    text = _stripped(value)
    if kind == "number":
        plain = _by_distinct(value, lambda text: _plain_number(text)[0], pl.String())
        return plain, _by_distinct(
            value, lambda text: _plain_number(text)[1], pl.Boolean()
        )
    if kind == "boolean":
        return text.replace(TRUTHS), None
    if kind == "date":
        return _by_distinct(value, _plain_moment, pl.String()), None
    if kind == "clock":
        return _by_distinct(value, _plain_clock, pl.String()), None
    if kind is None:
        return text.str.replace(r"^(-?\d+)\.0+$", "${1}"), None
    return text, None


def _by_distinct(
    value: pl.Expr, function: Callable[[pl.Expr], pl.Expr], dtype: pl.DataType
) -> pl.Expr:
    """A function of stripped text, called with each distinct value of a block."""

    def apply(values: pl.Series) -> pl.Series:
        distinct = values.unique()
        few = 2 * len(distinct) < len(values)
        frame = (distinct if few else values).to_frame("")
        result = frame.select(function(_stripped(pl.col("")))).to_series()
        if not few:
            return result.alias(values.name)
        if result.null_count() < len(result) and result.n_unique() == 1:
            return pl.repeat(result[0], len(values), dtype=dtype, eager=True)
        return values.replace_strict(distinct, result, return_dtype=dtype)

    text = value.cast(pl.String)
    return text.map_batches(apply, return_dtype=dtype, is_elementwise=True)


def group_value(
    value: pl.Expr, dtype: pl.DataType, kind: Kind | None
) -> pl.Expr | None:
    """A group as int64 or text, to be hashed; null where it is missing or bad.

    Equal canonical texts give equal groups. Integers stay integers, so that groups keep
    the hashes that they always had.
    """
    if dtype.is_integer():
        return value
    if dtype == pl.Boolean:
        return value.cast(pl.Int64)
    if dtype.is_float():
        number = _exact(value, dtype)
        whole = pl.when(~not_whole(number)).then(number)
        return whole.cast(pl.Int64, strict=False)
    if dtype == pl.Date or isinstance(dtype, pl.Datetime):
        return utc(value, dtype).to_physical()
    if dtype == pl.Time:
        return _clock_text(value)
    if not is_text(dtype):
        return None
    text = _stripped(value)
    if kind == "number":
        number = text.cast(pl.Float64, strict=False).fill_nan(None)
        whole = pl.when(~not_whole(number)).then(number).cast(pl.Int64, strict=False)
        return pl.coalesce(_integer(text), whole)
    if kind == "boolean":
        return text.replace(TRUTHS).cast(pl.Int64, strict=False)
    if kind == "date":
        return moment(text).to_physical()
    if kind == "clock":
        return _clock_text(_clock(text))
    return text


def utc(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A date or datetime as a datetime in microseconds without a zone, in UTC."""
    if isinstance(dtype, pl.Datetime) and dtype.time_zone is not None:
        value = value.dt.convert_time_zone("UTC").dt.replace_time_zone(None)
    return value.cast(pl.Datetime("us"))


def moment(text: pl.Expr) -> pl.Expr:
    """Text as a datetime in microseconds, in UTC; null where it is none."""
    plain = text.str.replace(r"^([\d-]{10})T", "${1} ").str.replace(
        r"(?: ?UTC|Z)$", "+00:00"
    )
    form = "%Y-%m-%d %H:%M:%S%.f"
    zoned = plain.str.strptime(pl.Datetime("us", "UTC"), f"{form}%#z", strict=False)
    return pl.coalesce(
        text.str.strptime(pl.Date, "%Y-%m-%d", strict=False).cast(pl.Datetime("us")),
        plain.str.strptime(pl.Datetime("us"), form, strict=False),
        zoned.dt.replace_time_zone(None),
    )


def not_whole(number: pl.Expr) -> pl.Expr:
    """Whether a float64 is no whole number that int64 can hold."""
    return (number != number.floor()) | (number.abs() >= INT64_LIMIT)


def _stripped(value: pl.Expr) -> pl.Expr:
    """Text without outer spaces, null where it is empty."""
    text = value.cast(pl.String).str.strip_chars()
    return pl.when(text != "").then(text)


def _integer(text: pl.Expr) -> pl.Expr:
    """Whole numbers as int64; those from 2^63 on as the same 64 bits."""
    large = text.cast(pl.UInt64, strict=False).reinterpret(signed=True)
    return pl.coalesce(text.cast(pl.Int64, strict=False), large)


def _exact(value: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    """A float column as float64, NaN as null; a float32 means its shortest text."""
    if dtype == pl.Float32:
        value = value.cast(pl.String).cast(pl.Float64)
    return value.fill_nan(None)


def _number_text(number: pl.Expr) -> pl.Expr:
    shortest = number.cast(pl.String).str.replace("e+", "e", literal=True)
    whole = number.cast(pl.Int64, strict=False).cast(pl.String)
    exact = (number.abs() < EXACT_LIMIT) & (number == number.floor())
    return pl.when(exact).then(whole).otherwise(shortest)


def _plain_number(text: pl.Expr) -> tuple[pl.Expr, pl.Expr]:
    """The canonical text of numbers, and which have a fraction."""
    number = text.cast(pl.Float64, strict=False)
    is_float = text.str.contains("[.eEnN]") & number.is_not_null()
    number = number.fill_nan(None)
    plain = pl.when(is_float).then(_number_text(number)).otherwise(text)
    return plain, is_float & not_whole(number)


def _plain_moment(text: pl.Expr) -> pl.Expr:
    return pl.coalesce(_moment_text(moment(text)), text)


def _plain_clock(text: pl.Expr) -> pl.Expr:
    return pl.coalesce(_clock_text(_clock(text)), text)


def _moment_text(value: pl.Expr) -> pl.Expr:
    text = value.dt.strftime("%Y-%m-%d %H:%M:%S%.6f")
    return text.str.strip_suffix(".000000").str.strip_suffix(" 00:00:00")


def _clock_text(value: pl.Expr) -> pl.Expr:
    return value.dt.strftime("%H:%M:%S%.6f").str.strip_suffix(".000000")


def _clock(text: pl.Expr) -> pl.Expr:
    return text.str.strptime(pl.Time, CLOCK, strict=False)
