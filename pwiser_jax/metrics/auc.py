"""The area under the ROC curve: exact, with intervals, by group.

AUC = P(score of a positive > score of a negative), a tie counting half. It is a ratio
of two integers here, so its value does not depend on the order of the rows.

DeLong's components are the same probability seen from one row: for a positive, the
share of negatives below it; for a negative, the share of positives above it. The
variance of AUC is that of these components. Rows of one user or search are not
independent: their components are summed by group, which then is the sampling unit.

References:
    DeLong, DeLong, Clarke-Pearson (1988), https://doi.org/10.2307/2531595
    Obuchowski (1997), clustered data, https://doi.org/10.2307/2533958
"""

from dataclasses import dataclass

import numpy as np
import scipy  # scipy.special is loaded where it is used: 0.2 s
from numpy.typing import ArrayLike, NDArray

from pwiser_jax.metrics.checks import binary_rows, group_codes
from pwiser_jax.metrics.order import score_order
from pwiser_jax.metrics.significance import UNDEFINED, Interval


def auc(labels: ArrayLike, scores: ArrayLike) -> float:
    """Area under the ROC curve, exact.

        AUC = (#{s_p > s_n} + #{s_p = s_n} / 2) / (P N)

    Args:
        labels: 0 or 1, [rows].
        scores: f[rows]; only their order matters.

    Returns:
        AUC, or NaN where a class has no rows.

    Raises:
        ValueError: shapes differ, a label is not 0 or 1, a score is NaN.
    """
    positive, scores = binary_rows(labels, scores, "scores")
    above, below = np.sort(scores[positive]), np.sort(scores[~positive])
    if not len(above) or not len(below):
        return np.nan
    twice = np.searchsorted(below, above, "left").sum(dtype=np.int64)
    twice += np.searchsorted(below, above, "right").sum(dtype=np.int64)
    return int(twice) / (2 * len(above) * len(below))


