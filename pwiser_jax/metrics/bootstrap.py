"""Group bootstrap, an independent check of DeLong's intervals.

`scipy.stats.bootstrap` would repeat rows and sort each draw. Here a draw is a weight
for each group, so that one sort serves all draws, and draws without one of the classes
are left out.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pwiser_jax.metrics.auc import auc
from pwiser_jax.metrics.checks import binary_rows, group_codes
from pwiser_jax.metrics.significance import UNDEFINED, Interval

# Draws whose weights are held at once: rows * BLOCK doubles.
BLOCK = 16


def bootstrap_auc_difference(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    groups: ArrayLike | None = None,
    level: float = 0.95,
    *,
    draws: int = 1000,
    seed: int = 0,
) -> Interval:
    """AUC of scores a minus AUC of scores b, with a paired bootstrap interval.

    Each draw takes G of the G groups with replacement, whole and for both scores; the
    interval holds the middle `level` of the draws' differences. `auc_difference` is the
    analytic form.

    Args:
        labels: 0 or 1, [rows].
        scores_a, scores_b: f[rows] each.
        groups: integers or texts [rows], the unit of sampling; None: each row is one.
        level: coverage of the interval, between 0 and 1.
        draws: number of draws, each O(rows) after one sort.
        seed: seed of the draws.

    Returns:
        The exact difference, the interval, and the draws' standard deviation. All NaN
        where a class is missing. Draws without one of the classes are left out.

    Raises:
        ValueError: as `auc_difference`, and for draws below 2.
    """
    positive, scores_a = binary_rows(labels, scores_a, "scores_a")
    _, scores_b = binary_rows(labels, scores_b, "scores_b")
    if draws < 2:
        raise ValueError(f"draws must be at least 2, not {draws}")
    if positive.all() or not positive.any():
        return UNDEFINED
    value = auc(positive, scores_a) - auc(positive, scores_b)
    codes = (
        np.arange(len(positive))
        if groups is None
        else group_codes(groups, len(positive))
    )
    codes = np.unique(codes, return_inverse=True)[1]
    count = int(codes.max()) + 1
    order_a, order_b = _Order(positive, scores_a), _Order(positive, scores_b)
    rng = np.random.default_rng(seed)
    differences: list[NDArray[np.float64]] = []
    for start in range(0, draws, BLOCK):
        times = rng.multinomial(
            count, np.full(count, 1 / count), min(BLOCK, draws - start)
        )
        weights = times[:, codes].astype(np.float64)
        differences.append(order_a.auc(weights) - order_b.auc(weights))
    gaps = np.concatenate(differences)
    gaps = gaps[~np.isnan(gaps)]
    if len(gaps) < 2:
        return Interval(value, np.nan, np.nan, np.nan)
    low, high = np.quantile(gaps, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), float(gaps.std(ddof=1)))


class _Order:
    """Rows sorted by score, for the AUC under many weights."""

    def __init__(
        self, positive: NDArray[np.bool_], scores: NDArray[np.floating]
    ) -> None:
        self.order = np.argsort(scores, kind="stable")
        self.positive = positive[self.order]
        ordered = scores[self.order]
        changes = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
        self.runs = np.concatenate(([0], changes))

    def auc(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """f64[D] of weights f64[D, rows]; NaN where a class weighs nothing."""
        ordered = weights[:, self.order]
        of_run = [
            np.add.reduceat(ordered * rows, self.runs, axis=1)
            for rows in (self.positive, ~self.positive)
        ]
        positive, negative = of_run
        # What lies below a run of equal scores, and half of what lies in it.
        below = np.cumsum(negative, axis=1) - negative / 2
        pairs = positive.sum(axis=1) * negative.sum(axis=1)
        with np.errstate(invalid="ignore"):
            return (positive * below).sum(axis=1) / pairs
