"""The cache: equals the Parquet files, is built once, and is written atomically."""

import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pwiser_jax.data.batches import cache
from pwiser_jax.data.batches.batches import (
    epoch_batches,
    epoch_order,
    sequential_batches,
)
from pwiser_jax.data.batches.cache import CacheWarning
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import read_manifest, write_manifest
from pwiser_jax.errors import UserError
from tests.data.multi_valued import expected_inputs, write_folder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prepared") / "folder")


@pytest.fixture
def folder(source: Path, tmp_path: Path) -> Path:
    """A prepared folder without a cache."""
    shutil.copytree(source, tmp_path / "folder", ignore=lambda *_: {"cache"})
    return tmp_path / "folder"


def test_rows_are_those_of_the_parquet_files(folder: Path):
    prepared = Prepared(folder)
    for split, found in prepared.manifest.splits.items():
        rows = prepared.load(split)
        frame = pl.read_parquet([folder / name for name in found.files])
        assert len(rows) == found.rows == frame.height
        expected = expected_inputs(folder, frame)
        every = rows.take(np.arange(len(rows)))
        assert set(every) == set(expected)
        for name, values in expected.items():
            assert every[name].dtype == values.dtype
            np.testing.assert_array_equal(every[name], values)
        np.testing.assert_array_equal(rows.categorical, expected["categorical"])
        np.testing.assert_array_equal(rows.numerical, expected["numerical"])
        np.testing.assert_array_equal(
            rows.labels, frame.select("click", "conversion").to_numpy()
        )
        np.testing.assert_array_equal(rows.group, frame["group"])
        np.testing.assert_array_equal(rows.time, frame["time"])
        np.testing.assert_array_equal(rows.extra["p"], frame["p"])


def test_batches_of_either_kind_join_what_rows_share(folder: Path):
    rows = Prepared(folder).load("train")
    frame = pl.read_parquet(sorted(folder.glob("train-*.parquet")))
    expected = expected_inputs(folder, frame)
    key = {"seed": 1, "epoch": 0, "min_conversions": 3}
    in_order = [np.arange(len(rows))[at : at + 64] for at in range(0, len(rows), 64)]
    shuffled = [each.indices for each in epoch_order(rows, 64, **key)]
    for batches, selected in (
        (sequential_batches(rows, 64), in_order),
        (epoch_batches(rows, 64, **key), shuffled),
    ):
        for batch, indices in zip(batches, selected, strict=True):
            for name, values in batch.inputs.items():
                real = values[batch.mask]
                np.testing.assert_array_equal(real, expected[name][indices])
                assert not values[~batch.mask].any()


