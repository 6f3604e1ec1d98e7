"""Writes a first schema file for your own table, guessed from its columns. Check every
line: the file shows what each column holds, and lists unused columns in comments.
"""

import json
import re
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pwiser_jax.atomic import write_whole
from pwiser_jax.data.datasets.table import open_table
from pwiser_jax.data.raw import canonical
from pwiser_jax.errors import UserError

ROWS = 100_000
"""Number of rows that are read."""
FEW = 100
"""Numbers with at most this many distinct values are categories."""
CLICK = re.compile(r"click", re.IGNORECASE)
CONVERSION = re.compile(r"conver|purchase|bought|buy|order|pay|like", re.IGNORECASE)
ID = re.compile(r"(^|_)(id|uid|code|key|hash)$|Id$", re.IGNORECASE)
SHORT_LIVED = ("session", "search", "query", "request")
"""Group columns that are not features: the next group has another id."""
GROUPS = (*SHORT_LIVED, "user", "visitor", "member")
SEPARATORS = ("|", ";")
WEIGHT = re.compile(r"^(sample_|row_)?weight$", re.IGNORECASE)
SPLIT = re.compile(r"^(split|part|fold|subset)$", re.IGNORECASE)


@dataclass(frozen=True)
class _Column:
    """A column's kind, its number of distinct values, and two examples."""

    name: str
    kind: str
    distinct: int
    binary: bool
    fractions: bool
    examples: str
    separator: str = ""


def write_schema(source: Path, output: Path) -> None:
    """Writes a first schema file for `prepare table`.

    Args:
        source: a table that `prepare table` reads.
        output: the YAML file, which must not exist.

    Raises:
        UserError: the table cannot be read, or the file exists or cannot be written.
    """
    if output.exists():
        raise UserError(f"{output} exists already; name another file")
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: no such folder")
    with open_table(source) as table:
        rows = table.frame.head(ROWS).collect()
    columns = [_described(rows, name) for name in rows.columns]
    try:
        write_whole(output, _draft(source.name, rows.height, columns))
    except OSError as error:
        raise UserError(f"{output} cannot be written: {error.strerror}") from None


def _described(rows: pl.DataFrame, name: str) -> _Column:
    values = rows[name]
    some = values.drop_nulls().unique(maintain_order=True)[:3]
    examples = ", ".join(str(value)[:20] for value in some)
    if isinstance(values.dtype, pl.List | pl.Array):
        return _Column(name, "list", 0, False, False, examples)
    kinds = canonical.kinds_of(rows.lazy(), {name: pl.col(name)}).kinds
    kind = kinds.get(name, "other")
    numbers, separator = values, ""
    if canonical.is_text(values.dtype):
        text = values.cast(pl.String).str.strip_chars()
        filled = text.filter(text != "")
        numbers = filled.cast(pl.Float64, strict=False)
        if len(filled) and not numbers.null_count() and kind == "text":
            kind = "number"
        if kind == "text":
            separator = _separator(filled)
            kind = "separated" if separator else kind
    fractions = False
    if kind == "number" or numbers.dtype.is_decimal():
        kind, exact = "number", numbers.cast(pl.Float64, strict=False).fill_nan(None)
        fractions = bool((exact != exact.floor()).any())
    labels = {"0", "1", "0.0", "1.0", "true", "false"}
    texts = {str(v).strip().lower() for v in values.drop_nulls().unique()[:9]} - {""}
    distinct = values.n_unique()
    binary = texts == texts & labels
    return _Column(name, kind, distinct, binary, fractions, examples, separator)


def _separator(texts: pl.Series) -> str:
    """What separates several values in a fifth of the texts or more, or ""."""
    for mark in SEPARATORS:
        several = texts.str.contains(rf"^[^{mark}]+[{mark}][^{mark}]").mean()
        if isinstance(several, float) and several > 0.2:
            return mark
    return ""


