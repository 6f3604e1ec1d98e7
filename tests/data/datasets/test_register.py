"""A dataset registered by a user's module is available on the command line."""

from collections.abc import Iterator
from pathlib import Path

import polars as pl
import pytest

from pwiser_jax.cli import main
from pwiser_jax.data.datasets import DATASETS, preparer, register_dataset
from pwiser_jax.data.prepared.folder import Prepared, write
from pwiser_jax.data.prepared.manifest import Manifest
from pwiser_jax.data.raw.flat import FlatSpec, FlatTable


def prepare_toy(output: Path, *, rows: int = 40, overwrite: bool = False) -> Manifest:
    """A toy.

    Args:
        output: the new folder.
        rows: of each split.
        overwrite: replace a prepared folder.
    """
    frame = pl.LazyFrame(
        {"kind": [k % 7 for k in range(rows)], "click": [k % 2 for k in range(rows)]}
    ).with_columns(conversion=pl.col("click") * (pl.col("kind") > 3).cast(int))
    splits = dict.fromkeys(("train", "valid", "test"), frame)
    return write(FlatTable("toy", FlatSpec(("kind",)), splits), output)


@pytest.fixture
def toy() -> Iterator[None]:
    register_dataset("toy", prepare_toy)
    yield
    del DATASETS["toy"]


def test_an_own_dataset_is_a_command(
    toy: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "toy", f"--output={tmp_path / 'out'}", "--rows=30"]) == 0
    assert "train: 30 rows, 15 clicks" in capsys.readouterr().out
    assert Prepared(tmp_path / "out").manifest.dataset == "toy"
    with pytest.raises(SystemExit):
        main(["prepare", "--help"])
    assert "A toy." in capsys.readouterr().out


def test_a_name_is_used_once(toy: None) -> None:
    register_dataset("toy", prepare_toy)
    with pytest.raises(ValueError, match="there is a dataset 'table' already"):
        register_dataset("table", prepare_toy)
    with pytest.raises(ValueError, match="use an identifier"):
        register_dataset("my data", prepare_toy)


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_has_a_function_with_help(name: str) -> None:
    function = preparer(name)
    assert function.__name__ == f"prepare_{name}"
    assert function.__doc__
