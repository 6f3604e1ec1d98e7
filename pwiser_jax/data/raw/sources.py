"""Read CSV files strictly, and say which line is wrong.

Polars reads fast but forgives: a line that is too short is filled with nulls, and a
column that a query does not need is not parsed at all. `scan_csv` therefore reads every
column of every row once before it returns, and when something is wrong it reads the
file again line by line, to name the line and the column.
"""

import csv
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl

from pwiser_jax.errors import UserError

DataType = type[pl.DataType] | pl.DataType
BLOCK_LINES = 10_000
ROWS = "\0rows"  # no column of a file can have this name


def scan_csv(
    path: Path,
    *,
    columns: Sequence[str] | None = None,
    dtypes: Mapping[str, DataType],
    required: Collection[str] = (),
    name: str | None = None,
    quoted: bool = True,
    separator: str = ",",
) -> pl.LazyFrame:
    """The rows of a plain CSV file, all read once: collecting them later cannot fail.

    Args:
        path: the file: UTF-8, Unix or Windows line ends, not packed.
        columns: the names of all columns, for a file without a header; None: the first
            line holds them.
        dtypes: types by column; every other column is text. A column that the file does
            not have is refused.
        required: columns in which an empty value is refused; elsewhere it is null.
        name: what messages call the file; None: its path.
        quoted: False: a quotation mark is a character like others.
        separator: what stands between two columns.

    Raises:
        UserError: names file and line: no such file, no rows, not UTF-8, another number
            of columns than the header (or `columns`) has, an empty line, a value that
            is not of its column's type, an empty value in a required column.
    """
    called = name or str(path)
    table = _Table(
        path, called, columns, dtypes, frozenset(required), quoted, separator
    )
    frame = table.scan()
    counts = frame.select(pl.len().alias(ROWS), pl.all().null_count())
    try:
        row = counts.collect(engine="streaming").row(0, named=True)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise table.explain(error) from error
    if row.pop(ROWS) == 0:
        raise UserError(f"{table.name}: there are no rows in it")
    # A line that is too short leaves null in the last column, and so does an empty
    # value there: only reading line by line tells one from the other.
    if row[table.names[-1]] or any(row[column] for column in required):
        bad = table.first_bad_line()
        if bad is not None:
            raise UserError(bad)
    return frame


def refuse_repeats(keys: pl.Series, place: Callable[[int], str]) -> None:
    """Raise a UserError that names the first row whose key an earlier row has.

    Args:
        keys: a column that should name each row.
        place: from a 1-based row to its place in the file.
    """
    again = ~keys.is_first_distinct()
    if again.any():
        at = again.arg_true()[0]
        raise UserError(f"{place(at + 1)}: {keys.name} {keys[at]} has an earlier row")


@dataclass(frozen=True)
class _Table:
    """What `scan_csv` knows of a file, for reading it and for explaining errors."""

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
                raise UserError(f"{self.name}, line 1: there is no column {column!r}")
        return pl.scan_csv(
            self.path,
            schema={column: self.dtypes.get(column, pl.String) for column in names},
            has_header=self.columns is None,
            separator=self.separator,
            quote_char='"' if self.quoted else None,
        )

    def explain(self, error: Exception) -> UserError:
        """What Polars met, with the line where it can be found."""
        if isinstance(error, pl.exceptions.NoDataError):
            return UserError(f"{self.name}: the file is empty")
        reason = (str(error) or type(error).__name__).splitlines()[0]
        bad = self.first_bad_line() or self._odd_quotes()
        return UserError(bad or f"{self.name}: {reason}")

    def first_bad_line(self) -> str | None:
        """Says what is wrong with the first bad line; None: nothing is."""
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
        found = f"found {text!r}" if text else "it is empty"
        return f"{where}: expected {kind}, {found}"

    def _odd_quotes(self) -> str | None:
        """The first line with a quotation mark that has no partner."""
        if not self.quoted:
            return None
        for number, line in enumerate(self._decoded(), 1):
            if line.count('"') % 2:
                return f"{self.name}, line {number}: a quotation mark is not closed"
        return None

    def _lines(self) -> Iterator[tuple[int, list[str]]]:
        """The line where it begins and the values of each row, the header's first."""
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
            raise UserError(f"{where}: no columns can be told ({error})") from error

    def _decoded(self) -> Iterator[str]:
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    where = f"{self.name}, line {number}"
                    raise UserError(f"{where}: this is not UTF-8 text") from error