def auc_interval(
    labels: ArrayLike,
    scores: ArrayLike,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Interval:
    """AUC with an interval by DeLong, or by Obuchowski where rows come in groups.

    With v the components minus the AUC, P_g and N_g their sums over the positives and
    the negatives of group g, m and n the counts of both, and G_P, G_N, G the counts of
    groups with a positive, with a negative, and of all groups:

        var = G_P / (G_P - 1) Σ P_g² / m² + G_N / (G_N - 1) Σ N_g² / n²
              + G / (G - 1) 2 Σ P_g N_g / (m n)

    The interval is normal on the scale of log(AUC / (1 - AUC)): it stays within (0, 1)
    and, unlike AUC ± z se, holds its level where AUC is high and positives are few.

    Args:
        labels: 0 or 1, [rows].
        scores: f[rows].
        groups: integers or texts [rows], the unit of sampling; None: each row is one.
        level: coverage of the interval, between 0 and 1.

    Returns:
        The exact AUC, its interval and standard error. All NaN where a class is
        missing; no interval (NaN) where a class lies in a single group or the variance
        is not positive, as for AUC 1.

    Raises:
        ValueError: as `auc`, and for groups of another shape.
    """
    positive, scores = binary_rows(labels, scores, "scores")
    if positive.all() or not positive.any():
        return UNDEFINED
    value, wins = _wins(positive, scores)
    error = _standard_error(value, wins, positive, groups)
    if np.isnan(error):
        return Interval(value, np.nan, np.nan, np.nan)
    centre = scipy.special.logit(value)
    half = scipy.special.ndtri((1 + level) / 2) * error / (value * (1 - value))
    low, high = scipy.special.expit(centre - half), scipy.special.expit(centre + half)
    return Interval(value, float(low), float(high), error)


def auc_difference(
    labels: ArrayLike,
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    groups: ArrayLike | None = None,
    level: float = 0.95,
) -> Interval:
    """AUC of scores a minus AUC of scores b on the same rows, with a normal interval.

    The variance is that of `auc_interval`, of the differences of the components: rows
    that are easy or hard for both models cancel.

    Args:
        labels: 0 or 1, [rows].
        scores_a, scores_b: f[rows] each.
        groups: as in `auc_interval`.
        level: coverage of the interval, between 0 and 1.

    Returns:
        Difference, interval and standard error; NaN as in `auc_interval`, and no
        interval where both order all rows alike.

    Raises:
        ValueError: as `auc_interval`.
    """
    positive, scores_a = binary_rows(labels, scores_a, "scores_a")
    _, scores_b = binary_rows(labels, scores_b, "scores_b")
    if positive.all() or not positive.any():
        return UNDEFINED
    value_a, wins = _wins(positive, scores_a)
    value_b, wins_b = _wins(positive, scores_b)
    wins -= wins_b
    value = value_a - value_b
    error = _standard_error(value, wins, positive, groups)
    half = float(scipy.special.ndtri((1 + level) / 2)) * error
    return Interval(value, value - half, value + half, error)


@dataclass(frozen=True)
class GroupedAuc:
    """Mean AUC within groups, and the number of groups and rows in it."""

    value: float
    groups: int
    rows: int


def grouped_auc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> GroupedAuc:
    """GAUC: the mean of AUC within each group, weighted by the group's rows.

    Groups without both classes have no AUC and are left out.

    Args:
        labels: 0 or 1, [rows].
        scores: f[rows].
        groups: integers or texts [rows].

    Returns:
        GAUC (NaN without any group that has both classes), the count of those groups
        and of the rows in them.

    Raises:
        ValueError: as `auc_interval`.
    """
    positive, scores = binary_rows(labels, scores, "scores")
    codes = group_codes(groups, len(scores))
    sizes = np.bincount(codes)
    positives = np.bincount(codes[positive], minlength=len(sizes))
    both = (positives > 0) & (positives < sizes)
    if not both.any():
        return GroupedAuc(np.nan, 0, 0)
    sizes, positives = sizes[both], positives[both]
    kept = both[codes]
    codes, scores, positive = codes[kept], scores[kept], positive[kept]
    order = score_order(scores)
    scores = scores[order]
    # Rows by group and score, as integers whose last bit is the label.
    run = np.zeros(len(scores), np.int64)
    np.cumsum(scores[1:] != scores[:-1], out=run[1:])
    rows = codes[order] * (run[-1] + 1)
    rows += run
    rows <<= 1
    rows |= positive[order]
    rows.sort()
    seen = _cumulated((rows & 1) == 0)
    rows >>= 1
    runs = _run_starts(rows[1:] != rows[:-1])
    # A run is rows of one group and one score. Twice the negatives that its positives
    # beat: all before it in the group twice, and those in it once.
    group_ends = np.cumsum(sizes)
    run_group = np.searchsorted(group_ends, runs[:-1], "right")
    before_group = seen[group_ends - sizes][run_group]
    in_run = np.diff(runs) - np.diff(seen[runs])
    twice = in_run * (seen[runs[:-1]] + seen[runs[1:]] - 2 * before_group)
    first_run = np.searchsorted(runs, group_ends - sizes)
    within = np.add.reduceat(twice, first_run) / (2 * positives * (sizes - positives))
    value = float(np.dot(within, sizes / sizes.sum()))
    return GroupedAuc(value, len(sizes), int(sizes.sum()))


def _wins(
    positive: NDArray[np.bool_], scores: NDArray[np.floating]
) -> tuple[float, NDArray[np.float64]]:
    """Exact AUC, and the numerator of each row's component, f64[rows].

    Twice the negatives below a positive, or the positives above a negative, a tie
    counting half: integers, whose sums are exact in any order.
    """
    order = score_order(scores)
    ordered = scores[order]
    changes = ordered[1:] != ordered[:-1]
    del ordered
    positive = positive[order]
    # Half the memory where twice the number of rows fits.
    integer = np.int32 if len(scores) < 2**30 else np.int64
    seen = _cumulated(positive, integer)
    m = int(seen[-1])
    n = len(scores) - m
    # Of each run of equal scores: positives and negatives below it, and up to its end.
    runs = _run_starts(changes).astype(integer, copy=False)
    p_below, p_upto = seen[runs[:-1]], seen[runs[1:]]
    del seen
    positives = p_upto - p_below
    p_upto += p_below
    below = runs[:-1] + runs[1:] - p_upto
    value = int(np.dot(positives, below.astype(np.int64))) / (2 * m * n)
    above = np.subtract(2 * m, p_upto, out=p_upto)
    if len(runs) <= len(scores):
        run = np.zeros(len(scores), integer)
        np.cumsum(changes, out=run[1:])
        below, above = below[run], above[run]
    wins = np.empty(len(scores))
    wins[order] = np.where(positive, below, above)
    return value, wins


def _standard_error(
    value: float,
    wins: NDArray[np.float64],
    positive: NDArray[np.bool_],
    groups: ArrayLike | None,
) -> float:
    """Square root of the variance in `auc_interval`; NaN where it has no estimate.

    Args:
        value: AUC, or the difference of two.
        wins: as `_wins`, or the difference of two.
        positive, groups: as in `auc_interval`.
    """
    rows, m = len(positive), int(positive.sum())
    n = rows - m
    if groups is None:
        # Each row is a group: no products of a positive's and a negative's component.
        sums_p, sums_n = (
            wins[rows] / (2 * other) - value
            for rows, other in ((positive, n), (~positive, m))
        )
        with_p, with_n, both = m, n, 0.0
    else:
        codes = group_codes(groups, rows)
        counts = np.bincount(codes)
        counts_p = np.bincount(codes[positive], minlength=len(counts))
        counts_n = counts - counts_p
        sums = np.bincount(codes, weights=wins)
        sums_p = np.bincount(
            codes[positive], weights=wins[positive], minlength=len(counts)
        )
        sums_n = (sums - sums_p) / (2 * m) - value * counts_n
        sums_p = sums_p / (2 * n) - value * counts_p
        with_p, with_n, used = map(np.count_nonzero, (counts_p, counts_n, counts))
        both = used / max(used - 1, 1) * float(np.dot(sums_p, sums_n)) / (m * n)
    if with_p < 2 or with_n < 2:
        return np.nan
    variance = with_p / (with_p - 1) * float(np.dot(sums_p, sums_p)) / m**2
    variance += with_n / (with_n - 1) * float(np.dot(sums_n, sums_n)) / n**2
    variance += 2 * both
    return float(np.sqrt(variance)) if variance > 0 else np.nan


def _cumulated(
    flags: NDArray[np.bool_], integer: type[np.integer] = np.int64
) -> NDArray[np.integer]:
    """Flags set before each position, and in all at the end: int[rows + 1]."""
    counts = np.zeros(len(flags) + 1, integer)
    np.cumsum(flags, out=counts[1:])
    return counts


def _run_starts(changes: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Where runs of equal rows start, and the end of the last: int64[runs + 1]."""
    inner = np.flatnonzero(changes) + 1
    return np.concatenate(([0], inner, [len(changes) + 1]))
