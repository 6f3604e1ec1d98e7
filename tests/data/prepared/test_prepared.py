"""Prepared folders: the same bytes twice, whole or absent, and read back as written."""

import dataclasses
import hashlib
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pwiser_jax.data.prepared.folder import DataWarning, Prepared, write
from pwiser_jax.data.prepared.manifest import (
    Manifest,
    SourceFile,
    encoding_hash,
    is_prepared,
    read_manifest,
    refuse_other_data,
    rows_hash,
)
from pwiser_jax.data.raw.flat import FlatSpec
from pwiser_jax.data.raw.hashing import group_hash
from pwiser_jax.errors import UserError
from pwiser_jax.version import __version__
from tests.data.prepared.tables import LABELS, SPEC, flat

# The SHA-256 of "abc": FIPS 180-2, appendix B.1.
ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_input_gives_the_same_bytes(tmp_path: Path):
    # More rows than a row group, and than a block that Polars works on at a time.
    for name in ("first", "second"):
        write(flat(400_000), tmp_path / name)
    first = contents(tmp_path / "first")
    assert set(first) == {
        *("train-00000.parquet", "valid-00000.parquet", "test-00000.parquet"),
        *("vocabulary.parquet", "manifest.json"),
    }
    assert first == contents(tmp_path / "second")


