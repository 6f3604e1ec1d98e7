"""Intervals of means over runs against SciPy and against their promise."""

import numpy as np
import pytest
from scipy import stats

from pwiser_jax.metrics import mean_interval, paired_interval


@pytest.mark.parametrize("count", [2, 5, 20])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_mean_interval_is_students(count, level):
    values = np.random.default_rng(count).normal(0.7, 0.01, count)
    found = mean_interval(values, level)
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.standard_error == pytest.approx(stats.sem(values))


def test_paired_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    seeds = rng.normal(0.7, 0.01, 8)
    a, b = seeds + rng.normal(0.002, 0.001, 8), seeds
    found = paired_interval(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval()
    assert (found.low, found.high) == pytest.approx(tuple(expected))
    assert found.value == pytest.approx(a.mean() - b.mean())
    # What the seed does to both runs cancels.
    unpaired = stats.ttest_ind(a, b).confidence_interval()
    assert found.high - found.low < 0.3 * (unpaired.high - unpaired.low)


def test_intervals_cover_the_truth_at_their_level():
    rng = np.random.default_rng(1)
    runs = 4000
    inside = sum(
        found.low <= 0.003 <= found.high
        for found in (mean_interval(rng.normal(0.003, 0.002, 5)) for _ in range(runs))
    )
    # Three standard errors of a share of .95 in 4000 draws are .0103.
    assert abs(inside / runs - 0.95) < 0.0103


def test_few_runs():
    one = paired_interval([0.7], [0.6])
    assert one.value == pytest.approx(0.1)
    assert np.isnan([one.low, one.high, one.standard_error]).all()
    assert np.isnan(mean_interval([]).value)
    same = paired_interval([0.7, 0.8], [0.7, 0.8])
    assert (same.value, same.low, same.high) == (0, 0, 0)


def test_what_is_not_paired_is_refused():
    with pytest.raises(ValueError, match="paired"):
        paired_interval([0.7, 0.8], [0.7])
    with pytest.raises(ValueError, match="finite"):
        paired_interval([0.7, np.nan], [0.7, 0.8])
