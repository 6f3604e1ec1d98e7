"""AliExpress: raw files and MTReclib's CSV are the same rows, however packed."""

import csv
import gzip
import random
import re
import resource
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pwiser_jax.atomic import scratch_folder
from pwiser_jax.data.datasets.aliexpress import (
    CATEGORICAL,
    FIELD_SIZES,
    NUMERICAL,
    prepare_aliexpress,
)
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.errors import UserError

# The paper's column mapping, written out again: raw column numbers from 1.
USER_CATEGORIES = [2, 3, 4, 5, 6, 7, 8, 32, 33]
ITEM_CATEGORIES = [19, 34, 35, 36, 40, 41, 42]
USER_NUMBERS = list(range(9, 32))
ITEM_NUMBERS = [k for k in range(2, 49) if k not in ITEM_CATEGORIES]
HEADER = ["search_id", *CATEGORICAL, *NUMERICAL, "click", "conversion"]

Raw = dict[str, list[list[Any]]]


def raw_files(searches: int = 60, country: str = "nl") -> Raw:
    """Raw user and item rows; search ids restart in test and come in any order."""
    dice = random.Random(3)
    files: Raw = {}
    for split in ("train", "test"):
        ids = dice.sample(range(1, 2 * searches), searches)
        users, items = [], []
        for search in ids:
            user: list[Any] = [search, *[0] * 32]
            for k, size in zip(USER_CATEGORIES, FIELD_SIZES[:9], strict=True):
                user[k - 1] = dice.randrange(size)
            for k in USER_NUMBERS:
                user[k - 1] = dice.choice([0, 1, round(dice.random(), 6)])
            users.append(user)
            for _ in range(dice.randrange(1, 6)):
                item: list[Any] = [search, *[0] * 48]
                for k, size in zip(ITEM_CATEGORIES, FIELD_SIZES[9:], strict=True):
                    item[k - 1] = dice.randrange(size)
                for k in ITEM_NUMBERS:
                    item[k - 1] = round(dice.random(), 6)
                item[48] = dice.choice([0, 0, 0, 1, 2])
                items.append(item)
        dice.shuffle(items)
        files[f"{country}_user_{split}.csv"] = users
        files[f"{country}_item_{split}.csv"] = items
    return files


def mtreclib(raw: Raw, country: str = "nl") -> Raw:
    """The same exposures as MTReclib's script writes them, in the items' order."""
    files: Raw = {}
    for split in ("train", "test"):
        users = {user[0]: user for user in raw[f"{country}_user_{split}.csv"]}
        files[f"{split}.csv"] = [
            HEADER,
            *(
                [
                    item[0],
                    *(users[item[0]][k - 1] for k in USER_CATEGORIES),
                    *(item[k - 1] for k in ITEM_CATEGORIES),
                    *(users[item[0]][k - 1] for k in USER_NUMBERS),
                    *(item[k - 1] for k in ITEM_NUMBERS),
                    int(item[48] >= 1),
                    int(item[48] == 2),
                ]
                for item in raw[f"{country}_item_{split}.csv"]
                if item[0] in users
            ),
        ]
    return files


def text_of(rows: list[list[Any]]) -> bytes:
    return "".join(",".join(map(str, row)) + "\n" for row in rows).encode()


def write_files(folder: Path, files: Raw) -> Path:
    folder.mkdir(exist_ok=True)
    for name, rows in files.items():
        (folder / name).write_bytes(text_of(rows))
    return folder


def prepare(folder: Path, files: Raw, **options: Any) -> Prepared:
    source = write_files(folder / "raw", files)
    options = {"valid_fraction": 0.2} | options
    prepare_aliexpress(source, folder / "out", **options)
    assert sorted(path.name for path in folder.iterdir()) == ["out", "raw"]
    return Prepared(folder / "out")


