"""Splits prepared rows by day: train up to a day, test on the next."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl

from pwiser_jax.data.datasets.funnel import DAYS, funnel
from pwiser_jax.data.datasets.kuairand import prepare_kuairand
from pwiser_jax.data.datasets.table import prepare_table
from pwiser_jax.data.prepared.folder import (
    new_prepared,
    refuse_empty,
    shard_names,
    write_shards,
)
from pwiser_jax.data.prepared.manifest import (
    FILE,
    Split,
    read_manifest,
    write_manifest,
)
from pwiser_jax.data.raw.frames import scan_parquet
from pwiser_jax.data.raw.hashing import fraction, hash_integers

VALID = 0.2  # share of the last train day's groups that are kept for validation
SHIFT_DAY = 7  # of the synthetic stream, counted from 0
SECONDS = 86_400
SCHEMA = """\
categorical: [user_id, segment, city, device, item_id, category, brand, hour, position]
numerical: [activity, budget, price, picture, reviews, affinity, visits, discount]
labels: {click: click, conversion: conversion}
group: session_id
time: day
split: {by: time, train_until: 2, valid_until: 3}
min_count: 2
"""

# Of the growing stream: each night's table says which rows are which.
GROWING = """\
categorical: [user_id, segment, city, device, item_id, category, brand, hour, position]
numerical: [activity, budget, price, picture, reviews, affinity, visits, discount]
labels: {click: click, conversion: conversion}
group: session_id
split: {by: column, column: part}
"""


def growing(rows: int, seed: int = 0) -> pl.DataFrame:
    """The funnel's 14 days, where half of users and items come on later days.

    `rows` are drawn; a row whose user or item has not come yet is left out.
    """
    users, items = max(rows // 60, 50), max(rows // 200, 50)
    stream = funnel(
        rows,
        click_rate=0.2,
        conversion_rate=0.1,
        seed=seed,
        users=users,
        items=items,
    ).with_columns((pl.col("second") // SECONDS).alias("day"))
    for name in ("user_id", "item_id"):
        number = pl.col(name).cast(pl.Int64)
        come = pl.when(number % 2 == 0).then(0).otherwise(number // 2 % DAYS)
        stream = stream.filter(pl.col("day") >= come)
    return stream


def night(stream: pl.DataFrame, first: int, day: int) -> pl.DataFrame:
    """Days `first` to `day` as train and valid, and the day after as test: `part`.

    A part of the last day's sessions is validation, as in `deal`.
    """
    groups = fraction(hash_integers(stream["session_id"].to_numpy(), day))
    at, valid = pl.col("day"), pl.Series(groups < VALID)
    part = (
        pl.when(at == day + 1)
        .then(pl.lit("test"))
        .when((at == day) & valid)
        .then(pl.lit("valid"))
        .otherwise(pl.lit("train"))
    )
    return stream.with_columns(part.alias("part")).filter(at.is_between(first, day + 1))


def prepare_shift(output: Path, rows: int, seed: int = 0) -> None:
    """The funnel's 14 days with other rates from SHIFT_DAY on, encoded by days 0 to 2.

    Exposures, users and items do not change; clicks fall from 20% to 12% of
    exposures, conversions rise from 10% to 20% of clicks.
    """
    options: dict[str, Any] = {
        "seed": seed,
        "users": max(rows // 60, 50),
        "items": max(rows // 200, 50),
    }
    before = funnel(rows, click_rate=0.2, conversion_rate=0.1, **options)
    after = funnel(rows, click_rate=0.12, conversion_rate=0.2, **options)
    day = pl.col("second") // SECONDS
    stream = pl.concat(
        [before.filter(day < SHIFT_DAY), after.filter(day >= SHIFT_DAY)]
    ).with_columns(day.alias("day"))
    raw = output.with_name(f"{output.name}_raw")
    raw.mkdir(parents=True, exist_ok=True)
    stream.write_parquet(raw / "stream.parquet")
    (raw / "schema.yaml").write_text(SCHEMA, encoding="utf-8")
    prepare_table(raw / "stream.parquet", output, schema=raw / "schema.yaml")


def prepare_days(source: Path, output: Path) -> None:
    """KuaiRand-Pure, encoded by its first three days here, conversion = like."""
    prepare_kuairand(
        source, output, train_until="2022-04-27", valid_until="2022-04-28", min_count=5
    )


def days_of(folder: Path) -> list[int]:
    """The days of all rows, in order; the manifest's time column counts them."""
    return sorted(_rows(folder).select("time").unique().collect()["time"])


def deal(folder: Path, output: Path, first: int, day: int) -> None:
    """Writes days first .. day as train and the day after as test.

    A part of the last train day is validation: whole groups, chosen by a hash. Fields
    and vocabularies are those of `folder`.

    Raises:
        UserError: a class is missing in train or validation.
    """
    if (output / FILE).is_file():
        return
    manifest = read_manifest(folder)
    rows = _rows(folder).collect()
    groups = fraction(hash_integers(rows["group"].to_numpy(), day))
    time = rows["time"].to_numpy()
    valid = (time == day) & (groups < VALID)
    parts = {
        "train": (time >= first) & (time <= day) & ~valid,
        "valid": valid,
        "test": time == day + 1,
    }
    counts = {}
    with new_prepared(output) as place:
        vocabulary = folder / "vocabulary.parquet"
        (place / vocabulary.name).write_bytes(vocabulary.read_bytes())
        for split, chosen in parts.items():
            part = rows.filter(pl.Series(chosen))
            write_shards(part.lazy(), place, split)
            sums = {name: int(part[name].sum()) for name in manifest.schema.labels}
            counts[split] = Split(shard_names(split, part.height), part.height, sums)
        refuse_empty(manifest.spec, counts)
        note = {"first_day": first, "last_train_day": day}
        noted = replace(manifest, splits=counts, options={**manifest.options, **note})
        write_manifest(place, noted)


def _rows(folder: Path) -> pl.LazyFrame:
    files = [
        folder / name
        for split in read_manifest(folder).splits.values()
        for name in split.files
    ]
    return scan_parquet(files)
