"""Measures of each session's ranking: NDCG and revenue at k.

Each function returns one number per session, for `mean_interval` or, for two models,
`paired_interval`. For equal scores the result is the mean over all orders of the tied
rows.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pwiser_jax.metrics.checks import group_codes

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
