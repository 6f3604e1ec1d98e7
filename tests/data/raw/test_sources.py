"""Raw files are found in all archive types, and read exactly or refused."""

import gzip
import random
import re
import zipfile
from io import BytesIO
from pathlib import Path

import polars as pl
import pytest

from pwiser_jax.data.raw.archives import Files, Source, unpack
from pwiser_jax.data.raw.frames import scan_parquet
from pwiser_jax.data.raw.sources import refuse_repeats, scan_csv
from pwiser_jax.errors import UserError

DTYPES = {"id": pl.Int64(), "x": pl.Float64()}


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def test_values_types_and_empty_values_are_read(tmp_path):
    text = 'id,x,word\n1,2.5,"a,b"\n-2,1e-3,c\n3,,\n'
    for data in (text, text.replace("\n", "\r\n"), "\ufeff" + text, text[:-1]):
        frame = scan_csv(write(tmp_path / "a.csv", data), dtypes=DTYPES)
        expected = [(1, 2.5, "a,b"), (-2, 1e-3, "c"), (3, None, None)]
        assert frame.collect().rows() == expected
        assert frame.collect_schema().dtypes() == [pl.Int64, pl.Float64, pl.String]


def test_a_file_without_a_header(tmp_path):
    path = write(tmp_path / "a.csv", '1,"x\n2,y"\n')
    frame = scan_csv(path, columns=["id", "word"], dtypes={}, quoted=False)
    assert frame.collect().rows() == [("1", '"x'), ("2", 'y"')]


REFUSED = {
    "": "a.csv: the file is empty",
    "id,x,word\n": "a.csv: there are no rows in it",
    "id,word\n1,a\n": "a.csv, line 1: there is no column 'x'",
    "id,x,id\n1,2,3\n": "a.csv, line 1: two columns are called 'id'",
    "id,x,word\n1,2,a\n1,2\n": "a.csv, line 3: expected 3 columns, found 2",
    "id,x,word\n1,2,a\n1,2,a,b\n": "a.csv, line 3: expected 3 columns, found 4",
    "id,x,word\n1,2,a\n\n1,2,b\n": "a.csv, line 3: expected 3 columns, found 0",
    "id,x,word\n1,2,a\n\n": "a.csv, line 3: expected 3 columns, found 0",
    "id,x,word\n1,b,a\n": "a.csv, line 2, column 'x': expected a number",
    "id,x,word\n1,2,a\n1.0,2,a\n": "a.csv, line 3, column 'id': expected a whole",
    "id,x,word\n9223372036854775808,2,a\n": "line 2, column 'id': expected a whole",
    "id,x,word\n1,2,a\n,2,a\n": "a.csv, line 3, column 'id': expected a whole number",
    b"id,x,word\n1,2,a\n1,2,\xff\n": "a.csv, line 3: this is not UTF-8 text",
    b"id,x,\xff\n1,2,a\n": "a.csv, line 1: this is not UTF-8 text",
    'id,x,word\n1,2,a\n1,2,"a\n1,2,b\n': "a.csv, line 3: ",
    'id,x,word\n1,2,a"\n1,2,b\n': "a.csv, line 2: a quotation mark is not closed",
    'id,x,word\n1,2,"a\nb"\n1,2\n': "a.csv, line 4: expected 3 columns, found 2",
}


@pytest.mark.parametrize("text", REFUSED, ids=range(len(REFUSED)))
def test_bad_files_are_refused_with_their_line(tmp_path, text):
    path = write(tmp_path / "a.csv", text)
    with pytest.raises(UserError, match=re.escape(REFUSED[text])):
        scan_csv(path, dtypes=DTYPES, required=["id"], name="a.csv")


def test_a_bad_line_is_found_far_down_the_file(tmp_path):
    lines = [f"{k},{k / 7}" for k in range(30_000)]
    lines[25_000] = "25000,x"
    path = write(tmp_path / "a.csv", "\n".join(["id,x", *lines]))
    with pytest.raises(UserError, match="line 25002, column 'x'"):
        scan_csv(path, dtypes=DTYPES)


