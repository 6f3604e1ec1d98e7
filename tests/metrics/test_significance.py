"""Statistics of means over runs against SciPy, and their coverage."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pwiser_jax.metrics import (
    holm,
    mean_interval,
    paired_interval,
    paired_test,
    seeds_needed,
    wilcoxon_test,
)


@pytest.mark.parametrize("count", [2, 5, 20])
@pytest.mark.parametrize("level", [0.9, 0.95])
def test_mean_interval_is_students(count, level):
    values = np.random.default_rng(count).normal(0.7, 0.01, count)
    actual = mean_interval(values, level)
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    assert actual.value == pytest.approx(values.mean())
    assert (actual.low, actual.high) == pytest.approx(tuple(expected))
    assert actual.standard_error == pytest.approx(stats.sem(values))


def test_paired_interval_is_that_of_the_paired_t_test():
    rng = np.random.default_rng(0)
    seeds = rng.normal(0.7, 0.01, 8)
    a, b = seeds + rng.normal(0.002, 0.001, 8), seeds
    actual = paired_interval(a, b)
    expected = stats.ttest_rel(a, b).confidence_interval()
    assert (actual.low, actual.high) == pytest.approx(tuple(expected))
    assert actual.value == pytest.approx(a.mean() - b.mean())
    # What the seed does to both runs cancels.
    unpaired = stats.ttest_ind(a, b).confidence_interval()
    assert actual.high - actual.low < 0.3 * (unpaired.high - unpaired.low)


def test_intervals_cover_the_truth_at_their_level():
    rng = np.random.default_rng(1)
    runs = 4000
    inside = sum(
        actual.low <= 0.003 <= actual.high
        for actual in (mean_interval(rng.normal(0.003, 0.002, 5)) for _ in range(runs))
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


@pytest.mark.parametrize("count", [2, 6, 20])
def test_tests_of_pairs_are_scipys(count):
    rng = np.random.default_rng(count)
    a, b = rng.normal(0.701, 0.002, count), rng.normal(0.7, 0.002, count)
    assert paired_test(a, b) == pytest.approx(stats.ttest_rel(a, b).pvalue)
    assert wilcoxon_test(a, b) == pytest.approx(stats.wilcoxon(a, b).pvalue)
    assert paired_test(a, b) == pytest.approx(paired_test(b, a))
    actual = paired_interval(a, b)
    assert (paired_test(a, b) < 0.05) == (not actual.low <= 0 <= actual.high)


def test_five_seeds_never_reach_five_percent_by_wilcoxon():
    assert wilcoxon_test([5, 6, 7, 8, 9], [1, 1, 1, 1, 1]) == 2**-4


def test_pairs_that_are_equal_show_nothing():
    for test in (paired_test, wilcoxon_test):
        assert test([0.7, 0.8], [0.7, 0.8]) == 1
        assert np.isnan(test([], []))
        with pytest.raises(ValueError, match="paired"):
            test([0.7], [])
        with pytest.raises(ValueError, match="finite"):
            test([np.nan], [0.7])
    assert np.isnan(paired_test([0.7], [0.6]))
    assert paired_test([2, 3], [1, 2]) == 0


@given(st.lists(st.floats(0, 1) | st.just(float("nan")), max_size=8))
def test_holm_rejects_what_the_step_down_rule_rejects(p_values):
    adjusted = holm(p_values)
    real = sorted(p for p in p_values if not np.isnan(p))
    for level in (0.01, 0.05, 0.3):
        # The rule itself: from the smallest on, until one is too large.
        rejected = 0
        while rejected < len(real) and real[rejected] <= level / (len(real) - rejected):
            rejected += 1
        # A product that rounds across the level would count twice.
        close = np.isclose(adjusted, level, rtol=1e-12)
        assert close.any() or (adjusted <= level).sum() == rejected
    assert np.array_equal(np.isnan(adjusted), np.isnan(p_values))


def test_holm_by_hand():
    actual = holm([0.01, 0.04, 0.03, np.nan, 0.005])
    assert actual == pytest.approx([0.03, 0.06, 0.06, np.nan, 0.02], nan_ok=True)
    assert holm([0.6, 0.9]) == pytest.approx([1, 1])
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        holm([1.2])


def test_holm_holds_the_rate_of_any_false_finding():
    rng = np.random.default_rng(2)
    false = sum(holm(rng.random(24)).min() <= 0.05 for _ in range(4000))
    assert abs(false / 4000 - 0.05) < 0.0103


@pytest.mark.parametrize("deviation", [0.0005, 0.002, 0.004])
def test_seeds_needed_give_the_power_asked_for(deviation):
    count = seeds_needed(deviation)
    rng = np.random.default_rng(3)
    draws = rng.normal(0.001, deviation, (20_000, count))
    rejected = np.mean(stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05)
    assert rejected > 0.8 - 0.0085  # three standard errors of a share of .8
    fewer = stats.ttest_1samp(draws[:, : count - 1], 0, axis=1).pvalue < 0.05
    assert count == 2 or np.mean(fewer) < 0.8 + 0.0085


def test_seeds_needed_near_its_textbook_form():
    # (z.975 + z.8)^2 (sd / difference)^2, which large counts approach.
    large = (1.959964 + 0.841621) ** 2 * 30**2
    assert seeds_needed(0.03) == pytest.approx(large, rel=0.001)
    assert seeds_needed(0.03, -0.001) == seeds_needed(0.03)
    assert seeds_needed(0) == 2
    assert seeds_needed(1e-7) == 2
    for options in (
        {"deviation": -1},
        {"deviation": 1, "difference": 0},
        {"deviation": 1, "power": 1},
    ):
        with pytest.raises(ValueError, match="must"):
            seeds_needed(**options)
