"""Own tables at paths of fsspec give the folder that a local copy gives."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from pwiser_jax.cli import main
from tests.inference import small


@pytest.fixture
def memory() -> Iterator[Any]:
    fsspec = pytest.importorskip("fsspec", reason="paths such as s3:// need fsspec")
    system = fsspec.filesystem("memory")
    yield system
    system.store.clear()


def prepared(folder: Path, source: str, name: str) -> int:
    schema = folder / "schema.yaml"
    schema.write_text(yaml.safe_dump(small.SCHEMA))
    options = [f"--source={source}", f"--schema={schema}", f"--output={folder / name}"]
    return main(["prepare", "table", *options])


def test_a_remote_folder_of_parts_is_prepared_as_a_local_one(
    memory: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame, parts = small.rows(), tmp_path / "clicks"
    for at, day in enumerate(("day=1", "day=2")):
        path = parts / day / "part-0.parquet"
        path.parent.mkdir(parents=True)
        frame[at * 300 : at * 300 + 300].write_parquet(path)
        with memory.open(f"/bucket/clicks/{day}/part-0.parquet", "wb") as file:
            file.write(path.read_bytes())
    assert prepared(tmp_path, str(parts), "local") == 0
    assert prepared(tmp_path, "memory://bucket/clicks/", "remote") == 0
    for name in ("manifest.json", "train-00000.parquet", "vocabulary.parquet"):
        local, remote = (tmp_path / each / name for each in ("local", "remote"))
        assert local.read_bytes() == remote.read_bytes()
    assert {p.name for p in tmp_path.iterdir()} == {
        *("clicks", "local", "remote", "schema.yaml")
    }

    bad = frame.with_columns(clicked=pl.lit(7, pl.Int64))[:300]
    with memory.open("/bucket/clicks/day=2/part-0.parquet", "wb") as file:
        bad.write_parquet(file)
    capsys.readouterr()
    assert prepared(tmp_path, "memory://bucket/clicks", "bad") == 2
    said = capsys.readouterr().err
    assert "memory://bucket/clicks/day=2/part-0.parquet, row 1" in said
    assert prepared(tmp_path, "memory://bucket/nothing", "bad") == 2
    assert "memory://bucket/nothing: no such file" in capsys.readouterr().err
    assert prepared(tmp_path, "nosuch://bucket/clicks", "bad") == 2
    assert "nosuch://bucket/clicks cannot be read: " in capsys.readouterr().err


def test_without_fsspec_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "fsspec", None)
    assert prepared(tmp_path, "s3://bucket/clicks", "out") == 2
    said = capsys.readouterr().err
    assert "s3://bucket/clicks needs fsspec, which is not installed" in said
    assert "pwiser-jax[remote]" in said
    assert said.count("\n") == 1
