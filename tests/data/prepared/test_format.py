"""A prepared folder written by another engine, from the page of its format alone."""

import importlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pwiser_jax.inference.predict import predict
from pwiser_jax.training.loop import train
from tests.training.helpers import small_config

PAGE = Path(__file__).resolve().parents[3] / "docs" / "prepared.md"


def write_parquet(path: Path, columns: dict[str, tuple[str, Any]]) -> None:
    """Columns as (type, values), by pyarrow; by Polars where that is absent."""
    try:
        arrow: Any = importlib.import_module("pyarrow")
    except ModuleNotFoundError:
        kinds = {
            "int8": pl.Int8,
            "int32": pl.Int32,
            "int64": pl.Int64,
            "float32": pl.Float32,
            "text": pl.String,
            "list of int32": pl.List(pl.Int32),
            "list of float32": pl.List(pl.Float32),
        }
        series = [pl.Series(n, v, kinds[kind]) for n, (kind, v) in columns.items()]
        pl.DataFrame(series).write_parquet(path)
        return

    def typed(kind: str) -> Any:
        if kind.startswith("list of "):
            return arrow.list_(typed(kind.removeprefix("list of ")))
        return arrow.string() if kind == "text" else getattr(arrow, kind)()

    arrays = {n: arrow.array(v, typed(kind)) for n, (kind, v) in columns.items()}
    importlib.import_module("pyarrow.parquet").write_table(arrow.table(arrays), path)


def rows(count: int, labels: dict[str, int], rng: Any) -> dict[str, tuple[str, Any]]:
    """Rows with so many clicks and conversions among them."""
    tags = [rng.integers(0, 10, k).tolist() for k in rng.integers(0, 4, count)]
    order = rng.permutation(count)
    return {
        "user": ("int32", rng.integers(0, 43, count).tolist()),
        "item": ("int32", rng.integers(0, 23, count).tolist()),
        "price": ("float32", rng.normal(size=count).tolist()),
        "tags": ("list of int32", tags),
        "tags:weight": ("list of float32", [[1.0] * len(each) for each in tags]),
        **{n: ("int8", (order < k).astype(int).tolist()) for n, k in labels.items()},
        "group": ("int64", rng.integers(0, 90, count).tolist()),
    }


def test_a_folder_that_another_engine_wrote_is_trained_on(tmp_path: Path) -> None:
    folder, rng = tmp_path / "prepared", np.random.default_rng(0)
    folder.mkdir()
    text = PAGE.read_text().partition("```json\n")[2].partition("```")[0]
    manifest = json.loads(text)
    for split in manifest["splits"].values():
        files, counts = split["files"], split["labels"]
        for name in files:
            part = {label: count // len(files) for label, count in counts.items()}
            write_parquet(folder / name, rows(split["rows"] // len(files), part, rng))
    vocabulary = [
        (field["name"], f"{field['name']} {at}", at)
        for key in ("categorical", "multi_valued")
        for field in manifest["schema"][key]
        for at in range(field["size"])
    ]
    kinds = {"field": "text", "value": "text", "id": "int32"}
    columns = zip(kinds.items(), zip(*vocabulary, strict=True), strict=True)
    write_parquet(
        folder / "vocabulary.parquet",
        {name: (kind, list(values)) for (name, kind), values in columns},
    )
    (folder / "manifest.json").write_text(text)

    config = small_config(folder, train={"epochs": 1}, model={"name": "shared_bottom"})
    assert train(config, tmp_path / "run").stopped == "epochs"
    raw = pl.DataFrame(
        {
            "user": ["user 3", "user 99", None],
            "item": ["item 7", "item 7", "item 7"],
            "price": [1.0, None, 12.5],
            "tags": ["tags 1|tags 2", "", "tags 1"],
        }
    )
    predicted = predict(tmp_path / "run", raw)
    assert predicted.height == 3
    assert predicted["ctr"].is_between(0, 1).all()
