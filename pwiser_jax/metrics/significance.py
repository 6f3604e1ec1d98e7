"""Intervals of a mean over runs: seeds, folds or days."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import special


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; what cannot be estimated is NaN."""

    value: float
    low: float
    high: float
    standard_error: float


UNDEFINED = Interval(np.nan, np.nan, np.nan, np.nan)


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of a mean: x̄ ± t(level, n - 1) s / √n.

    Args:
        values: f[n], one number a run, independent of each other.
        level: coverage of the interval, between 0 and 1.

    Returns:
        The mean with its interval. One run has a mean and no interval (NaN); no run
        has neither.

    Raises:
        ValueError: values are not a vector, or one is not finite.
    """
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("values must be a vector of finite numbers")
    if not len(values):
        return UNDEFINED
    mean = float(values.mean())
    if len(values) == 1:
        return Interval(mean, np.nan, np.nan, np.nan)
    error = float(values.std(ddof=1) / np.sqrt(len(values)))
    half = float(special.stdtrit(len(values) - 1, (1 + level) / 2)) * error
    return Interval(mean, mean - half, mean + half, error)


def paired_interval(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of a - b over paired runs.

    A pair shares its seed: the same initial weights and batches. What the seed does to
    both runs cancels, so the interval is often far shorter than that of two means.

    Args:
        a, b: f[n] each; entry i of both has the same seed.
        level: coverage of the interval, between 0 and 1.

    Returns:
        As `mean_interval` of the differences.

    Raises:
        ValueError: a and b are not finite vectors of one length.
    """
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a and b must be paired, not {a.shape} and {b.shape}")
    return mean_interval(a - b, level)
