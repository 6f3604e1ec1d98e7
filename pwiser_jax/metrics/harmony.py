"""Discordance of scores with levels, and agreement of two orders."""

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy  # scipy.stats is loaded where it is used: half a second
from numpy.typing import ArrayLike

from pwiser_jax.metrics.auc import auc


@dataclass(frozen=True)
class Discordance:
    """The share of pairs in the wrong order: over all, and by (higher, lower) level."""

    share: float
    pairs: int
    by_levels: dict[tuple[int, int], float]


def discordance(levels: ArrayLike, scores: ArrayLike) -> Discordance:
    """Share of pairs of rows of different levels that the scores order wrongly.

        #{level_i > level_j, s_i < s_j} + #{level_i > level_j, s_i = s_j} / 2
        over #{level_i > level_j}

    For two levels it is 1 - AUC of the higher against the lower one. O(N log N) for
    each two levels: pairs are never listed.

    Args:
        levels: int[rows], the level of each row.
        scores: f[rows]; only their order matters.

    Returns:
        The share over all such pairs, their number, and the share by two levels; NaN
        where there is no pair.

    Raises:
        ValueError: shapes differ, a level is no integer, a score is NaN.
    """
    levels, scores = np.asarray(levels), np.asarray(scores)
    if levels.ndim != 1 or levels.shape != scores.shape:
        raise ValueError(
            f"levels and scores must be vectors of one length, not {levels.shape} and "
            f"{scores.shape}"
        )
    if len(levels) and not np.issubdtype(levels.dtype, np.integer):
        raise ValueError(f"levels must be integers, not {levels.dtype}")
    present, counts = np.unique(levels, return_counts=True)
    wrong, pairs, shares = 0.0, 0, {}
    for low, high in combinations(range(len(present)), 2):
        rows = (levels == present[low]) | (levels == present[high])
        share = 1 - auc(levels[rows] == present[high], scores[rows])
        count = int(counts[low]) * int(counts[high])
        shares[int(present[high]), int(present[low])] = share
        wrong, pairs = wrong + share * count, pairs + count
    return Discordance(wrong / pairs if pairs else np.nan, pairs, shares)


def order_agreement(a: ArrayLike, b: ArrayLike) -> float:
    """Kendall's tau-b of two scores of the same rows: 1 one order, -1 the reverse.

        (concordant - discordant pairs) / √((pairs not tied in a) (pairs not tied in b))

    O(N log N), by SciPy.

    Args:
        a, b: f[rows] each.

    Returns:
        Tau; NaN for fewer than two rows, or where all of a or of b are equal.

    Raises:
        ValueError: shapes differ, or a score is NaN.
    """
    a, b = np.asarray(a), np.asarray(b)
    if a.ndim != 1 or a.shape != b.shape:
        raise ValueError(
            f"a and b must be vectors of one length, not {a.shape} and {b.shape}"
        )
    if np.isnan(a).any() or np.isnan(b).any():
        raise ValueError("a score is NaN")
    if len(a) < 2:
        return np.nan
    return float(scipy.stats.kendalltau(a, b).statistic)