def test_a_missing_file(tmp_path):
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'a.csv'}: no such")):
        scan_csv(tmp_path / "a.csv", dtypes={})


def plain_reader(data: bytes) -> list[tuple[int, float | None]] | None:
    """What a file of two columns holds; None: it should be refused."""
    try:
        lines = data.decode().removesuffix("\n").split("\n")
    except UnicodeDecodeError:
        return None
    rows = []
    for line in lines:
        parts = line.split(",")
        if len(parts) != 2 or not re.fullmatch(r"-?\d{1,18}", parts[0]):
            return None
        if parts[1] and not re.fullmatch(r"-?(\d+\.?\d*|\.\d+)", parts[1]):
            return None
        rows.append((int(parts[0]), float(parts[1]) if parts[1] else None))
    return rows


def read(path: Path) -> list[tuple] | None:
    try:
        frame = scan_csv(
            path, columns=["id", "x"], dtypes=DTYPES, required=["id"], quoted=False
        )
    except UserError:
        return None
    return frame.collect().rows()


def test_mutated_files_are_read_exactly_or_refused(tmp_path):
    """No crash, no silent row: what comes back is what a plain reader sees."""
    random_ = random.Random(0)
    path, refused = tmp_path / "a.csv", 0
    for _ in range(400):
        lines = [
            f"{random_.randrange(-99, 999)},{random_.choice(['', '0.25', '-3', '7.5'])}"
            for _ in range(random_.randrange(2, 6))
        ]
        data = bytearray("\n".join(lines).encode() + b"\n")
        for _ in range(random_.randrange(3)):
            at = random_.randrange(len(data) - 1)
            kind = random_.randrange(3)
            if kind == 0:
                data[at : at + 1] = b""
            else:
                data[at : at + kind - 1] = random_.choice(
                    [b"x", b",", b"\n", b"\xff", b'"', b"4", b"-"]
                )
        write(path, bytes(data))
        expected = plain_reader(bytes(data))
        assert read(path) == expected, bytes(data)
        refused += expected is None
    assert 100 < refused < 300


def test_a_path_is_no_pattern(tmp_path):
    write(tmp_path / "x1.csv", "id\n1\n")
    write(tmp_path / "x[1].csv", "id\n1\n2\n")
    assert scan_csv(tmp_path / "x[1].csv", dtypes={}).collect().height == 2
    frame = pl.DataFrame({"id": [1, 2]})
    frame.write_parquet(tmp_path / "x*.parquet")
    frame.head(1).write_parquet(tmp_path / "x1.parquet")
    for name in ("x*.parquet", "x1.parquet"):
        rows = 2 if "*" in name else 1
        assert scan_parquet(tmp_path / name).collect().height == rows
        assert scan_parquet([tmp_path / name]).collect().height == rows


def test_a_folder_is_called_a_folder(tmp_path):
    with pytest.raises(UserError, match="is a folder; expected a CSV file"):
        scan_csv(tmp_path, dtypes={})


def test_another_separator_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "id;x\n1;2\n")
    with pytest.raises(UserError, match=r"no column 'id' \(.* separated by semicolons"):
        scan_csv(path, dtypes={"id": pl.Int64()})


@pytest.mark.parametrize("line", range(2, 5))
@pytest.mark.parametrize("long", ["7,8,9", "7,8,", "7,,"])
def test_a_long_row_does_not_hide_a_short_one(tmp_path, long, line):
    rows = ["1,2", "3", "5,6"]
    rows.insert(line - 2, long)
    path = write(tmp_path / "a.csv", "\n".join(["id,x", *rows, ""]))
    first = min(line, 3)
    with pytest.raises(UserError, match=f"line {first}: expected 2 columns"):
        scan_csv(path, dtypes={})


def test_a_separator_at_the_very_end_is_a_further_column(tmp_path):
    path = write(tmp_path / "a.csv", "id,x\n1,2\n3,4,")
    with pytest.raises(UserError, match="line 3: expected 2 columns, found 3"):
        scan_csv(path, dtypes={})


