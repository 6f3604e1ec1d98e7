"""Copies of prepared data with shuffled conversions or other labels."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from pwiser_jax.data.prepared.folder import new_prepared, write_shard
from pwiser_jax.data.prepared.manifest import (
    FILE,
    Split,
    read_manifest,
    write_manifest,
)

# int[N, L] -> int[N, L]; the rows of a split, in their order.
Change = Callable[[np.ndarray], np.ndarray]


def shuffled_conversions(folder: Path, output: Path, seed: int = 0) -> None:
    """Shuffles the conversions among the clicked rows, so they are unpredictable.

    Every split keeps its clicks and its number of conversions; the true AUC of CVR is
    .5 for any model.
    """
    rng = np.random.default_rng(seed)

    def change(labels: np.ndarray) -> np.ndarray:
        changed = labels.copy()
        clicked = labels[:, 0] == 1
        changed[clicked, 1:] = rng.permutation(labels[clicked, 1:])
        return changed

    splits = ("train", "valid", "test")
    relabelled(folder, output, splits, change, {"shuffled_conversions": seed})


def relabelled(
    folder: Path,
    output: Path,
    splits: Sequence[str],
    change: Change,
    note: dict[str, float],
) -> None:
    """Copies a prepared folder, with changed labels in some of its splits."""
    if (output / FILE).is_file():
        return
    manifest = read_manifest(folder)
    names = list(manifest.schema.labels)
    counts = dict(manifest.splits)
    with new_prepared(output) as place:
        for path in folder.iterdir():
            if path.is_file():
                shutil.copyfile(path, place / path.name)
        for split in splits:
            files = counts[split].files
            if not files:
                continue
            shards = [pl.read_parquet(folder / name, glob=False) for name in files]
            labels = pl.concat(shard.select(names) for shard in shards)
            changed = change(labels.to_numpy())
            start = 0
            for at, shard in enumerate(shards):
                labels_of_shard = changed[start : start + shard.height]
                columns = [
                    pl.Series(name, labels_of_shard[:, k], shard.schema[name])
                    for k, name in enumerate(names)
                ]
                write_shard(shard.with_columns(columns), place, split, at)
                start += shard.height
            sums = dict(zip(names, map(int, changed.sum(axis=0)), strict=True))
            counts[split] = Split(files, len(changed), sums)
        noted = replace(manifest, splits=counts, options={**manifest.options, **note})
        write_manifest(place, noted)
