"""A small table, its prepared folder and a small run, made through the command line."""

from pathlib import Path

import numpy as np
import polars as pl
import yaml

from pwiser_jax.cli import main

TINY = (
    "--model.embedding_dim=4",
    "--model.expert=[8]",
    "--model.experts=2",
    "--model.tower=[4]",
    "--train.epochs=1",
    "--data.batch_size=128",
)
SCHEMA = {
    "categorical": ["user", "item"],
    "numerical": ["price"],
    "labels": {"click": "clicked", "conversion": "bought"},
    "group": "user",
    "split": {"by": "column", "column": "part"},
}


def rows(count: int = 600, seed: int = 0) -> pl.DataFrame:
    """Exposures with labels; the last fifths are the valid and test splits."""
    rng = np.random.default_rng(seed)
    user, item = rng.integers(0, 40, count), rng.integers(0, 20, count)
    price = rng.normal(size=count).round(3)
    click = rng.random(count) < 1 / (1 + np.exp(-price))
    bought = click & (rng.random(count) < 0.3)
    part = np.repeat(
        ["train", "valid", "test"], [3 * count // 5, count // 5, count // 5]
    )
    return pl.DataFrame(
        {
            "user": user,
            "item": [f"item {i}" for i in item],
            "price": price,
            "clicked": click.astype(int),
            "bought": bought.astype(int),
            "part": part,
        }
    )


def prepare(
    folder: Path, frame: pl.DataFrame, *options: str, name: str = "prepared"
) -> Path:
    """The frame as folder/rows.csv, prepared with `SCHEMA` into folder/name."""
    frame.write_csv(folder / "rows.csv")
    (folder / "schema.yaml").write_text(yaml.safe_dump(SCHEMA))
    command = ["prepare", "table", f"--source={folder / 'rows.csv'}"]
    command += [f"--schema={folder / 'schema.yaml'}", f"--output={folder / name}"]
    assert main([*command, *options]) == 0
    return folder / name


def train(data: Path, run: Path, *options: str) -> Path:
    """A run of one epoch."""
    command = ["train", f"--data.path={data}", f"--output={run}", *TINY, *options]
    assert main(command) == 0
    return run
