"""Effects of a loss over paired seeds, as tables and in sentences."""

from collections.abc import Sequence
from itertools import product

import numpy as np
import polars as pl

from pwiser_jax.metrics import Interval, mean_interval
from pwiser_jax.reports.tables import difference_text, number_text

Comparison = tuple[str, str]  # a loss and its baseline


def text_of(interval: Interval, number: str = ".4f") -> str:
    """+0.0021 [−0.0003, +0.0045]."""
    return difference_text(interval.value, interval.low, interval.high, number)


def short_text(interval: Interval) -> str:
    """+0.0021 ±0.0024, for an interval that is symmetric."""
    number = number_text(interval.value, "+.4f")
    half = (interval.high - interval.low) / 2
    return number if np.isnan(half) else f"{number} \N{PLUS-MINUS SIGN}{half:.4f}"


def average_difference(
    results: pl.DataFrame,
    task: str,
    loss: str = "pwiser",
    baseline: str = "bce",
    metric: str = "auc",
) -> Interval:
    """Mean of loss - baseline over datasets and models, with its interval over seeds.

    Args:
        results: the long form of `reports.tables`; every dataset and model in it has
            the same weight.

    Returns:
        The t interval over the seeds' means, each over the runs of that seed.
    """
    return average_differences(results, task, loss, baseline, [metric])[0]


def average_differences(
    results: pl.DataFrame, task: str, loss: str, baseline: str, metrics: Sequence[str]
) -> list[Interval]:
    """`average_difference` of each of several measures."""
    keys = ["dataset", "model", "seed"]
    rows = results.filter(pl.col("task") == task).select(*keys, "loss", *metrics)
    a, b = (rows.filter(pl.col("loss") == name) for name in (loss, baseline))
    pairs = a.join(b, on=keys, suffix="_baseline")
    gaps = pairs.select("seed", *(pl.col(m) - pl.col(f"{m}_baseline") for m in metrics))
    finite = (pl.col(m).filter(pl.col(m).is_finite()).mean() for m in metrics)
    means = gaps.group_by("seed").agg(finite).sort("seed")
    return [mean_interval(means[m].drop_nulls().to_numpy()) for m in metrics]


def effects(
    results: pl.DataFrame, comparisons: Sequence[Comparison] = (("pwiser", "bce"),)
) -> pl.DataFrame:
    """The effect of each loss by dataset and task: the rows of `plots.differences`."""
    datasets, tasks = (
        results[name].unique(maintain_order=True) for name in ("dataset", "task")
    )
    rows = []
    for dataset, task, (loss, baseline) in product(datasets, tasks, comparisons):
        part = results.filter(pl.col("dataset") == dataset)
        gap = average_difference(part, task, loss, baseline)
        rows.append((dataset, task, loss, gap.value, gap.low, gap.high))
    return effect_rows(["dataset", "task", "loss"], rows)


def effects_by_dataset(results: pl.DataFrame) -> pl.DataFrame:
    """PWiseR minus BCE as texts: one row per dataset, one column per task."""
    tasks = results["task"].unique(maintain_order=True)
    return pl.DataFrame(
        [
            {"Dataset": dataset}
            | {task.upper(): text_of(average_difference(part, task)) for task in tasks}
            for (dataset,), part in results.group_by("dataset", maintain_order=True)
        ]
    )


def effect_rows(keys: Sequence[str], rows: Sequence[tuple]) -> pl.DataFrame:
    """Rows of names, value, low and high; null where not defined."""
    names = ["difference", "low", "high"]
    types = dict.fromkeys(names, pl.Float64)
    schema = [*keys, *names]
    table = pl.DataFrame(rows, schema=schema, schema_overrides=types, orient="row")
    return table.with_columns(pl.col(names).fill_nan(None))


def line_rows(rows: Sequence[tuple]) -> pl.DataFrame:
    """The table of `plots.interval_lines`: panel, line, x, value, low, high."""
    names = ["panel", "line", "x", "value", "low", "high"]
    types = dict.fromkeys(names[3:], pl.Float64)
    table = pl.DataFrame(rows, schema=names, schema_overrides=types, orient="row")
    return table.with_columns(pl.col("low", "high").fill_nan(None))


def effects_table(
    results: pl.DataFrame,
    comparisons: Sequence[Comparison],
    tasks: Sequence[str] | None = None,
    metric: str = "auc",
) -> pl.DataFrame:
    """One row per comparison, one column per task: the mean over datasets as text."""
    tasks = tasks or results["task"].unique(maintain_order=True).to_list()
    several = len({baseline for _, baseline in comparisons}) > 1
    return pl.DataFrame(
        [
            {"Loss": f"{loss} minus {baseline}" if several else loss}
            | {
                task.upper(): text_of(
                    average_difference(results, task, loss, baseline, metric)
                )
                for task in tasks
            }
            for loss, baseline in comparisons
        ]
    )


def change(name: str, gap: Interval, number: str = ".4f") -> str:
    """raises CTR AUC (+0.0021 [+0.0003, +0.0039])."""
    verb = "does not clearly change"
    if gap.low > 0:
        verb = "raises"
    elif gap.high < 0:
        verb = "lowers"
    return f"{verb} {name} ({text_of(gap, number)})"


def changes(
    results: pl.DataFrame,
    tasks: Sequence[str],
    loss: str = "pwiser",
    baseline: str = "bce",
) -> str:
    """raises CTR AUC (...), lowers CTCVR AUC (...) and raises CVR AUC (...)."""
    return joined(
        [
            change(
                f"{task.upper()} AUC", average_difference(results, task, loss, baseline)
            )
            for task in tasks
        ]
    )


def counted(count: int, noun: str) -> str:
    """1 seed, 6 seeds."""
    return f"{count} {noun}{'s' if count != 1 else ''}"


def joined(parts: Sequence[str]) -> str:
    """a, b and c."""
    if not parts:
        return ""
    *first, last = parts
    return f"{', '.join(first)} and {last}" if first else last


def after_holm(tests: pl.DataFrame) -> str:
    """How many differences of `reports.tables.significance` are significant."""
    sure = tests.filter(pl.col("p_holm") < 0.05)["difference"]
    return (
        f"{(sure > 0).sum()} of {tests.height} are significantly better and "
        f"{(sure < 0).sum()} worse after Holm's correction"
    )