def test_a_zip_inside_itself_ends(tmp_path):
    data = zipped({"a.csv": b"1"})
    for _ in range(3):
        data = zipped({"inner.zip": data})
    assert Files(write(tmp_path / "deep.zip", data)).names == ["a.csv"]
    deeper = write(tmp_path / "deeper.zip", zipped({"inner.zip": data}))
    with pytest.raises(UserError, match="a zip inside 4 other zips is not opened"):
        Files(deeper)


def test_repeated_keys_are_refused():
    keys = pl.Series("user_id", [4, 5, 6])
    refuse_repeats(keys, str)
    with pytest.raises(UserError, match="line 4: user_id 5 has an earlier row"):
        refuse_repeats(pl.Series("user_id", [4, 5, 6, 5]), lambda row: f"line {row}")


DATA = b"1,2\n3,4\n" * 1000


def test_a_file_is_found_however_it_is_packed(tmp_path):
    inner = zipped({"folder/a.csv": DATA})
    layouts = {
        "plain": {"a.csv": DATA},
        "gzip": {"a.csv.gz": gzip.compress(DATA)},
        "zip": {"publisher.zip": zipped({"folder/a.csv": DATA, "folder/b.csv": b"x"})},
        "zip of gzip": {"publisher.zip": zipped({"a.csv.gz": gzip.compress(DATA)})},
        "zip of zips": {"publisher.zip": zipped({"x/a.zip": inner, "x/b.csv": b"x"})},
    }
    for name, files in layouts.items():
        folder, room = tmp_path / name, tmp_path / f"{name} room"
        folder.mkdir()
        room.mkdir()
        for file, data in files.items():
            write(folder / file, data)
        places = [folder, *folder.glob("*.zip")]
        for place in places:
            files_there = Files(place)
            assert "a.csv" in files_there.names
            path = unpack(files_there.require("a.csv"), room)
            assert path.read_bytes() == DATA
            if path.parent == room:
                path.unlink()


def test_a_plain_file_is_preferred_and_not_copied(tmp_path):
    write(tmp_path / "a.csv", DATA)
    write(tmp_path / "a.csv.gz", gzip.compress(b"other"))
    write(tmp_path / "z.zip", zipped({"a.csv": b"other"}))
    source = Files(tmp_path).require("a.csv")
    assert unpack(source, tmp_path / "nowhere") == tmp_path / "a.csv"


def test_files_that_cannot_be_told_apart_or_found(tmp_path):
    write(tmp_path / "y.zip", zipped({"a.csv": b"1"}))
    write(tmp_path / "z.zip", zipped({"a.csv": b"2"}))
    files = Files(tmp_path)
    assert files.find("b.csv") is None
    with pytest.raises(UserError, match=r"y\.zip/a\.csv and .*z\.zip/a\.csv are both"):
        files.find("a.csv")
    with pytest.raises(UserError, match=r"no file b\.csv, b\.csv\.gz or in a zip"):
        files.require("b.csv")
    with pytest.raises(UserError, match="nowhere: no such folder"):
        Files(tmp_path / "nowhere")


def test_broken_archives_are_refused_by_name(tmp_path):
    good = zipped({"a.csv": bytes(random.Random(0).randbytes(5000))})
    at = good.index(b"a.csv") + 1000
    flipped = good[:at] + bytes([good[at] ^ 255]) + good[at + 1 :]
    room = tmp_path / "room"
    room.mkdir()
    path = write(tmp_path / "flipped.zip", flipped)
    with pytest.raises(UserError, match=r"flipped\.zip/a\.csv: broken or cut short"):
        unpack(Files(path).require("a.csv"), room)
    for name, data in {"cut.zip": good[:-100], "text.zip": b"no zip"}.items():
        with pytest.raises(UserError, match=f"{name}: not a whole zip file"):
            Files(write(tmp_path / name, data))
    packed = gzip.compress(DATA)
    broken = {
        "cut.csv.gz": packed[:-9],
        "text.csv.gz": b"no gzip",
        "flipped.csv.gz": packed[:-6] + b"\0" + packed[-5:],
    }
    for name, data in broken.items():
        write(tmp_path / name, data)
        with pytest.raises(UserError, match=f"{name}: broken or cut short"):
            unpack(Source(tmp_path / name), room)
