"""Measures against true probabilities: brute force, and the mean over label draws."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwiser_jax.metrics import (
    auc,
    expected_auc,
    expected_calibration_error,
    expected_log_loss,
    log_loss,
    predicted_over_true,
    true_calibration_error,
)

UNIT = st.floats(0, 1)
ROWS = st.lists(st.tuples(UNIT, st.integers(-2, 2), UNIT), max_size=9)


@given(ROWS)
def test_expected_auc_sums_over_all_ordered_pairs(rows):
    pi, s, w = np.array(rows, float).reshape(-1, 3).T
    ordered, pairs = 0.0, 0.0
    for i in range(len(rows)):
        for j in range(len(rows)):
            if i != j:
                chance = w[i] * pi[i] * w[j] * (1 - pi[j])
                ordered += chance * ((s[i] > s[j]) + (s[i] == s[j]) / 2)
                pairs += chance
    if pairs > 1e-6:
        assert expected_auc(pi, s, w) == pytest.approx(ordered / pairs, abs=1e-6)


def test_the_mean_over_label_draws_comes_to_the_expected_measures():
    rng = np.random.default_rng(0)
    pi = rng.beta(1, 6, 2_000)
    p = np.clip(pi + rng.normal(0, 0.05, len(pi)), 0.01, 0.99).round(2)
    draws = rng.random((400, len(pi))) < pi
    for measure, expected in (
        (auc, expected_auc(pi, p)),
        (log_loss, expected_log_loss(pi, p)),
    ):
        values = [measure(labels, p) for labels in draws]
        error = np.std(values, ddof=1) / np.sqrt(len(values))
        assert abs(np.mean(values) - expected) < 4 * error
    ratio = p.sum() / draws.sum(axis=1).mean()
    assert predicted_over_true(pi, p) == pytest.approx(ratio, rel=5e-3)


def test_weights_leave_rows_out_and_repeat_none():
    rng = np.random.default_rng(1)
    pi, p = rng.random(50), rng.random(50).round(1)
    kept = rng.random(50) < 0.5
    for measure in (
        expected_auc,
        expected_log_loss,
        predicted_over_true,
    ):
        actual = measure(pi, p, weights=kept)
        assert actual == pytest.approx(measure(pi[kept], p[kept]))


def test_true_labels_as_probabilities_give_the_measures_on_labels():
    rng = np.random.default_rng(2)
    labels, p = rng.random(300) < 0.3, rng.random(300).round(2)
    assert expected_auc(labels, p) == pytest.approx(auc(labels, p))
    assert expected_log_loss(labels, p) == pytest.approx(log_loss(labels, p))
    error = expected_calibration_error(labels, p, bins=7)
    assert true_calibration_error(labels, p, bins=7) == pytest.approx(error)


def test_the_truth_itself_is_best():
    rng = np.random.default_rng(3)
    pi = rng.random(200)
    assert true_calibration_error(pi, pi) == pytest.approx(0)
    assert predicted_over_true(pi, pi) == 1
    for other in (np.sqrt(pi), 0.9 * pi, rng.random(200)):
        assert expected_log_loss(pi, other) > expected_log_loss(pi, pi)
        assert expected_auc(pi, other) <= expected_auc(pi, pi)


def test_what_is_not_defined_is_nan_and_what_is_wrong_is_named():
    assert np.isnan(expected_auc([], []))
    assert np.isnan(expected_auc([1.0, 1.0], [1, 2]))
    assert np.isnan(expected_auc([0.5], [1]))  # one row is no pair
    assert np.isnan(expected_log_loss([], []))
    assert np.isnan(true_calibration_error([], []))
    assert np.isnan(predicted_over_true([0.0], [0.5]))
    with pytest.raises(ValueError, match=r"truth must lie in .* row 1"):
        expected_auc([0.5, 1.5], [1, 2])
    with pytest.raises(ValueError, match="one length"):
        expected_auc([0.5, 0.5], [1])
    with pytest.raises(ValueError, match="row 0 has NaN"):
        expected_auc([0.5], [np.nan])
    with pytest.raises(ValueError, match="probabilities must lie"):
        expected_log_loss([0.5], [2.0])
    with pytest.raises(ValueError, match="bins"):
        true_calibration_error([0.5], [0.5], bins=0)
