"""Reads CSV files strictly and names the line that is wrong.

Polars is fast but lenient: it fills a short line with nulls, and does not parse the
columns that a query leaves out. `scan_csv` therefore checks the quotation marks first
(see `quoting`) and reads every column of every row once. On an error, it reads the file
again line by line, with Python's `csv` in strict mode, to name the line and the column.
"""

import csv
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl

from pwiser_jax.data.raw import quoting
from pwiser_jax.errors import UserError

DataType = type[pl.DataType] | pl.DataType
BLOCK_LINES = 10_000
ROWS = "\0rows"  # no column of a file can have this name
SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs", "|": "vertical bars"}


def scan_csv(
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    dtypes: Mapping[str, DataType],
    required: Collection[str] = (),
    name: str | None = None,
    quoted: bool = True,
    separator: str = ",",
    empty: bool = False,
) -> pl.LazyFrame:
    """Scans a plain CSV file and checks all rows: collecting them later cannot fail.

    Args:
        path: the file: UTF-8, Unix or Windows line ends, not compressed.
        columns: the names of all columns, for a file without a header; None: the first
            line holds them.
        dtypes: types by column; every other column is text. A column that the file does
            not have is refused.
        required: columns in which an empty value is refused; elsewhere it is null.
        name: the file's name in messages; None: its path.
        quoted: False: quotation marks are ordinary characters.
        separator: the character between two columns.
        empty: accept a file without rows.

    Raises:
        UserError: names file and line: no such file, no rows, not UTF-8, a misplaced
            quotation mark, another number of columns than the header (or `columns`)
            has, an empty line, a value that is not of its column's type, an empty value
            in a required column.
    """
    shown = name or str(path)
    table = _Table(path, shown, columns, dtypes, frozenset(required), quoted, separator)
    frame = table.scan()
    expected = table.count_rows()
    counts = frame.select(pl.len().alias(ROWS), pl.all().null_count())
    try:
        row = counts.collect(engine="streaming").row(0, named=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise table.explain(error) from error
    rows = row.pop(ROWS)
    if empty and rows == expected == 0:
        return frame
    if expected == 0 or rows == 0:
        raise UserError(f"{table.name}: there are no rows in it")
    if rows != expected:
        # Polars skips some empty lines, for example.
        reason = f"{expected:,} rows are expected, {rows:,} were read"
        raise UserError(table.first_bad_line() or f"{table.name}: {reason}")
    # Both a line that is too short and an empty last value give null in the last
    # column: only reading line by line distinguishes them. Polars also drops a
    # separator at the very end of the file.
    missing = any(row[column] for column in required)
    short = row[table.names[-1]] and not table.has_full_rows(rows)
    if missing or short or table.ends_in_separator():
        bad = table.first_bad_line()
        if bad is not None:
            raise UserError(bad)
    return frame


def refuse_repeats(keys: pl.Series, place: Callable[[int], str]) -> None:
    """Raises a UserError that names the first row whose key an earlier row has.

    Args:
        keys: a column of unique keys.
        place: from a 1-based row to its place in the file.
    """
    again = ~keys.is_first_distinct()
    if again.any():
        at = again.arg_true()[0]
        raise UserError(f"{place(at + 1)}: {keys.name} {keys[at]} has an earlier row")


def separator_of(path: Path, default: str) -> str:
    """The separator of a file's first line: the default, or the most frequent other."""
    with path.open("rb") as file:
        header = file.readline().decode("utf-8-sig", "replace")
    if default in header:
        return default
    likely = max(SEPARATORS, key=header.count)
    return likely if likely in header else default


@dataclass(frozen=True)
class _Table:
    """The arguments of `scan_csv`; reads the file and explains its errors."""

    path: Path
    name: str
    columns: Sequence[str] | None
    dtypes: Mapping[str, DataType]
    required: frozenset[str]
    quoted: bool
    separator: str

    @property
    def names(self) -> Sequence[str]:
        if self.columns is not None:
            return self.columns
        header = next(self._lines(), None)
        if header is None:
            raise UserError(f"{self.name}: the file is empty")
        return header[1]

    def scan(self) -> pl.LazyFrame:
        if self.path.is_dir():
            raise UserError(f"{self.name} is a folder; expected a CSV file")
        if not self.path.is_file():
            raise UserError(f"{self.name}: no such file")
        names = list(self.names)
        for column in names:
            if names.count(column) > 1:
                raise UserError(
                    f"{self.name}, line 1: two columns are called {column!r}"
                )
        for column in (*self.dtypes, *sorted(self.required)):
            if column not in names:
                likely = separator_of(self.path, self.separator)
                hint = (
                    ""
                    if likely == self.separator
                    else f" (the line seems to be separated by {SEPARATORS[likely]}, "
                    f"not by {SEPARATORS[self.separator]})"
                )
                raise UserError(
                    f"{self.name}, line 1: there is no column {column!r}{hint}"
                )
        return pl.scan_csv(
            self.path,
            schema={column: self.dtypes.get(column, pl.String) for column in names},
            has_header=self.columns is None,
            separator=self.separator,
            quote_char='"' if self.quoted else None,
            glob=False,
        )

    def count_rows(self) -> int:
        """The rows below the header, counted without Polars."""
        try:
            rows = quoting.count_rows(self.path, self.separator, self.quoted)
        except quoting.LayoutError as error:
            where = f"{self.name}, line {error.line}"
            raise UserError(f"{where}: {error.reason}") from error
        return rows - (self.columns is None)

    def has_full_rows(self, rows: int) -> bool:
        """Whether no row is too short, by the number of separators.

        Polars refuses a row that is too long.
        """
        separators = quoting.count_separators(self.path, self.separator, self.quoted)
        lines = rows + (self.columns is None)
        return separators == lines * (len(self.names) - 1)

    def ends_in_separator(self) -> bool:
        """Whether the last byte, without a line end after it, is a separator."""
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read() == self.separator.encode()

    def explain(self, error: Exception) -> UserError:
        """The error of Polars as a sentence, with the line that caused it."""
        if isinstance(error, pl.exceptions.NoDataError):
            return UserError(f"{self.name}: the file is empty")
        reason = (str(error) or type(error).__name__).splitlines()[0]
        return UserError(self.first_bad_line() or f"{self.name}: {reason}")

    def first_bad_line(self) -> str | None:
        """A sentence about the first bad line; None: there is none."""
        names = self.names
        lines = self._lines()
        if self.columns is None:
            next(lines)
        while block := list(islice(lines, BLOCK_LINES)):
            wrong = (at for at, (_, row) in enumerate(block) if len(row) != len(names))
            short = next(wrong, None)
            bad = self._bad_value(names, block[:short])
            if bad is not None:
                return bad
            if short is not None:
                line, row = block[short]
                counts = f"expected {len(names)} columns, found {len(row)}"
                return f"{self.name}, line {line}: {counts}"
        return None

    def _bad_value(
        self, names: Sequence[str], block: list[tuple[int, list[str]]]
    ) -> str | None:
        """The block's first value that is not of its type, or is required and empty."""
        first: tuple[int, int] | None = None
        for position, column in enumerate(names):
            texts = pl.Series([row[position] for _, row in block], dtype=pl.String)
            empty = texts == ""
            wrong = empty if column in self.required else empty & False
            if column in self.dtypes:
                values = texts.str.strip_chars().cast(self.dtypes[column], strict=False)
                wrong = wrong | (values.is_null() & ~empty)
            at = wrong.arg_max() if wrong.any() else None
            if at is not None and (first is None or at < first[0]):
                first = (at, position)
        if first is None:
            return None
        at, position = first
        line, row = block[at]
        column, text = names[position], row[position]
        where = f"{self.name}, line {line}, column {column!r}"
        dtype = self.dtypes.get(column, pl.String)
        kind = "a value" if dtype == pl.String else f"a value of type {dtype}"
        if dtype.is_integer():
            kind = f"a whole number ({dtype})"
        elif dtype.is_numeric():
            kind = f"a number ({dtype})"
        actual = f"found {text!r}" if text else "it is empty"
        return f"{where}: expected {kind}, {actual}"

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """Each row's first line and its values, the header included."""
        quoting = csv.QUOTE_MINIMAL if self.quoted else csv.QUOTE_NONE
        reader = csv.reader(
            self._decoded(), delimiter=self.separator, quoting=quoting, strict=True
        )
        begin = 1
        try:
            for row in reader:
                yield begin, row
                begin = reader.line_num + 1
        except csv.Error as error:
            where = f"{self.name}, line {begin}"
            reason = f"the columns cannot be separated ({error})"
            raise UserError(f"{where}: {reason}") from error

    def _decoded(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    where = f"{self.name}, line {number}"
                    raise UserError(f"{where}: this is not UTF-8 text") from error
