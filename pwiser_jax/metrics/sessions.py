"""Measures of each session's ranking: AUC, NDCG and revenue at k.

Each function returns one number per session, for `mean_interval` or, for two models,
`paired_interval`. For equal scores the result is the mean over all orders of the tied
rows.
"""

import numpy as np
import scipy  # scipy.stats is loaded where it is used: half a second
from numpy.typing import ArrayLike, NDArray

from pwiser_jax.metrics.checks import group_codes
from pwiser_jax.metrics.significance import UNDEFINED, Interval

Floats = NDArray[np.float64]


def session_ndcg(
    gains: ArrayLike, scores: ArrayLike, groups: ArrayLike, k: int | None = None
) -> Floats:
    """NDCG@k of each session.

        DCG = Σ_{r <= k} gain of the row at place r / log2(r + 1),  NDCG = DCG / max DCG

    Args:
        gains: f[rows], at least 0: labels, levels or values.
        scores: f[rows]; only their order within a session matters.
        groups: integers or texts [rows], the session of each row.
        k: number of top places; None: all.

    Returns:
        f64[sessions], sessions in sorted order; NaN for a session without a gain.

    Raises:
        ValueError: shapes differ, a score is NaN, a gain is negative or not finite, or
            k is below 1.
    """
    gains, scores, codes = _checked(gains, scores, groups, k)

    def discount(places: NDArray[np.int64]) -> Floats:
        return (places < (k or np.inf)) / np.log2(places + 2)

    best = _sums_by_place(gains, gains, codes, discount)
    achieved = _sums_by_place(gains, scores, codes, discount)
    return np.divide(achieved, best, out=np.full_like(best, np.nan), where=best > 0)


def session_revenue(
    values: ArrayLike, scores: ArrayLike, groups: ArrayLike, k: int
) -> Floats:
    """Revenue@k of each session: the sum of the values of its k top-ranked rows.

    Args:
        values: f[rows], at least 0: the price of a conversion, 0 for other rows.
        scores, groups, k: as in `session_ndcg`.

    Returns:
        f64[sessions], sessions in sorted order.

    Raises:
        ValueError: as `session_ndcg`.
    """
    values, scores, codes = _checked(values, scores, groups, k)
    return _sums_by_place(values, scores, codes, lambda places: (places < k) * 1.0)


def session_auc(labels: ArrayLike, scores: ArrayLike, groups: ArrayLike) -> Floats:
    """AUC of each session; weighted by rows, their mean is `grouped_auc`.

    Args:
        labels: 0 or 1, [rows].
        scores, groups: as in `session_ndcg`.

    Returns:
        f64[sessions], sessions in sorted order; NaN for a session without both labels.

    Raises:
        ValueError: as `session_ndcg`, or a label is not 0 or 1.
    """
    positive, scores, codes = _checked(labels, scores, groups, None)
    if ((positive != 0) & (positive != 1)).any():
        raise ValueError("labels must be 0 or 1")
    ones, zeros = np.bincount(codes, positive), np.bincount(codes, 1 - positive)
    # The lowest score has rank 1.
    ranks = _sums_by_place(positive, -scores, codes, lambda places: places + 1.0)
    pairs, wins = ones * zeros, ranks - ones * (ones + 1) / 2
    return np.divide(wins, pairs, out=np.full_like(wins, np.nan), where=pairs > 0)


def gauc_interval(
    labels: ArrayLike, scores: ArrayLike, groups: ArrayLike, level: float = 0.95
) -> Interval:
    """GAUC with an interval over sessions.

        G = Σ n_s AUC_s / Σ n_s,   se² = S / (S - 1) Σ n_s² (AUC_s - G)² / (Σ n_s)²

    of the S sessions with both labels, n_s their rows: a ratio of means, linearised,
    with Student's t of S - 1 degrees of freedom.

    Args:
        labels, scores, groups: as in `session_auc`.
        level: coverage of the interval, between 0 and 1.

    Returns:
        One session has a value and no interval (NaN); none has neither.

    Raises:
        ValueError: as `session_auc`.
    """
    each = session_auc(labels, scores, groups)
    rows = np.bincount(np.unique(np.asarray(groups), return_inverse=True)[1])
    defined = ~np.isnan(each)
    each, rows = each[defined], rows[defined]
    sessions = len(each)
    if not sessions:
        return UNDEFINED
    share = rows / rows.sum()
    value = float(share @ each)
    if sessions == 1:
        return Interval(value, np.nan, np.nan, np.nan)
    variance = sessions / (sessions - 1) * np.sum((share * (each - value)) ** 2)
    error = float(np.sqrt(variance))
    half = error * float(scipy.stats.t.ppf((1 + level) / 2, sessions - 1))
    return Interval(value, value - half, value + half, error)


def _sums_by_place(gains: Floats, scores: Floats, codes: NDArray, discount) -> Floats:
    """Σ gain * discount(place) by session; places count from 0, best score first."""
    order = np.lexsort((-scores, codes))
    gains, scores, codes = gains[order], scores[order], codes[order]
    sizes = np.bincount(codes)
    starts = np.cumsum(sizes) - sizes
    discounts = discount(np.arange(len(codes)) - starts[codes])
    # Rows of equal scores share the mean of their places' discounts.
    new_run = np.ones(len(codes), bool)
    new_run[1:] = (codes[1:] != codes[:-1]) | (scores[1:] != scores[:-1])
    run = np.cumsum(new_run) - 1
    mean = np.bincount(run, discounts) / np.bincount(run)
    return np.bincount(codes, gains * mean[run]).astype(np.float64)


def _checked(
    gains: ArrayLike, scores: ArrayLike, groups: ArrayLike, k: int | None
) -> tuple[Floats, Floats, NDArray]:
    gains, scores = np.asarray(gains, np.float64), np.asarray(scores, np.float64)
    if gains.ndim != 1 or gains.shape != scores.shape:
        raise ValueError(
            f"gains and scores must be vectors of one length, not {gains.shape} and "
            f"{scores.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError(f"row {int(np.argmax(np.isnan(scores)))} has NaN for a score")
    wrong = ~(np.isfinite(gains) & (gains >= 0))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise ValueError(
            f"gains must be finite and at least 0, row {row} has {gains[row]}"
        )
    if k is not None and k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    codes = group_codes(groups, len(gains))
    return gains, scores, np.unique(codes, return_inverse=True)[1]