def test_it_is_made_once_and_its_arrays_cannot_be_written(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    rows = Prepared(folder).load("train")
    with pytest.raises(ValueError, match="read-only"):
        rows.labels[0] = 1
    parts = {path.name for path in (folder / "cache").iterdir()}
    assert parts == {"train", "common"}
    monkeypatch.setattr(cache, "_build", None)
    again = Prepared(folder).load("train")
    np.testing.assert_array_equal(again.labels, rows.labels)


def damage_marker(part: Path) -> None:
    (part / "cache.json").write_text("{")


def damage_rows(part: Path) -> None:
    path = part / "labels.npy"
    path.write_bytes(path.read_bytes()[:-1])


def lose_an_array(part: Path) -> None:
    (part / "group.npy").unlink()


def other_rows(part: Path) -> None:
    np.save(part / "labels.npy", np.zeros((1, 2), np.int8))


@pytest.mark.parametrize(
    "damage", [damage_marker, damage_rows, lose_an_array, other_rows]
)
def test_a_damaged_cache_is_made_again(folder: Path, damage):
    before = np.array(Prepared(folder).load("valid").labels)
    damage(folder / "cache" / "valid")
    np.testing.assert_array_equal(Prepared(folder).load("valid").labels, before)
    assert sorted(os.listdir(folder / "cache")) == ["common", "valid"]


def flip(path: Path, byte: int) -> None:
    """Flips one bit of a file, where a read-only mapping stays as it was."""
    data = bytearray(path.read_bytes())
    data[byte] ^= 64
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(
    "name", ["labels", "group", "categorical", "numerical", "time"]
)
def test_a_flipped_bit_is_seen_at_the_first_use(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    """A label of 64 was used; a row's other column is as wrong."""
    before = Prepared(folder).load("valid")
    path = folder / "cache" / "valid" / f"{name}.npy"
    flip(path, path.stat().st_size - 100)
    monkeypatch.setattr(cache, "_checked", set())  # as another process
    with pytest.warns(CacheWarning, match=r"valid is damaged \(rows \d+ to \d+\)"):
        after = Prepared(folder).load("valid")
    for one, other in [(before.labels, after.labels), (before.group, after.group)]:
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(before.categorical, after.categorical)
    np.testing.assert_array_equal(before.numerical, after.numerical)


def test_of_a_large_array_another_sample_is_checked_each_time(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(cache, "CHUNK", 10)
    Prepared(folder).load("train")
    monkeypatch.setattr(cache, "CHECKED", 1400 // 5)  # of labels, every fifth chunk
    flip(folder / "cache" / "train" / "labels.npy", -1)
    warned = 0
    for _ in range(60):
        monkeypatch.setattr(cache, "_checked", set())
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            Prepared(folder).load("train")
        if said:
            warned += 1
            flip(folder / "cache" / "train" / "labels.npy", -1)
    # 60 draws of 1 in 5: 2 or fewer, or 28 or more, in fewer than 1 of 10,000 tries.
    assert 2 < warned < 28


def test_a_shard_that_is_not_the_one_prepare_wrote_is_refused(folder: Path):
    write_manifest(folder, read_manifest(folder))
    Prepared(folder).load("valid")
    shutil.rmtree(folder / "cache")
    change(folder, "valid-00000.parquet", p=pl.col("p") + 1)
    with pytest.raises(UserError, match=r"valid-00000\.parquet is damaged: it is not"):
        Prepared(folder).load("valid")


def test_a_cache_of_other_data_is_made_again(folder: Path):
    Prepared(folder).load("valid")
    manifest = folder / "manifest.json"
    tree = json.loads(manifest.read_text())
    tree["options"]["changed"] = True
    manifest.write_text(json.dumps(tree))
    valid = folder / "valid-00000.parquet"
    frame = pl.read_parquet(valid)
    frame.with_columns(p=pl.col("p") + 1).write_parquet(valid)
    found = Prepared(folder).load("valid").extra["p"]
    np.testing.assert_array_equal(found[: len(frame)], frame["p"] + 1)


KILLED = """
import sys, time
from pathlib import Path
import numpy as np
from pwiser_jax.data.batches import cache
from pwiser_jax.data.prepared.folder import Prepared
def slowly(frame, schema):
    print("writing", flush=True)
    time.sleep(60)
cache.beside_arrays = slowly
Prepared(Path(sys.argv[1])).load("train")
"""


def test_a_kill_leaves_no_half_cache(folder: Path):
    command = [sys.executable, "-c", KILLED, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "writing\n"
    time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    left = [path.name for path in (folder / "cache").iterdir()]
    assert any(name.startswith(".train.partial-") for name in left)
    assert "train" not in left
    rows = Prepared(folder).load("train")
    assert len(rows) == Prepared(folder).manifest.splits["train"].rows
    assert sorted(os.listdir(folder / "cache")) == ["common", "train"]


def _labels(folder: Path) -> float:
    return float(Prepared(folder).load("train").labels.sum())


def test_processes_that_start_together_make_one_cache(folder: Path):
    context = multiprocessing.get_context("spawn")
    with context.Pool(2) as pool:
        found = pool.map(_labels, [folder] * 4)
    assert len(set(found)) == 1
    assert sorted(os.listdir(folder / "cache")) == ["common", "train"]


def test_a_closed_folder_has_its_cache_in_the_users(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    # Root may write anywhere: the test of the mode is what stands for a closed folder.
    monkeypatch.setattr(cache.os, "access", lambda path, mode: False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    with pytest.warns(CacheWarning, match=r"cannot be written; its cache lies in"):
        rows = Prepared(folder).load("valid")
    assert len(rows)
    assert not (folder / "cache").exists()
    assert (tmp_path / "home" / "pwiser_jax").is_dir()
    Prepared(folder).load("valid")  # without a warning, once it is there


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(frame, schema):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(cache, "beside_arrays", full)
    with pytest.raises(UserError, match=r"train rows cannot be written: No space"):
        Prepared(folder).load("train")
    assert os.listdir(folder / "cache") == ["common"]


def change(folder: Path, name: str, **columns: pl.Expr) -> None:
    path = folder / name
    pl.read_parquet(path).with_columns(**columns).write_parquet(path)


def test_files_that_do_not_fit_the_manifest_are_named(folder: Path):
    for name, columns, message in [
        ("valid-00000.parquet", {"common": pl.lit(10**6)}, "outside common.parquet"),
        ("common.parquet", {"city": pl.lit("x")}, "common columns are not those"),
        ("common.parquet", {"tags": pl.col("tags").list.head(1)}, "differ in length"),
        (
            "common.parquet",
            {name: pl.concat_list(*[name] * 9) for name in ("tags", "tags:weight")},
            "more than 4 values",
        ),
    ]:
        whole = (folder / name).read_bytes()
        change(folder, name, **columns)
        with pytest.raises(UserError, match=message):
            Prepared(folder).load("valid")
        (folder / name).write_bytes(whole)
        shutil.rmtree(folder / "cache", ignore_errors=True)
    frame = pl.read_parquet(folder / "valid-00001.parquet").drop("common")
    frame.write_parquet(folder / "valid-00001.parquet")
    with pytest.raises(UserError, match="valid rows are missing or damaged"):
        Prepared(folder).load("valid")
