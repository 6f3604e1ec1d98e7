"""CSV rows are exactly those of Python's strict reader, or the file is refused."""

import csv
import io
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pwiser_jax.data.raw import quoting
from pwiser_jax.data.raw.sources import scan_csv
from pwiser_jax.errors import UserError

Rows = list[tuple[str, ...]]
HEADER = ("a", "b", "c")


def python_rows(data: bytes, separator: str = ",") -> Rows | None:
    """The rows of Python's strict reader; None: it refuses, or columns are missing."""
    try:
        lines = [f"{line}\n" for line in data.decode("utf-8-sig").split("\n")]
    except UnicodeDecodeError:
        return None
    lines[-1] = lines[-1][:-1]
    try:
        rows = list(csv.reader(filter(None, lines), delimiter=separator, strict=True))
    except csv.Error:
        return None
    if any(len(row) != len(rows[0]) for row in rows):
        return None
    return [tuple(row) for row in rows[1:]] or None


def our_rows(path: Path, separator: str = ",") -> Rows | None:
    try:
        frame = scan_csv(path, dtypes={}, separator=separator).collect()
    except UserError:
        return None
    return [tuple(value or "" for value in row) for row in frame.rows()]


def written(rows: Sequence[Sequence[str]], separator: str, **options: object) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, **options).writerows([HEADER, *rows])
    return text.getvalue().encode()


values = st.text(st.sampled_from(list('ab",;\n\r é\t')), max_size=5)
tables = st.lists(st.tuples(values, values, values), min_size=1, max_size=8)
FUZZ = settings(
    max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@FUZZ
@given(tables, st.sampled_from(",;\t"), st.sampled_from(["\n", "\r\n"]), st.booleans())
def test_what_a_writer_wrote_is_read(
    tmp_path: Path, rows: Rows, separator: str, end: str, always: bool
) -> None:
    # Python 3.11 writes a carriage return without quotes, which it cannot read.
    returns = any("\r" in value for row in rows for value in row)
    style = csv.QUOTE_ALL if always or returns else csv.QUOTE_MINIMAL
    data = written(rows, separator, lineterminator=end, quoting=style)
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    assert python_rows(data, separator) == rows
    assert our_rows(path, separator) == rows
    separators = quoting.count_separators(path, separator, True)
    assert separators == 2 * (1 + len(rows))


@FUZZ
@given(tables, st.data())
def test_a_damaged_file_is_refused_or_read_as_python_reads_it(
    tmp_path: Path, rows: Rows, draw: st.DataObject
) -> None:
    data = written(rows, ",", lineterminator="\n")
    for _ in range(draw.draw(st.integers(1, 3))):
        at = draw.draw(st.integers(len(b"a,b,c\n"), len(data)))
        new = draw.draw(st.sampled_from([b"", b'"', b",", b"\n", b"\r", b"x", b'""']))
        data = data[:at] + new + data[at + draw.draw(st.integers(0, 1)) :]
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    found = our_rows(path)
    assert found is None or found == python_rows(data), data


@FUZZ
@given(st.text(st.sampled_from(list('a",\n\r')), max_size=24))
def test_any_text_is_refused_or_read_as_python_reads_it(
    tmp_path: Path, body: str
) -> None:
    data = b"a,b\n" + body.encode()
    path = tmp_path / "a.csv"
    path.write_bytes(data)
    found = our_rows(path)
    assert found is None or found == python_rows(data), data


@FUZZ
@given(
    st.lists(st.sampled_from(['"', "a", ",", "\n", "\r\n", '""', '"x"']), max_size=9)
)
def test_blocks_change_nothing(tmp_path: Path, parts: list[str]) -> None:
    """Marks are looked at beyond the block that they end or begin."""
    path = tmp_path / "a.csv"
    path.write_text("".join(parts), newline="")

    def counted() -> object:
        try:
            return quoting.count_rows(path, ",", True)
        except quoting.LayoutError as error:
            return error.line, error.reason

    whole = counted()
    with pytest.MonkeyPatch.context() as patch:
        for size in (1, 2, 3):
            patch.setattr(quoting, "BLOCK_BYTES", size)
            assert counted() == whole


def test_unescaped_quotes_do_not_swallow_rows(tmp_path: Path) -> None:
    lines = [f'{k},tv,"plain"' for k in range(60)]
    lines[3], lines[58] = '3,"5" tv",x', '58,"7" tv",x'
    path = tmp_path / "a.csv"
    path.write_text("\n".join(["id,name,kind", *lines]) + "\n")
    with pytest.raises(UserError, match=re.escape("a.csv, line 5: a quotation mark")):
        scan_csv(path, dtypes={})


def test_quoted_line_ends_far_down_a_file_are_text(tmp_path: Path) -> None:
    """Polars reads pieces in parallel: none may begin inside a value."""
    rows = [(str(k), 'a "b",\n\n' * (k % 7), "x\r\n,") for k in range(60_000)]
    path = tmp_path / "a.csv"
    path.write_bytes(written(rows, ",", lineterminator="\n"))
    assert our_rows(path) == rows
