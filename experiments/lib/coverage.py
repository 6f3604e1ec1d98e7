"""Coverage of the confidence intervals, in simulations with a known truth.

    python -m experiments.all --only significance   runs them, as part of its report

`coverage` draws many datasets and returns the share of intervals that hold the truth. A
share of .95 over 2,000 datasets has a standard error of .005.
"""

import numpy as np
from scipy.special import ndtr

from pwiser_jax.metrics import (
    Interval,
    auc_difference,
    auc_interval,
    bootstrap_auc_difference,
    mean_interval,
)

SEPARATION = 1.0  # of positives and negatives, in deviations of the scores
BETWEEN = 0.6  # share of a score's variance that is its group's
NOISE = 1.2  # deviation of the second score around the first
GROUP_ROWS = 12
POSITIVES = 0.15

Drawn = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def clustered_scores(rng: np.random.Generator, groups: int) -> Drawn:
    """Labels, two scores and groups of rows whose labels and scores depend on them.

    Groups differ in the rate of positives, and the scores of a group share an offset:
    as if users had different click rates, which the model knows in part.
    """
    sizes = rng.poisson(GROUP_ROWS, groups)
    group = np.repeat(np.arange(groups), sizes)
    rates = rng.beta(2, 2 * (1 - POSITIVES) / POSITIVES, groups)
    labels = rng.random(len(group)) < rates[group]
    offset = np.sqrt(BETWEEN) * rng.normal(size=groups)[group]
    noise = np.sqrt(1 - BETWEEN) * rng.normal(size=len(group))
    a = SEPARATION * labels + offset + noise
    b = a + NOISE * rng.normal(size=len(group))
    return labels, a, b, group


def true_aucs() -> tuple[float, float]:
    """The AUC of both scores over infinitely many groups.

    Two rows of different groups have scores that differ by a normal variable.
    """
    first = ndtr(SEPARATION / np.sqrt(2))
    second = ndtr(SEPARATION / np.sqrt(2 * (1 + NOISE**2)))
    return float(first), float(second)


def covers(interval: Interval, truth: float) -> bool:
    return interval.low <= truth <= interval.high


def coverage(
    worlds: int = 2000, groups: int = 150, draws: int = 200, seed: int = 0
) -> dict[str, float]:
    """The share of worlds whose 95% interval holds the truth, by interval.

    Args:
        worlds: number of simulated datasets; the slow bootstrap uses a tenth of them.
        groups: number of groups of each dataset.
        draws: number of bootstrap draws.
        seed: seed of the simulations and the bootstrap.

    One interval treats rows as independent, to show the error of ignoring the groups.
    """
    rng = np.random.default_rng(seed)
    auc_a, auc_b = true_aucs()
    hits: dict[str, list[bool]] = {}

    def note(name: str, interval: Interval, truth: float) -> None:
        hits.setdefault(name, []).append(covers(interval, truth))

    for world in range(worlds):
        labels, a, b, group = clustered_scores(rng, groups)
        note("AUC, by group", auc_interval(labels, a, group), auc_a)
        note("AUC, rows as if independent", auc_interval(labels, a), auc_a)
        gap = auc_difference(labels, a, b, group)
        note("AUC difference, by group", gap, auc_a - auc_b)
        if world % 10 == 0:
            drawn = bootstrap_auc_difference(labels, a, b, group, draws=draws)
            note("AUC difference, bootstrap by group", drawn, auc_a - auc_b)
        for runs in (5, 20):
            # Differences over seeds are approximately normal.
            seeds = mean_interval(rng.normal(0.001, 0.002, runs))
            note(f"mean over {runs} seeds, t", seeds, 0.001)
    return {name: float(np.mean(covered)) for name, covered in hits.items()}