def _draft(name: str, rows: int, columns: list[_Column]) -> str:
    """The text of the schema file."""
    left = {column.name: column for column in columns}

    def take(columns: list[_Column]) -> list[str]:
        for column in columns:
            left.pop(column.name, None)
        return [column.name for column in columns]

    binary = [c for c in columns if c.binary and 1 <= c.distinct <= 3]
    click = [c for c in binary if CLICK.search(c.name)][:1]
    bought = [c for c in binary if CONVERSION.search(c.name) and c not in click][:1]
    labels = dict(zip(("click", "conversion"), take(click + bought), strict=False))
    part = [c for c in columns if SPLIT.search(c.name) and c.distinct <= 4][:1]
    weight = take([c for c in left.values() if WEIGHT.search(c.name)][:1])
    time = take([c for c in left.values() if c.kind == "date"][:1])
    split_column = take([c for c in part if c.name in left])
    group = next(
        (c.name for g in GROUPS for c in left.values() if g in c.name.lower()), None
    )
    lists = [c for c in left.values() if c.kind in ("list", "separated")]
    numerical = [
        c
        for c in left.values()
        if c.kind == "number"
        and (c.fractions or (c.distinct > FEW and not ID.search(c.name)))
        and c.name != group
    ]
    categorical = [
        c
        for c in left.values()
        if c not in numerical and c not in lists and c.kind != "other"
    ]
    if group and any(name in group.lower() for name in SHORT_LIVED):
        categorical = [c for c in categorical if c.name != group]
        take([c for c in columns if c.name == group])
    constant = [c for c in categorical if c.distinct < 2]
    every_row = [c for c in categorical if c.distinct > 0.95 * rows and rows > 100]
    unused = [c for c in (*constant, *every_row) if c.name != group]
    categorical = [c for c in categorical if c not in unused]
    take([*numerical, *categorical, *lists])

    lines = [
        f"# A first schema for {name}, guessed from its first {rows:,} rows: check it.",
        "# A column that is known only after the exposure must not be a feature.",
        _listed("categorical", categorical),
        _listed("numerical", numerical),
    ]
    if lists:
        lines.append("multi_valued:")
        for column in lists:
            mark = column.separator
            options = f'{{separator: "{mark}"}}' if mark else "{}"
            lines.append(f"  {_text(column.name)}: {options}")
    if len(labels) < 2:
        lines.append("# Lowest rung first; name the columns of 0 and 1:")
    shown = {"click": "CLICK_COLUMN", "conversion": "CONVERSION_COLUMN"} | labels
    pairs = ", ".join(f"{label}: {_text(column)}" for label, column in shown.items())
    lines.append(f"labels: {{{pairs}}}")
    if group:
        lines.append(f"group: {_text(group)}  # kept whole by a split by group")
    if time:
        lines.append(f"time: {_text(time[0])}")
    if weight:
        lines.append(f"weight: {_text(weight[0])}")
    if split_column:
        lines.append(f"split: {{by: column, column: {_text(split_column[0])}}}")
    elif group:
        lines.append("split: {by: group, valid: 0.1, test: 0.1}")
    else:
        lines.append("# Name a group column, or split by time or by a column:")
        lines.append("split: {by: group, valid: 0.1, test: 0.1}")
    lines.append("min_count: 5  # rarer values share an id")
    lines += [
        f"# not used: {c.name} ({c.kind}, {c.distinct:,} distinct values: {c.examples})"
        for c in columns
        if c in unused or c.name in left
    ]
    return "\n".join(" ".join(line.splitlines()) for line in lines) + "\n"


def _listed(key: str, columns: list[_Column]) -> str:
    return f"{key}: [{', '.join(_text(column.name) for column in columns)}]"


def _text(name: str) -> str:
    """A name as YAML reads it back as text."""
    plain = re.fullmatch(r"[A-Za-z_]\w*", name)
    words = {"yes", "no", "on", "off", "true", "false", "null", "y", "n"}
    return name if plain and name.lower() not in words else json.dumps(name)