def test_rows_come_back_as_they_were(tmp_path: Path):
    source = flat()
    write(source, tmp_path / "out")
    prepared = Prepared(tmp_path / "out")
    train = source.splits["train"].collect()
    for name, split in source.splits.items():
        raw, rows = split.collect(), prepared.load(name)
        assert len(rows) == raw.height
        assert rows.categorical.dtype == np.int32
        assert rows.categorical.flags.c_contiguous
        kind = raw["kind"].to_numpy()
        expected = np.where((kind < 0) | (kind >= 4), 5, kind)
        np.testing.assert_array_equal(rows.categorical[:, 1], expected)
        scaled = (raw["x"] - train["x"].mean()) / train["x"].std(ddof=0)
        np.testing.assert_allclose(rows.numerical[:, 0], scaled, rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(
            rows.labels, raw.select(LABELS.values()).cast(pl.Int8).to_numpy()
        )
        np.testing.assert_array_equal(
            rows.group.view(np.uint64), group_hash(raw["user"].cast(pl.Int64))
        )
        np.testing.assert_array_equal(rows.time, raw["day"].to_physical())
        np.testing.assert_array_equal(rows.extra["p"], raw["p"])
    counts = train["user"].value_counts()
    kept = set(counts.filter(pl.col("count") >= 3)["user"])
    assert prepared.schema.field_sizes == (len(kept), 4)
    rare = train["user"].is_in(list(kept)).to_numpy()
    field = prepared.schema.categorical[0]
    found = prepared.load("train").categorical[:, 0]
    np.testing.assert_array_equal(found < field.size, rare)
    np.testing.assert_array_equal(found == field.rare, ~rare)


def test_row_weights_come_back_and_change_nothing_else(tmp_path: Path):
    weighted = flat(spec=dataclasses.replace(SPEC, weight="p", extra=()))
    write(weighted, tmp_path / "weighted")
    write(flat(), tmp_path / "plain")
    prepared, plain = Prepared(tmp_path / "weighted"), Prepared(tmp_path / "plain")
    assert prepared.schema.weight
    assert not plain.schema.weight
    for name, split in weighted.splits.items():
        rows = prepared.load(name)
        weight = split.collect()["p"].cast(pl.Float32)
        assert rows.weight is not None
        assert rows.weight.dtype == np.float32
        np.testing.assert_array_equal(rows.weight, weight)
        assert plain.load(name).weight is None
        np.testing.assert_array_equal(rows.categorical, plain.load(name).categorical)
    assert "weight" in pl.read_parquet_schema(
        tmp_path / "weighted" / "test-00000.parquet"
    )


@pytest.mark.parametrize("bad", [-0.5, None, float("nan"), float("inf"), 1e31])
def test_row_weights_are_not_negative_and_their_sums_finite(
    tmp_path: Path, bad: float | None
):
    source = flat(spec=dataclasses.replace(SPEC, weight="p", extra=()))
    train = (
        source.splits["train"]
        .with_row_index("at")
        .with_columns(p=pl.when(pl.col("at") == 6).then(bad).otherwise("p"))
    )
    splits = {**source.splits, "train": train}
    with pytest.raises(
        UserError, match=r"^train, row 7: column 'p' .*from 0 to 1e\+30"
    ):
        write(dataclasses.replace(source, splits=splits), tmp_path / "out")


def test_the_encoder_of_a_folder_encodes_as_the_folder_was(tmp_path: Path):
    source = flat()
    write(source, tmp_path / "out")
    encoder = Prepared(tmp_path / "out").encoder
    stored = pl.read_parquet(tmp_path / "out" / "valid-00000.parquet")
    raw = source.splits["valid"]
    assert encoder.transform(raw).collect().equals(stored)
    features = raw.drop(*LABELS.values(), "day", "p")
    found = encoder.transform(features, with_labels=False).collect().drop("group")
    assert found.equals(stored.select("user", "kind", "x"))


def test_a_vocabulary_can_be_empty_or_absent(tmp_path: Path):
    for spec in (FlatSpec(("user",), min_count=10**6), FlatSpec((), ("x",))):
        spec = dataclasses.replace(spec, labels=LABELS)
        write(flat(spec=spec), tmp_path / "out", overwrite=True)
        prepared = Prepared(tmp_path / "out")
        rows = prepared.load("train")
        assert rows.categorical.shape == (2000, len(spec.categorical))
        assert rows.time is None
        raw = flat().splits["test"]
        again = prepared.encoder.transform(raw, first_row=2500).collect()
        assert again.equals(pl.read_parquet(tmp_path / "out" / "test-00000.parquet"))


def test_the_manifest(tmp_path: Path):
    raw = tmp_path / "log.csv"
    raw.write_bytes(b"abc")
    source = flat(
        sources=(raw,),
        dropped={"buy_without_cart_dropped": 3},
        options={"until": date(2022, 5, 3), "schema": raw, "parts": ("a", 2)},
    )
    manifest = write(source, tmp_path / "out")
    text = (tmp_path / "out" / "manifest.json").read_text()
    assert str(tmp_path) not in text
    assert text.endswith("}\n")
    tree = json.loads(text)
    assert text == json.dumps(tree, indent=2, sort_keys=True) + "\n"
    assert tree["dataset"] == "own"
    assert tree["version"] == __version__
    assert tree["options"] == {
        "until": "2022-05-03",
        "schema": "log.csv",
        "parts": ["a", 2],
    }
    assert tree["dropped"] == {"buy_without_cart_dropped": 3}
    assert tree["sources"] == [
        {
            "name": "log.csv",
            "bytes": 3,
            "sha256": ABC,
        }
    ]
    train = source.splits["train"].collect()
    assert tree["splits"]["train"] == {
        "files": ["train-00000.parquet"],
        "rows": 2000,
        "labels": {name: int(train[column].sum()) for name, column in LABELS.items()},
    }
    read = read_manifest(tmp_path / "out")
    assert read.schema == manifest.schema
    assert read.spec == dataclasses.replace(SPEC, kinds={"user": "number"})
    assert list(read.spec.labels) == list(LABELS)
    assert read.splits == manifest.splits
    assert list(read.splits["train"].labels) == list(LABELS)
    assert Manifest.from_json(read.to_json()) == read


def test_an_empty_test_split_is_a_warning(tmp_path: Path):
    source = flat()
    splits = {**source.splits, "test": source.splits["test"].head(0)}
    with pytest.warns(DataWarning, match="the test split is empty"):
        write(dataclasses.replace(source, splits=splits), tmp_path / "a")
    del splits["test"]
    with pytest.warns(DataWarning, match="the test split is empty"):
        write(dataclasses.replace(source, splits=splits), tmp_path / "b")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert not (tmp_path / "a" / "test-00000.parquet").exists()
    with pytest.raises(UserError, match="has no test rows"):
        Prepared(tmp_path / "a").load("test")


@pytest.mark.parametrize("name", ["train", "valid"])
@pytest.mark.parametrize(
    ("kept", "message"),
    [
        (pl.lit(False), "split has no rows"),
        (~pl.col("bought"), r"split has no row with buy 1 \(column 'bought'"),
        (pl.col("clicked"), r"split has no row with click 0 \(column 'clicked'"),
    ],
)
def test_train_and_valid_need_both_values_of_each_label(
    tmp_path: Path, name: str, kept: pl.Expr, message: str
):
    source = flat()
    splits = {**source.splits, name: source.splits[name].filter(kept)}
    with pytest.raises(UserError, match=f"the {name} {message}"):
        write(dataclasses.replace(source, splits=splits), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_labels_are_checked_once_more(tmp_path: Path):
    source = flat()
    bad = source.splits["test"].with_columns(bought=pl.lit(True))
    with pytest.raises(UserError, match=r"^test, row \d+: 'bought' is 1 but"):
        write(
            dataclasses.replace(source, splits={**source.splits, "test": bad}),
            tmp_path / "out",
        )


def test_a_bad_value_in_a_later_split_leaves_nothing(tmp_path: Path):
    source = flat()
    bad = source.splits["test"].with_columns(pl.lit("x").alias("kind"))
    with pytest.raises(UserError, match=r"^test, row 1: column 'kind' holds 'x'"):
        write(
            dataclasses.replace(source, splits={**source.splits, "test": bad}),
            tmp_path / "deep" / "out",
        )
    assert list((tmp_path / "deep").iterdir()) == []


def test_folders_with_other_data_are_left_alone(tmp_path: Path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    (tmp_path / "file").touch()
    for overwrite in (False, True):
        with pytest.raises(UserError, match="mine holds other data"):
            write(flat(), tmp_path / "mine", overwrite=overwrite)
        with pytest.raises(UserError, match="file is a file"):
            write(flat(), tmp_path / "file", overwrite=overwrite)
    assert sorted(os.listdir(tmp_path)) == ["file", "mine"]


@pytest.mark.parametrize(
    "entry",
    [
        *("thesis.tex", "cache/notes.txt", "cache/train/thesis.npz", "old/a.png"),
        *("cache/thesis", "cache/train/thesis.npy", "cache/thesis/labels.npy"),
        "inspect/thesis.png",
    ],
)
def test_overwriting_refuses_a_folder_with_a_foreign_entry(tmp_path: Path, entry: str):
    out = tmp_path / "out"
    write(flat(), out)
    Prepared(out).load("train")
    (out / entry).parent.mkdir(exist_ok=True)
    (out / entry).write_text("mine")
    before = {path: path.stat().st_mtime for path in out.rglob("*")}
    named = "old" if entry.startswith("old") else entry.removesuffix("/labels.npy")
    with pytest.raises(UserError, match=rf"holds other data \({named}\)"):
        write(flat(), out, overwrite=True)
    assert {path: path.stat().st_mtime for path in out.rglob("*")} == before


def test_overwriting_refuses_a_manifest_that_is_not_ours(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "manifest.json").write_text('{"name": "A web app", "icons": []}')
    with pytest.raises(UserError, match=r"holds other data \(manifest\.json\)"):
        write(flat(), out, overwrite=True)
    assert os.listdir(out) == ["manifest.json"]


def test_a_folder_that_was_read_and_inspected_can_be_replaced(tmp_path: Path):
    out = tmp_path / "out"
    write(flat(), out)
    Prepared(out).load("train", "valid")
    (out / "cache" / ".train.partial-01ab").mkdir()
    (out / "inspect").mkdir()
    (out / "inspect" / "sizes.png").touch()
    write(flat(), out, overwrite=True)
    assert not (out / "cache").exists()


def test_a_cache_does_not_replace_what_is_not_its_own(tmp_path: Path):
    out = tmp_path / "out"
    write(flat(), out)
    (out / "cache" / "train").mkdir(parents=True)
    (out / "cache" / "train" / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"cache, but holds other data \(thesis\.tex"):
        Prepared(out).load("train")
    assert (out / "cache" / "train" / "thesis.tex").exists()


def test_two_that_start_together_make_one_folder(tmp_path: Path):
    """One wins or both in turn; neither breaks the other's files."""
    out = tmp_path / "out"
    failures: list[str] = []

    def prepare() -> None:
        try:
            write(flat(), out, overwrite=True)
        except UserError as error:
            failures.append(str(error))

    threads = [threading.Thread(target=prepare) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(failures) < 4
    assert all("is being written by another process" in said for said in failures)
    assert os.listdir(tmp_path) == ["out"]
    assert len(Prepared(out).load("train")) == 2000


def test_a_start_between_the_two_renames_of_another_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The old folder has been moved away, and the new one is not there yet."""
    out = tmp_path / "out"
    write(flat(dataset="old"), out)
    rename, said = Path.rename, []

    def other() -> None:
        try:
            write(flat(dataset="other"), out, overwrite=True)
        except UserError as error:
            said.append(str(error))

    thread = threading.Thread(target=other)

    def slow(path: Path, target: Path) -> Path:
        moved = rename(path, target)
        if path == out and not thread.is_alive():
            thread.start()
            time.sleep(0.5)
            assert not out.exists()
        return moved

    monkeypatch.setattr(Path, "rename", slow)
    write(flat(dataset="new"), out, overwrite=True)
    thread.join()
    assert read_manifest(out).dataset == ("new" if said else "other")
    assert os.listdir(tmp_path) == ["out"]
    assert len(Prepared(out).load("train")) == 2000


@pytest.mark.parametrize("name", ["prep[1]", "prep*", "pre?", "{a}", "a b", "$x"])
def test_a_name_is_no_pattern(tmp_path: Path, name: str):
    """Of the neighbours, which the name would match as a pattern, nothing is read."""
    for neighbour in ("prep1", "prep2", "pren"):
        write(flat(900), tmp_path / neighbour)
    out = tmp_path / name
    (tmp_path / f".{name}.partial-1-h-0").mkdir()
    write(flat(), out)
    prepared = Prepared(out)
    assert [len(prepared.load(s)) for s in ("train", "valid")] == [2000, 500]
    assert prepared.encoder.values["user"].len() > 0
    write(flat(1200), out, overwrite=True)
    assert len(Prepared(out).load("train")) == 800
    assert len(Prepared(tmp_path / "prep1").load("train")) == 600


def test_encoding_and_rows_have_hashes_of_their_own(tmp_path: Path):
    source = flat()
    for name in ("a", "b"):
        write(source, tmp_path / name)
    fewer = {**source.splits, "test": source.splits["test"].head(100)}
    write(dataclasses.replace(source, splits=fewer), tmp_path / "rows")
    renamed = {
        name: split.with_columns(user="x" + pl.col("user"))
        for name, split in source.splits.items()
    }
    write(dataclasses.replace(source, splits=renamed), tmp_path / "ids")
    a, b, rows, ids = (tmp_path / name for name in ("a", "b", "rows", "ids"))
    assert encoding_hash(a) == encoding_hash(b) == encoding_hash(rows)
    assert encoding_hash(ids) != encoding_hash(a)
    assert rows_hash(a) == rows_hash(b)
    assert len({rows_hash(folder) for folder in (a, rows, ids)}) == 3
    # A folder of an earlier version has the same hash, from its files.
    tree = json.loads((b / "manifest.json").read_text())
    del tree["files"]
    (b / "manifest.json").write_text(json.dumps(tree))
    assert rows_hash(b) == rows_hash(a)

    run = tmp_path / "run"
    (run / "data").mkdir(parents=True)
    for name in ("manifest.json", "vocabulary.parquet"):
        (run / "data" / name).write_bytes((a / name).read_bytes())
    refuse_other_data(run, b)
    refuse_other_data(run, rows, rows=False)
    with pytest.raises(UserError, match=r"holds other rows than .*--data"):
        refuse_other_data(run, rows)
    with pytest.raises(UserError, match="with other fields or vocabularies"):
        refuse_other_data(run, ids, rows=False)
    # An earlier version's run keeps no hashes of the rows.
    (run / "data" / "manifest.json").write_text(json.dumps(tree))
    refuse_other_data(run, a)
    with pytest.raises(UserError, match="holds other rows"):
        refuse_other_data(run, rows)


def test_prepared_files_are_known_by_their_folder_and_by_their_mark(tmp_path: Path):
    write(flat(), tmp_path / "out")
    shard = tmp_path / "out" / "test-00000.parquet"
    copied = tmp_path / "copy[1].parquet"
    copied.write_bytes(shard.read_bytes())
    raw = tmp_path / "raw.parquet"
    flat().splits["test"].collect().write_parquet(raw)
    assert is_prepared(shard)
    assert is_prepared(copied)
    assert not is_prepared(raw)
    assert not is_prepared(tmp_path / "nowhere.parquet")
    # A folder of an earlier version has no marks, but a manifest.
    pl.read_parquet(shard).write_parquet(shard)
    assert is_prepared(shard)
    # A manifest of something else says nothing of the files beside it.
    (tmp_path / "manifest.json").write_text('{"name": "A web app"}')
    assert not is_prepared(raw)


def test_overwriting(tmp_path: Path):
    out = tmp_path / "out"
    out.mkdir()
    write(flat(), out)
    before = contents(out)
    with pytest.raises(UserError, match=r"is a prepared folder already.*--overwrite"):
        write(flat(), out)
    unfit = flat(spec=dataclasses.replace(SPEC, numerical=("nowhere",)))
    with pytest.raises(UserError, match="'nowhere'"):
        write(unfit, out, overwrite=True)
    assert contents(out) == before
    write(flat(dataset="another"), out, overwrite=True)
    assert read_manifest(out).dataset == "another"
    assert os.listdir(tmp_path) == ["out"]


def test_a_raw_file_is_hashed_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    part = mmap.ALLOCATIONGRANULARITY
    monkeypatch.setattr("pwiser_jax.data.prepared.manifest.MAPPED", part)
    for size in (0, 1, part, 2 * part + 7):
        path = tmp_path / "raw.csv"
        path.write_bytes(bytes(range(256)) * (size // 256 + 1))
        os.truncate(path, size)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        assert SourceFile.of(path) == SourceFile("raw.csv", size, digest)


def test_an_interrupt_leaves_nothing(tmp_path: Path):
    def interrupt(values: pl.Series) -> pl.Series:
        raise KeyboardInterrupt

    # Sources are hashed last, when all rows are written.
    class Interrupting(type(tmp_path)):
        def open(self, *args: Any, **options: Any):
            interrupt(pl.Series())

    with pytest.raises(KeyboardInterrupt):
        write(flat(sources=(Interrupting("log.csv"),)), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


SCRIPT = """
import sys
import threading
import time
import time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pwiser_jax.data.prepared.folder import write
from tests.data.prepared.tables import flat

class Endless(type(Path())):
    def open(self, *args, **options):
        print("writing", flush=True)
        time.sleep(600)

write(flat(sources=(Endless("log.csv"),)), Path(sys.argv[2]))
"""


def test_what_a_killed_run_left_is_cleaned_and_a_running_one_is_not(tmp_path: Path):
    out = tmp_path / "out"
    command = [sys.executable, "-c", SCRIPT, str(Path(__file__).parents[3]), str(out)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"writing\n"
        assert len(os.listdir(tmp_path)) == 1
        said = rf"is being written by another process \({other.pid} on \S+; "
        with pytest.raises(UserError, match=said):
            write(flat(), out)
        other.send_signal(signal.SIGKILL)
        other.wait()
    assert len(os.listdir(tmp_path)) == 1
    with pytest.raises(UserError, match="out: no such folder"):
        Prepared(out)
    write(flat(), out)
    assert os.listdir(tmp_path) == ["out"]


def test_a_kill_between_the_two_renames_loses_nothing(tmp_path: Path):
    out = tmp_path / "out"
    write(flat(), out)
    old = contents(out)
    out.rename(tmp_path / ".out.replaced-0123")
    with pytest.raises(UserError, match="the train split has no rows"):
        write(dataclasses.replace(flat(), splits={}), out, overwrite=True)
    assert contents(out) == old
    assert os.listdir(tmp_path) == ["out"]


FULL = """
import sys, resource
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from pwiser_jax.errors import UserError
from pwiser_jax.data.prepared.folder import write
from tests.data.prepared.tables import flat
source = flat(100_000)
if sys.argv[3]:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[3]),) * 2)
try:
    write(source, Path(sys.argv[2]))
except UserError as error:
    print(error)
"""


def fill(folder: Path, limit: str, *before: str) -> str:
    command = [sys.executable, "-c", FULL, str(Path(__file__).parents[3]), "", limit]
    command[4] = str(folder / "out")
    return subprocess.run(
        [*before, *command], capture_output=True, text=True, check=True
    ).stdout


def test_a_file_that_cannot_grow(tmp_path: Path):
    said = fill(tmp_path, "200000")
    assert said == (
        f"{tmp_path / 'out'} could not be written: File too large; "
        "nothing of it is left\n"
    )
    assert os.listdir(tmp_path) == []


def test_a_full_disk(tmp_path: Path):
    mount = f"mount -t tmpfs -o size=300k tmpfs {tmp_path}"
    own = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-ec"]
    try:
        subprocess.run([*own, mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this user may not mount a small tmpfs")
    said = fill(tmp_path, "", *own, f'{mount}; "$@"; ls -A {tmp_path}', "sh")
    assert said == (
        f"{tmp_path / 'out'} could not be written: No space left on device; "
        "nothing of it is left\n"
    )


def test_a_damaged_folder_says_so(tmp_path: Path):
    write(flat(), tmp_path)
    valid = tmp_path / "valid-00000.parquet"
    whole = valid.read_bytes()
    for damage in (whole[:-9], b"", None):
        if damage is None:
            valid.unlink()
        else:
            valid.write_bytes(damage)
        with pytest.raises(UserError, match="the valid rows are missing or damaged"):
            Prepared(tmp_path).load("valid")
    valid.write_bytes((tmp_path / "test-00000.parquet").read_bytes())
    pl.read_parquet(valid).head(7).write_parquet(valid)
    with pytest.raises(UserError, match="valid has 7 rows, the manifest says 500"):
        Prepared(tmp_path).load("valid")
    with pytest.raises(UserError, match="no split 'dev'"):
        Prepared(tmp_path).load("dev")
    vocabulary = tmp_path / "vocabulary.parquet"
    values = pl.read_parquet(vocabulary)
    values.with_columns(value=pl.col("value").reverse()).write_parquet(vocabulary)
    with pytest.raises(UserError, match=r"vocabulary\.parquet is missing or damaged"):
        _ = Prepared(tmp_path).encoder
    vocabulary.unlink()
    with pytest.raises(UserError, match=r"vocabulary\.parquet is missing or damaged"):
        _ = Prepared(tmp_path).encoder
    manifest = tmp_path / "manifest.json"
    text = manifest.read_text()
    for damage in (text[:-20], "[]", "{}", text.replace('"format": 1', '"format": 0')):
        manifest.write_text(damage)
        with pytest.raises(UserError, match=r"manifest\.json is damaged or of another"):
            Prepared(tmp_path)
