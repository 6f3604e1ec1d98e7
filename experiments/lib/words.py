"""Sentences about numbers."""

import polars as pl

from pwiser_jax.metrics import Interval, mean_interval
from pwiser_jax.reports.tables import difference_text


def text_of(interval: Interval, number: str = ".4f") -> str:
    """+0.0021 [−0.0003, +0.0045]."""
    return difference_text(interval.value, interval.low, interval.high, number)


def average_difference(
    results: pl.DataFrame,
    task: str,
    loss: str = "pwiser",
    baseline: str = "bce",
    metric: str = "auc",
) -> Interval:
    """Mean of loss - baseline over all cells of a task, with its interval over seeds.

    Args:
        results: the long form of `reports.tables`; every dataset and model in it counts
            the same.

    Returns:
        The t interval over the seeds' means, each over the cells of that seed.
    """
    own = results.filter((pl.col("task") == task) & pl.col(metric).is_finite())
    keys = ["dataset", "model", "seed"]
    a, b = (own.filter(pl.col("loss") == name) for name in (loss, baseline))
    pairs = a.join(b, on=keys, suffix="_baseline")
    gaps = pairs.select(
        "seed", (pl.col(metric) - pl.col(f"{metric}_baseline")).alias("gap")
    )
    means = gaps.group_by("seed").agg(pl.col("gap").mean()).sort("seed")
    return mean_interval(means["gap"].to_numpy())


def verdict(tests: pl.DataFrame) -> str:
    """How many cells of `reports.tables.significance` stand, and on whose side."""
    sure = tests.filter(pl.col("p_holm") < 0.05)["difference"]
    return (
        f"Of {tests.height} cells, {(sure > 0).sum()} are better and "
        f"{(sure < 0).sum()} worse after Holm's correction."
    )


def listed(parts: list[str]) -> str:
    """a; b; c"""
    return "; ".join(parts)