def parquet(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> tuple[Raw, Prepared]:
    files = raw_files()
    return files, prepare(tmp_path_factory.mktemp("aliexpress"), files)


def test_raw_files_and_mtreclibs_csv_give_the_same_bytes(small, tmp_path):
    files, prepared = small
    joined = prepare(tmp_path, mtreclib(files))
    assert parquet(joined.folder) == parquet(prepared.folder)
    assert joined.manifest.schema == prepared.manifest.schema
    assert joined.manifest.splits == prepared.manifest.splits


def expected_rows(files: Raw, split: str) -> np.ndarray:
    return np.array(mtreclib(files)[f"{split}.csv"][1:], np.float64)


def test_values_labels_and_order(small):
    files, prepared = small
    table = expected_rows(files, "test")
    rows = prepared.load("test")
    np.testing.assert_array_equal(rows.categorical, table[:, 1:17])
    np.testing.assert_array_equal(rows.numerical, table[:, 17:80].astype(np.float32))
    np.testing.assert_array_equal(rows.labels, table[:, 80:])
    assert prepared.schema.field_sizes == FIELD_SIZES
    assert sum(field.size for field in prepared.schema.categorical) == 144


def test_validation_takes_whole_searches_of_train(small):
    files, prepared = small
    train, valid = prepared.load("train"), prepared.load("valid")
    table = expected_rows(files, "train")
    groups = set(valid.group)
    assert not groups & set(train.group)
    searches = {row[0] for row in files["nl_user_train.csv"]}
    assert len(groups | set(train.group)) == len(searches)
    assert 0.05 < len(groups) / len(searches) < 0.4

    # Rows keep the file's order within a split: both together are a riffle of it.
    numbers = iter(table[:, 17:80].astype(np.float32).tolist())
    parts = [iter(part.numerical.tolist()) for part in (train, valid)]
    heads: list[Any] = [next(part) for part in parts]
    for number in numbers:
        at = heads.index(number)
        heads[at] = next(parts[at], None)
    assert heads == [None, None]


def test_a_search_of_test_is_none_of_train(small):
    files, prepared = small
    ids = [{row[0] for row in files[f"nl_user_{split}.csv"]} for split in HALVES]
    assert ids[0] & ids[1]
    seen = {*prepared.load("train").group, *prepared.load("valid").group}
    assert not seen & set(prepared.load("test").group)


HALVES = ("train", "test")


def test_every_way_of_packing_gives_the_same_bytes(small, tmp_path):
    files, prepared = small
    source = write_files(tmp_path / "raw", files)
    paths = sorted(source.iterdir())
    for name in ("gzipped", "zips", "country", "published"):
        (tmp_path / name).mkdir()
    inside = "aliexpress_NL_datasets"
    with zipfile.ZipFile(tmp_path / "country" / "AliExpress_NL.zip", "w") as country:
        for path in paths:
            packed = gzip.compress(path.read_bytes())
            (tmp_path / "gzipped" / f"{path.name}.gz").write_bytes(packed)
            with zipfile.ZipFile(tmp_path / "zips" / f"{path.stem}.zip", "w") as one:
                one.write(path, path.name)
            country.write(path, f"{inside}/{path.name}")
    # As published: a zip of the country that holds a zip of each file.
    with zipfile.ZipFile(tmp_path / "published" / f"{inside}.zip", "w") as outer:
        for path in (tmp_path / "zips").iterdir():
            outer.write(path, f"{inside}/{path.name}")
    places = [tmp_path / name for name in ("gzipped", "zips", "country", "published")]
    places.append(tmp_path / "published" / f"{inside}.zip")
    for place in places:
        options = {"valid_fraction": 0.2, "overwrite": True}
        manifest = prepare_aliexpress(place, tmp_path / "out", **options)
        assert parquet(tmp_path / "out") == parquet(prepared.folder), place
        assert len(manifest.sources) == (4 if place.name in ("gzipped", "zips") else 1)


def test_items_without_a_user_row_are_counted_as_dropped(tmp_path):
    files = raw_files(200)
    gone = files["nl_user_train.csv"][5][0]
    fewer = files | {
        "nl_user_train.csv": [k for k in files["nl_user_train.csv"] if k[0] != gone]
    }
    lost = sum(item[0] == gone for item in files["nl_item_train.csv"])
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    prepared = prepare(tmp_path / "a", fewer)
    assert prepared.manifest.dropped == {"items_without_user_row_dropped": lost}
    assert parquet(prepare(tmp_path / "b", mtreclib(fewer)).folder) == parquet(
        prepared.folder
    )


def test_many_items_without_a_user_row_are_refused(small, tmp_path):
    """Whoever gives the users of another country should not lose rows in silence."""
    files, _ = small
    users = files["nl_user_train.csv"][2:]
    source = write_files(tmp_path / "raw", files | {"nl_user_train.csv": users})
    with pytest.raises(UserError, match=r"item_train\.csv: \d+ of \d+ rows have a"):
        prepare_aliexpress(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    manifest = prepare_aliexpress(source, tmp_path / "out", max_unmatched=0.9)
    assert manifest.dropped["items_without_user_row_dropped"] > 0
    with pytest.raises(UserError, match="--max-unmatched is 2; expected 0 to 1"):
        prepare_aliexpress(source, tmp_path / "new", max_unmatched=2)


KILLED = """
import sys, time
from pathlib import Path
from pwiser_jax.data.datasets import aliexpress
def slowly(*arguments):
    print("unpacked", flush=True)
    time.sleep(60)
aliexpress._scan_raw = slowly
aliexpress.prepare_aliexpress(Path(sys.argv[1]), Path(sys.argv[2]))
"""


def test_the_next_run_removes_what_a_killed_one_unpacked(small, tmp_path):
    files, prepared = small
    source = write_files(tmp_path / "raw", files)
    for path in list(source.iterdir()):
        (source / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    command = [sys.executable, "-c", KILLED, str(source), str(tmp_path / "out")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "unpacked\n"
    # A run at the same time leaves the other's files alone.
    with scratch_folder(tmp_path / "out"):
        assert len(list(tmp_path.glob(".out.raw-*"))) == 2
    process.kill()
    process.communicate()
    assert len(list(tmp_path.glob(".out.raw-*"))) == 1
    prepare_aliexpress(source, tmp_path / "out", valid_fraction=0.2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]
    assert parquet(tmp_path / "out") == parquet(prepared.folder)


def test_ids_beyond_a_fields_size_are_unseen(tmp_path):
    files = mtreclib(raw_files())
    files["test.csv"][1][1] = 11
    files["test.csv"][2][7] = 4_000
    rows = prepare(tmp_path, files)
    fields = rows.schema.categorical
    found = rows.load("test").categorical
    assert found[0, 0] == fields[0].unseen
    assert found[1, 6] == fields[6].unseen


def test_conversions_without_a_click(tmp_path):
    files = mtreclib(raw_files())
    lines = [k for k, row in enumerate(files["train.csv"]) if row[-2:] == [0, 0]][:3]
    for k in lines:
        files["train.csv"][k] = [*files["train.csv"][k][:-1], 1]
    where = f"train.csv, line {lines[0] + 1}: 'conversion' is 1 but 'click' is 0"
    with pytest.raises(UserError, match=re.escape(where)):
        prepare(tmp_path, files)
    rows = len(files["train.csv"]) - 1
    for choice, dropped in {"drop": 3, "nest": 0}.items():
        (tmp_path / choice).mkdir()
        manifest = prepare(tmp_path / choice, files, on_bad_label=choice).manifest
        name = "dropped" if choice == "drop" else "nested"
        assert manifest.dropped == {f"conversion_without_click_{name}": 3}
        kept = manifest.splits["train"].rows + manifest.splits["valid"].rows
        assert kept == rows - dropped


def test_a_country_is_chosen_where_there_are_several(small, tmp_path):
    files, prepared = small
    both = files | raw_files(20, "es") | mtreclib(raw_files(30))
    chosen = prepare(tmp_path, both, country="NL")
    assert parquet(chosen.folder) == parquet(prepared.folder)
    assert chosen.manifest.options["country"] == "nl"
    (tmp_path / "raw" / "train.csv").unlink()
    with pytest.raises(UserError, match=r"several countries \(es, nl\)"):
        prepare_aliexpress(tmp_path / "raw", tmp_path / "other")
    with pytest.raises(UserError, match=r"no file us_user_train\.csv"):
        prepare_aliexpress(tmp_path / "raw", tmp_path / "other", country="us")


def change(file: str, line: int, column: int, value: Any):
    def edit(files: Raw) -> None:
        files[file] = [list(row) for row in files[file]]
        files[file][line - 1][column - 1 : column] = (
            [] if value is None else [value] if value != "two" else [0, 0]
        )

    return edit


def repeat_user(files: Raw) -> None:
    rows = files["nl_user_test.csv"]
    files["nl_user_test.csv"] = [*rows, [rows[2][0], *rows[5][1:]]]


USER, ITEM = "nl_user_train.csv", "nl_item_test.csv"
BAD_RAW = {
    f"{USER}, line 4: expected 33 columns, found 32": change(USER, 4, 7, None),
    f"{ITEM}, line 9: expected 49 columns, found 50": change(ITEM, 9, 7, "two"),
    f"{USER}, line 1, column 'user_2': expected a whole": change(USER, 1, 2, "0.5"),
    f"{ITEM}, line 2, column 'item_3': expected a number": change(ITEM, 2, 3, "x"),
    f"{USER}, line 3, column 'user_1': expected a whole": change(USER, 3, 1, ""),
    f"{USER}, line 6, column 'user_9': expected a number": change(USER, 6, 9, ""),
    f"{USER}, line 2, column 'user_2': expected a whole number (Int32)": change(
        USER, 2, 2, 3_000_000_000
    ),
    f"{ITEM}, line 7: column 'item_49' holds 3; expected": change(ITEM, 7, 49, 3),
    "nl_user_test.csv, line 61: user_1 ": repeat_user,
}


@pytest.mark.parametrize("message", BAD_RAW)
def test_bad_raw_rows_are_refused_with_file_and_line(small, tmp_path, message):
    files = dict(small[0])
    BAD_RAW[message](files)
    source = write_files(tmp_path / "raw", files)
    with pytest.raises(UserError, match=re.escape(f"{source}/{message}")) as error:
        prepare_aliexpress(source, tmp_path / "out")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


BAD_CSV = {
    "train.csv, line 3: expected 82 columns, found 81": change("train.csv", 3, 9, None),
    "train.csv, line 5, column 'click': expected a": change("train.csv", 5, 81, "x"),
    "train.csv, line 5: column 'click' holds 2": change("train.csv", 5, 81, 2),
    "test.csv, line 1: there is no column 'numerical_2'": change(
        "test.csv", 1, 19, "other"
    ),
}


@pytest.mark.parametrize("message", BAD_CSV)
def test_bad_rows_of_mtreclibs_csv_are_refused(small, tmp_path, message):
    files = mtreclib(small[0])
    BAD_CSV[message](files)
    source = write_files(tmp_path / "raw", files)
    with pytest.raises(UserError, match=re.escape(f"{source}/{message}")):
        prepare_aliexpress(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_files_that_are_missing_empty_or_broken(small, tmp_path):
    source = write_files(tmp_path / "raw", small[0])
    item = source / "nl_item_test.csv"
    good = item.read_bytes()
    item.unlink()
    with pytest.raises(UserError, match=r"no file nl_item_test\.csv"):
        prepare_aliexpress(source, tmp_path / "out")
    item.write_bytes(b"")
    with pytest.raises(UserError, match=r"nl_item_test\.csv: there are no rows"):
        prepare_aliexpress(source, tmp_path / "out")
    item.write_bytes(good[:-30])
    with pytest.raises(UserError, match=r"nl_item_test\.csv, line \d+: expected 49"):
        prepare_aliexpress(source, tmp_path / "out")
    item.unlink()
    packed = source / "nl_item_test.csv.gz"
    packed.write_bytes(gzip.compress(good)[:-50])
    with pytest.raises(UserError, match=r"test\.csv\.gz: broken or cut short"):
        prepare_aliexpress(source, tmp_path / "out")
    packed.rename(source / "nl_item_test.zip")
    with pytest.raises(UserError, match=r"nl_item_test\.zip: not a whole zip file"):
        prepare_aliexpress(source, tmp_path / "out")
    with pytest.raises(UserError, match=r"holds neither train\.csv nor raw files"):
        prepare_aliexpress(write_files(tmp_path / "none", {}), tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["none", "raw"]


@pytest.mark.parametrize("packed", [False, True])
def test_a_full_disk_is_refused_and_leaves_nothing(small, tmp_path, packed):
    """A limit on the size of files stands for the full disk."""
    source = write_files(tmp_path / "raw", small[0])
    for path in list(source.iterdir()) if packed else []:
        (source / f"{path.name}.gz").write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            prepare_aliexpress(source, tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_real_rows_are_read_as_they_are(real_rows, tmp_path):
    """MTReclib's CSV, and raw files made of it, against the file's own numbers."""
    tables, raw = {}, {}
    for split in ("train", "test"):
        with (real_rows / "aliexpress" / f"{split}.csv").open() as file:
            rows = list(csv.reader(file))[1:]
        tables[split] = np.array(rows, np.float64)
        users, items = [], []
        for k, row in enumerate(rows):
            user: list[Any] = [k, *[0] * 32]
            item: list[Any] = [k, *[0] * 48]
            for at, value in zip(USER_CATEGORIES, row[1:10], strict=True):
                user[at - 1] = value
            for at, value in zip(ITEM_CATEGORIES, row[10:17], strict=True):
                item[at - 1] = value
            for at, value in zip(USER_NUMBERS, row[17:40], strict=True):
                user[at - 1] = value
            for at, value in zip(ITEM_NUMBERS, row[40:80], strict=True):
                item[at - 1] = value
            item[48] = int(row[80]) + int(row[81])
            users.append(user)
            items.append(item)
        raw[f"us_user_{split}.csv"], raw[f"us_item_{split}.csv"] = users, items
    places = {"csv": real_rows / "aliexpress"}
    places["joined"] = write_files(tmp_path / "raw", raw)
    for name, place in places.items():
        prepare_aliexpress(place, tmp_path / name, valid_fraction=0.5)
        prepared = Prepared(tmp_path / name)
        rows, table = prepared.load("test"), tables["test"]
        np.testing.assert_array_equal(rows.categorical, table[:, 1:17])
        np.testing.assert_array_equal(rows.numerical, np.float32(table[:, 17:80]))
        np.testing.assert_array_equal(rows.labels, table[:, 80:])
        parts = [prepared.load("train"), prepared.load("valid")]
        assert sum(map(len, parts)) == 1_000
        total = sum(part.numerical.astype(np.float64).sum(0) for part in parts)
        np.testing.assert_allclose(total, tables["train"][:, 17:80].sum(0), rtol=1e-6)


def test_an_infinite_number_names_the_line_of_its_file(small, tmp_path):
    files, _ = small
    joined = mtreclib(files)
    for name, place in {"nl_item_train.csv": files, "train.csv": joined}.items():
        lines = [list(line) for line in place[name]]
        lines[9][5] = "inf" if name != "train.csv" else lines[9][5]
        if name == "train.csv":
            lines[9][20] = "inf"
        source = write_files(tmp_path / name, place | {name: lines})
        with pytest.raises(UserError, match=rf"{name}, line 10: .* holds inf"):
            prepare_aliexpress(source, tmp_path / "out")
