"""An industrial table: the synthetic funnel in the format of a shop's log.

Requests with a time stamp, hashed ids as text, names of its own, empty cells, prices
with a long tail, uninformative columns, one outcome column per label: what `pwiser
prepare table` is for. Its rows go through that command's code.
"""

from datetime import datetime
from pathlib import Path

import numpy as np
import polars as pl

from pwiser_jax.data.datasets.funnel import funnel
from pwiser_jax.data.datasets.table import prepare_table
from pwiser_jax.data.prepared.manifest import Manifest
from pwiser_jax.data.raw.hashing import hash_integers

START = datetime(2026, 3, 2)
# The funnel's 14 days from START on; the last four are validation and test.
SCHEMA = """\
categorical: [visitor, visitor_segment, geo, device_type, sku, category_path, brand,
              daypart, slot, ab_bucket, referrer]
numerical: [visitor_score, basket_mean, price, image_quality, stars, relevance, visits,
            discount, latency_ms]
labels: {click: clicked, conversion: bought}
group: request_id
time: shown_at
split: {by: time, train_until: 2026-03-11, valid_until: 2026-03-13}
min_count: 3
"""
DEVICES = ("phone", "desk", "tablet")


def write_industrial(folder: Path, rows: int, seed: int = 0) -> tuple[Path, Path]:
    """Writes log.tsv and schema.yaml; the same options give the same bytes."""
    raw = funnel(
        rows,
        seed=seed,
        click_rate=0.2,
        conversion_rate=0.1,
        users=max(rows // 60, 50),
        items=max(rows // 200, 50),
    )
    rng = np.random.default_rng(seed + 1)
    bucket, referrer = rng.integers(8, size=rows), rng.integers(40, size=rows)
    shown = pl.lit(START) + pl.duration(seconds=pl.col("second"))
    category = pl.col("category")
    log = raw.select(
        shown.dt.strftime("%Y-%m-%d %H:%M:%S").alias("shown_at"),
        _hashed("session_id", "r").alias("request_id"),
        _hashed("user_id", "v").alias("visitor"),
        pl.format("seg-{}", "segment").alias("visitor_segment"),
        pl.format("{}", "city").alias("geo"),
        pl.col("device")
        .replace_strict(range(len(DEVICES)), DEVICES, return_dtype=pl.String)
        .alias("device_type"),
        _hashed("item_id", "s").alias("sku"),
        pl.format("shop > c{} > c{}", category // 8, category).alias("category_path"),
        pl.format("{}", "brand").alias("brand"),
        (pl.col("hour") // 3).alias("daypart"),
        pl.col("position").alias("slot"),
        pl.Series("ab_bucket", bucket),
        pl.Series("referrer", [f"https://r{k}.example/" for k in referrer]),
        pl.col("activity").round(4).alias("visitor_score"),
        (20 * pl.col("budget").exp()).round(2).alias("basket_mean"),
        (10 * pl.col("price") ** 2).round(2).alias("price"),
        pl.col("picture").round(4).alias("image_quality"),
        pl.col("reviews").round(3).alias("stars"),
        pl.col("affinity").round(4).alias("relevance"),
        "visits",
        pl.col("discount").round(3),
        pl.Series("latency_ms", rng.lognormal(4, 0.6, rows).round(1)),
        pl.col("click").alias("clicked"),
        pl.col("conversion").alias("bought"),
    )
    folder.mkdir(parents=True, exist_ok=True)
    table, schema = folder / "log.tsv", folder / "schema.yaml"
    log.write_csv(table, separator="\t")
    schema.write_text(SCHEMA, encoding="utf-8")
    return table, schema


def prepare_industrial(output: Path, rows: int, seed: int = 0) -> Manifest:
    """`pwiser prepare table` of the log, which stays beside the prepared folder."""
    raw = output.with_name(f"{output.name}_raw")
    table, schema = write_industrial(raw, rows, seed)
    return prepare_table(table, output, schema=schema)


def _hashed(column: str, prefix: str) -> pl.Expr:
    """Text such as v3fa9c2d1b07e44a2: one number gives one text everywhere."""

    def texts(values: pl.Series) -> pl.Series:
        hashes = hash_integers(values.to_numpy(), len(column))
        return pl.Series(values.name, [f"{prefix}{k:016x}" for k in hashes], pl.String)

    return pl.col(column).map_batches(texts, return_dtype=pl.String)
