"""Copies of prepared data with added clicks or shuffled conversions."""

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
from pwiser_jax.errors import UserError

# int[N, L] -> int[N, L]; the rows of a split, in their order.
Change = Callable[[np.ndarray], np.ndarray]


def accidental_clicks(folder: Path, output: Path, share: float, seed: int = 0) -> None:
    """Adds clicks at random, in train only, to rows without a click.

    Such rows are equally likely, and none converts. Features do not change,
    those counted from clicks included; valid and test stay clean.

    Args:
        folder: a prepared folder.
        output: the new folder; an existing one is not changed.
        share: share of accidental clicks in train, 0 or more and below 1.
        seed: seed of the choice. A larger share keeps the clicks of a smaller one.

    Raises:
        UserError: there are too few rows without a click.
    """

    def change(labels: np.ndarray) -> np.ndarray:
        quiet = np.flatnonzero(labels[:, 0] == 0)
        count = round(share / (1 - share) * (len(labels) - len(quiet)))
        if count > len(quiet):
            raise UserError(
                f"{folder} has {len(quiet)} train rows without a click; accidental "
                f"clicks of {share:.0%} would need {count}"
            )
        chosen = np.random.default_rng(seed).permutation(quiet)[:count]
        changed = labels.copy()
        changed[chosen, 0] = 1
        return changed

    note = {"accidental_clicks": share, "accidental_clicks_seed": seed}
    relabelled(folder, output, ("train",), change, note)


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
