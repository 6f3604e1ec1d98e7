"""A small prepared folder with shared and multi-valued fields, written by hand."""

from pathlib import Path

import numpy as np
import polars as pl

from pwiser_jax.data.prepared.manifest import FILE, CommonTable, Manifest, Split
from pwiser_jax.data.raw.flat import FlatSpec
from pwiser_jax.schema import CategoricalField, MultiValuedField, NumericalField, Schema

SCHEMA = Schema(
    categorical=(
        CategoricalField("item", 9),
        CategoricalField("city", 5),
        CategoricalField("hour", 24),
    ),
    numerical=(NumericalField("price"), NumericalField("age")),
    extra=("p",),
    multi_valued=(
        MultiValuedField("tags", 6, width=4),
        MultiValuedField("words", 7, width=2, pool="mean"),
        MultiValuedField("shops", 3, width=3),
    ),
    common=("city", "age", "tags", "shops"),
)
LINES = 40
ROWS = {"train": 700, "valid": 300, "test": 200}
SHARD = 256


def write_folder(folder: Path, seed: int = 0) -> Path:
    """Writes train in shards of 256 rows, as `prepare` would larger ones."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    common = pl.DataFrame(
        {
            "city": random.integers(0, 8, LINES).astype(np.int32),
            "age": random.normal(size=LINES).astype(np.float32),
            **lists(random, LINES, "tags"),
            **lists(random, LINES, "shops"),
        }
    )
    common.write_parquet(folder / "common.parquet")
    splits = {}
    for split, count in ROWS.items():
        line = random.integers(0, LINES, count)
        frame = pl.DataFrame(
            {
                "item": random.integers(0, 12, count).astype(np.int32),
                "hour": random.integers(0, 27, count).astype(np.int32),
                "price": random.normal(size=count).astype(np.float32),
                **lists(random, count, "words"),
                **labels(random, count, common["age"].to_numpy()[line]),
                "group": line.astype(np.int64) * 7,
                "time": np.arange(count),
                "p": random.random(count),
                "common": line.astype(np.int32),
            }
        )
        files = []
        for start in range(0, count, SHARD):
            files.append(f"{split}-{len(files):05}.parquet")
            frame[start : start + SHARD].write_parquet(folder / files[-1])
        sums = {name: int(frame[name].sum()) for name in SCHEMA.labels}
        splits[split] = Split(tuple(files), count, sums)
    manifest = Manifest(
        dataset="by hand",
        schema=SCHEMA,
        spec=FlatSpec(("item", "city", "hour"), ("price", "age"), extra=("p",)),
        fill={},
        splits=splits,
        common=CommonTable("common.parquet", LINES),
    )
    (folder / FILE).write_text(manifest.to_json())
    (folder / "vocabulary.parquet").touch()
    return folder


def lists(random: np.random.Generator, count: int, name: str) -> dict[str, pl.Series]:
    """Ids and weights of lists of 0 .. width values."""
    (field,) = (f for f in SCHEMA.multi_valued if f.name == name)
    lengths = random.integers(0, field.width + 1, count)
    ids = [random.integers(0, field.rows, n).tolist() for n in lengths]
    weights = [np.sort(random.random(n))[::-1].tolist() for n in lengths]
    return {
        name: pl.Series(ids, dtype=pl.List(pl.Int32)),
        f"{name}:weight": pl.Series(weights, dtype=pl.List(pl.Float32)),
    }


def labels(
    random: np.random.Generator, count: int, age: np.ndarray
) -> dict[str, pl.Series]:
    click = random.random(count) < 1 / (1 + np.exp(1 - age))
    conversion = click & (random.random(count) < 0.4)
    return {
        "click": pl.Series(click).cast(pl.Int8),
        "conversion": pl.Series(conversion).cast(pl.Int8),
    }


def expected_inputs(folder: Path, frame: pl.DataFrame) -> dict[str, np.ndarray]:
    """The inputs of prepared rows, row by row and field by field."""
    common = pl.read_parquet(folder / "common.parquet")
    rows = frame.rows(named=True)
    lines = common.rows(named=True)
    joined = [row | lines[row["common"]] for row in rows]
    ids, weights = [], []
    for row in joined:
        own_ids, own_weights = [], []
        for field in SCHEMA.multi_valued:
            missing = [0] * (field.width - len(row[field.name]))
            own_ids += row[field.name] + missing
            own_weights += row[f"{field.name}:weight"] + missing
        ids.append(own_ids)
        weights.append(own_weights)
    return {
        "categorical": np.array(
            [[row[f.name] for f in SCHEMA.categorical] for row in joined], np.int32
        ),
        "numerical": np.array(
            [[row[f.name] for f in SCHEMA.numerical] for row in joined], np.float32
        ),
        "multi_ids": np.array(ids, np.int32),
        "multi_weights": np.array(weights, np.float32),
    }
