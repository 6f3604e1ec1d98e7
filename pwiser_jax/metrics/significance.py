"""Statistics of runs (seeds, folds or days): intervals, tests, numbers of seeds."""

from bisect import bisect_left
from dataclasses import dataclass

import numpy as np
import scipy  # scipy.stats is loaded where it is used: half a second
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True)
class Interval:
    """An estimate with its interval; NaN where it cannot be estimated."""

    value: float
    low: float
    high: float
    standard_error: float


UNDEFINED = Interval(np.nan, np.nan, np.nan, np.nan)


def mean_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of a mean: x̄ ± t(level, n - 1) s / √n.

    Args:
        values: f[n], one number per run, independent of each other.
        level: coverage of the interval, between 0 and 1.

    Returns:
        The mean with its interval. One run gives a mean without interval (NaN); no run
        gives NaN.

    Raises:
        ValueError: values are not a vector, or one is not finite.
    """
    values = _finite_vector(values)
    if not len(values):
        return UNDEFINED
    mean = float(values.mean())
    freedom = len(values) - 1
    error = float(values.std(ddof=1) / np.sqrt(len(values))) if freedom else np.nan
    if not error > 0:  # one value, or all are equal
        return Interval(mean, mean + error, mean + error, error)
    # What scipy.stats.t.interval computes in half a millisecond.
    ends = scipy.special.stdtrit(freedom, [(1 - level) / 2, (1 + level) / 2])
    low, high = mean + error * ends
    return Interval(mean, float(low), float(high), error)


def paired_interval(a: ArrayLike, b: ArrayLike, level: float = 0.95) -> Interval:
    """Student's t interval of the mean of a - b over paired runs.

    A pair shares its seed: the same initial weights and batches. Effects of the seed on
        both runs cancel, so the interval is often much shorter than that of unpaired
        means.

    Args:
        a, b: f[n] each; entry i of both has the same seed.
        level: coverage of the interval, between 0 and 1.

    Returns:
        As `mean_interval` of the differences.

    Raises:
        ValueError: a and b are not finite vectors of one length.
    """
    return mean_interval(_differences(a, b), level)


def paired_test(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p of the paired t test: are the means of a and b equal?

    Args:
        a, b: f[n] each; entry i of both has the same seed.

    Returns:
        p: below 1 - level exactly where `paired_interval` excludes 0. 1 if all pairs
        are equal; NaN for fewer than two pairs.

    Raises:
        ValueError: a and b are not finite vectors of one length.
    """
    gaps = _differences(a, b)
    if len(gaps) < 2:
        return np.nan
    if gaps.min() == gaps.max():
        return 0.0 if gaps.any() else 1.0
    return float(scipy.stats.ttest_1samp(gaps, 0).pvalue)


def wilcoxon_test(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p of Wilcoxon's signed-rank test: is a - b symmetric around 0?

    Unlike the t test, it is robust to a single outlying seed: only ranks of the
    differences matter. Pairs that are equal are left out. Exact for at most 50 pairs
    without ties, normal beyond (SciPy's rule). n pairs cannot give less than 2^(1 - n):
    five seeds never reach .05.

    Args:
        a, b: f[n] each; entry i of both has the same seed.

    Returns:
        p; 1 where all pairs are equal; NaN without pairs.

    Raises:
        ValueError: a and b are not finite vectors of one length.
    """
    gaps = _differences(a, b)
    if not len(gaps):
        return np.nan
    if not gaps.any():
        return 1.0
    return float(scipy.stats.wilcoxon(gaps).pvalue)


def holm(p_values: ArrayLike) -> NDArray[np.float64]:
    """p values corrected for their number m by Holm's step-down rule.

        adjusted p_(i) = max over j <= i of min(1, (m - j + 1) p_(j)),  p_(1) <= p_(2)

    If values of at most .05 are called significant, the chance of any false finding
    among all m is at most .05, under any dependence of the tests.

    Args:
        p_values: f[n] in [0, 1]; NaN is an undefined test.

    Returns:
        f64[n] in the given order; NaN stays NaN and is not counted in m.

    Raises:
        ValueError: p_values are not a vector, or one lies outside [0, 1].

    Reference:
        Holm (1979), https://www.jstor.org/stable/4615733
    """
    p = np.asarray(p_values, np.float64)
    if p.ndim != 1 or ((p < 0) | (p > 1)).any():
        raise ValueError("p_values must be a vector of numbers in [0, 1]")
    defined = np.flatnonzero(~np.isnan(p))
    order = defined[np.argsort(p[defined], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(factors * p[order]), 1)
    return adjusted


def seeds_needed(
    deviation: float, difference: float = 0.001, power: float = 0.8, level: float = 0.95
) -> int:
    """Number of paired seeds that detect a difference with the given power.

    The smallest n >= 2 for which the two-sided paired t test at 1 - level rejects with
    probability `power`, if the true mean is `difference`:

        P(|T| > t(level, n - 1)),   T noncentral t of n - 1, √n difference / deviation

    Args:
        deviation: standard deviation of the paired differences, as estimated.
        difference: mean difference to detect, in the same unit.
        power: probability of detection, between 0 and 1.
        level: coverage of the interval that must exclude 0.

    Returns:
        n; 2 for a deviation of 0.

    Raises:
        ValueError: a deviation below 0 or not finite, a difference of 0, or a power or
            level outside (0, 1).
    """
    if not (np.isfinite(deviation) and deviation >= 0):
        raise ValueError(f"deviation must be finite and 0 or more, not {deviation}")
    if not (np.isfinite(difference) and difference != 0):
        raise ValueError(f"difference must be finite and not 0, not {difference}")
    if not (0 < power < 1 and 0 < level < 1):
        raise ValueError(f"power {power} and level {level} must lie between 0 and 1")
    if deviation == 0:
        return 2
    effect = abs(difference) / deviation
    high = 2
    while _power(high, effect, level) < power:
        high *= 2
    # Power grows with n: the least n lies in (high / 2, high].
    counts = range(max(high // 2, 1) + 1, high + 1)
    return counts[bisect_left(counts, power, key=lambda n: _power(n, effect, level))]


def _power(count: int, effect: float, level: float) -> float:
    """Chance that the t test of `count` pairs rejects; effect = mean / deviation."""
    freedom, shift = count - 1, effect * np.sqrt(count)
    limit = scipy.special.stdtrit(freedom, (1 + level) / 2)
    within = scipy.special.nctdtr(freedom, shift, limit) - scipy.special.nctdtr(
        freedom, shift, -limit
    )
    # Far out SciPy's distribution function is NaN; there the chance is 1.
    return 1.0 if np.isnan(within) else float(1 - within)


def _differences(a: ArrayLike, b: ArrayLike) -> NDArray[np.float64]:
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if a.shape != b.shape:
        raise ValueError(f"a and b must be paired, not {a.shape} and {b.shape}")
    return _finite_vector(a - b)


def _finite_vector(values: ArrayLike) -> NDArray[np.float64]:
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or not np.isfinite(values).all():
        raise ValueError("values must be a vector of finite numbers")
    return values
