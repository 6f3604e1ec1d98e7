"""Paired differences of a measure over seeds: tests, texts, and what to do."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from scipy.special import stdtrit

from experiments.lib.arms import arm_title
from experiments.lib.words import effect_rows, short_text, text_of
from pwiser_jax import metrics
from pwiser_jax.metrics import Interval
from pwiser_jax.reports.tables import p_text

# Further columns, runs, head, loss, baseline.
PairedTest = tuple[Mapping[str, str], pl.DataFrame, str, str, str]
BySeed = dict[tuple[str, str], dict[int, float]]  # by (task, loss), then by seed


def paired_tests(
    comparisons: Sequence[PairedTest], metric: str | Callable[[pl.DataFrame], str]
) -> pl.DataFrame:
    """Paired differences over seeds, and p of t tests after Holm over all of them.

    Args:
        comparisons: see `PairedTest`.
        metric: the measure, or a function from runs to it.
    """
    keys = list(comparisons[0][0]) if comparisons else ["dataset"]
    names = [*keys, "task", "loss", "baseline"]
    parts = {id(part): part for _, part, *_ in comparisons}  # tables have no hash
    values = {
        key: by_seed(part, metric if isinstance(metric, str) else metric(part))
        for key, part in parts.items()
    }
    rows, p_values = [], []
    for columns, part, task, loss, baseline in comparisons:
        gaps = paired_gaps(values[id(part)], task, loss, baseline)
        gap = metrics.mean_interval(gaps)
        rows.append(
            (*columns.values(), task, loss, baseline, gap.value, gap.low, gap.high)
        )
        p_values.append(metrics.paired_test(gaps, np.zeros_like(gaps)))
    return effect_rows(names, rows).with_columns(
        pl.Series("p", p_values, pl.Float64),
        pl.Series("p_holm", metrics.holm(p_values), pl.Float64),
    )


def tests_texts(tests: pl.DataFrame) -> pl.DataFrame:
    """`paired_tests` as texts: a row a case and rival, a column a head."""
    texts = tests.with_columns(
        pl.col("task").str.to_uppercase(),
        *(pl.Series(c, [*map(arm_title, tests[c])]) for c in ("loss", "baseline")),
        pl.Series(
            "text", [difference_and_p(row) for row in tests.iter_rows(named=True)]
        ),
    )
    known = ("task", "difference", "low", "high", "p", "p_holm", "text")
    index = [name for name in tests.columns if name not in known]
    wide = texts.pivot("task", index=index, values="text", maintain_order=True)
    return wide.rename({"loss": "Arm", "baseline": "Minus"})


def difference_and_p(row: Mapping[str, Any], short: bool = False) -> str:
    """A row of `paired_tests` as a difference with its interval and p after Holm."""
    text, p = short_text(interval_of(row)) if short else gap_text(row), row["p_holm"]
    return f"{text} ({p_text(p)})" if np.isfinite(p) else text


def by_seed(part: pl.DataFrame, metric: str) -> BySeed:
    """The finite values of a measure by (task, loss) and seed."""
    rows = part.filter(pl.col(metric).is_finite())
    values: BySeed = {}
    for task, loss, seed, value in rows.select("task", "loss", "seed", metric).rows():
        values.setdefault((task, loss), {})[seed] = value
    return values


def paired_gaps(values: BySeed, task: str, loss: str, baseline: str) -> np.ndarray:
    """The differences of the seeds that both have, in the seeds' order."""
    a, b = values.get((task, loss), {}), values.get((task, baseline), {})
    return np.array([a[seed] - b[seed] for seed in sorted(a.keys() & b.keys())])


def null_rates(
    results: pl.DataFrame, metric: str, name: str, pairings: int = 2000
) -> pl.DataFrame:
    """How often tests of an arm's runs against its own of other seeds reject."""
    rng = np.random.default_rng(0)
    rows = []
    for (task,), part in results.group_by("task", maintain_order=True):
        values = part.filter(pl.col(metric).is_finite())[metric].to_numpy()
        half = len(values) // 2
        if half < 2:
            continue
        drawn = np.stack([rng.permutation(values) for _ in range(pairings)])
        gaps = drawn[:, :half] - drawn[:, half : 2 * half]
        errors = gaps.std(axis=1, ddof=1) / np.sqrt(half)
        # As `metrics.paired_test` decides, which takes one test at a time.
        limit = stdtrit(half - 1, 0.975) * errors
        rate = float((np.abs(gaps.mean(axis=1)) > limit).mean())
        rows.append((name, str(task), half, rate))
    names = ["Arm", "Task", "Pairs", "t test [%]"]
    types = {"Pairs": pl.Int64, "t test [%]": pl.Float64}
    return pl.DataFrame(rows, schema=names, schema_overrides=types, orient="row")


def gap_text(row: Mapping[str, Any]) -> str:
    """A row of `paired_tests` as a difference with its interval."""
    return text_of(interval_of(row))


def interval_of(row: Mapping[str, Any]) -> Interval:
    """The interval of a row of `paired_tests`."""
    ends = (row[name] for name in ("difference", "low", "high"))
    value, low, high = (np.nan if x is None else x for x in ends)
    return Interval(value, low, high, np.nan)


DECISION = ("If", "Best mean", "Minus BCE (p)", "So")


def decision(
    situation: str, part: pl.DataFrame, task: str, metric: str, highest: bool = True
) -> tuple[str, ...] | None:
    """What to do in a situation: a row of `decisions_table`.

    The arm with the best mean is tested against BCE, p after Holm over all arms, as it
    is the best of them. None: there are no runs of BCE or of another arm.
    """
    rows = part.filter((pl.col("task") == task) & pl.col(metric).is_finite())
    means = rows.group_by("loss", maintain_order=True).agg(pl.col(metric).mean())
    losses = means.sort(metric, descending=highest)["loss"].to_list()
    if "bce" not in losses or len(losses) < 2:
        return None
    others = [({}, part, task, loss, "bce") for loss in losses if loss != "bce"]
    tests = paired_tests(others, metric)
    best, title = losses[0], arm_title(losses[0])
    if best == "bce":
        return situation, title, "\N{EN DASH}", "use BCE: no other has a better mean"
    row = tests.filter(pl.col("loss") == best).row(0, named=True)
    sure = row["p_holm"] < 0.05
    so = f"use {title}" if sure else "undecided: no reason to leave BCE"
    return situation, title, difference_and_p(row), so


def decisions_table(rows: Sequence[tuple[str, ...] | None]) -> pl.DataFrame:
    kept = [row for row in rows if row is not None]
    return pl.DataFrame(kept, schema=dict.fromkeys(DECISION, pl.String), orient="row")
