"""Log loss, ratio of sums and calibration error against plain definitions."""

import numpy as np
import pytest
from scipy import special, stats
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss as reference_log_loss

from pwiser_jax.metrics import (
    expected_calibration_error,
    log_loss,
    log_loss_from_logits,
    predicted_over_observed,
    refit,
    reliability,
)


@pytest.fixture(scope="module")
def drawn():
    """Labels drawn from their own probabilities: calibrated by construction."""
    rng = np.random.default_rng(0)
    z = rng.normal(-3, 1.5, 200_000)
    return rng.random(len(z)) < special.expit(z), z


def test_log_loss_agrees_with_scikit_learn_and_with_logits(drawn):
    labels, z = drawn
    expected = reference_log_loss(labels, special.expit(z))
    assert log_loss(labels, special.expit(z)) == pytest.approx(expected, rel=1e-12)
    assert log_loss_from_logits(labels, z) == pytest.approx(expected, rel=1e-12)
    single = log_loss_from_logits(labels, z.astype(np.float32))
    assert single == pytest.approx(expected, rel=1e-6)


def test_certain_and_wrong_rows_cost_a_finite_amount():
    assert log_loss([1, 0], [0.0, 1.0]) == pytest.approx(-np.log(2**-52), rel=1e-6)
    assert log_loss([1, 0], [1.0, 0.0]) == pytest.approx(0, abs=1e-15)
    assert log_loss_from_logits([1, 0], [-1e4, 1e4]) == 1e4
    assert log_loss_from_logits([1, 0], [1e4, -1e4]) == 0
    assert log_loss_from_logits([1], [-40.0]) == pytest.approx(40, rel=1e-12)


def test_predicted_over_observed(drawn):
    labels, z = drawn
    p = special.expit(z)
    # Its standard error is about sqrt(1 / positives).
    error = 1 / np.sqrt(labels.sum())
    assert predicted_over_observed(labels, p) == pytest.approx(1, abs=4 * error)
    assert predicted_over_observed([0, 1, 1], [0.5, 0.25, 0.25]) == 0.5


def test_bins_have_equal_mass_and_hold_all_rows(drawn):
    labels, z = drawn
    p = special.expit(z)
    for rows, bins in ((len(p), 20), (1003, 7), (5, 20)):
        table = reliability(labels[:rows], p[:rows], bins)
        assert table.rows.sum() == rows
        assert len(table.rows) == min(bins, rows)
        assert np.ptp(table.rows) <= 1
        assert (np.diff(table.predicted) > 0).all()
        assert table.predicted @ table.rows == pytest.approx(p[:rows].sum())
        assert table.observed @ table.rows == pytest.approx(labels[:rows].sum())


def test_equal_predictions_share_a_bin():
    rng = np.random.default_rng(1)
    p = rng.choice([0.1, 0.2, 0.7], size=1000, p=[0.6, 0.3, 0.1])
    labels = rng.random(1000) < 0.2
    table = reliability(labels, p, bins=20)
    assert table.predicted == pytest.approx([0.1, 0.2, 0.7])
    assert table.rows.tolist() == [(p == value).sum() for value in (0.1, 0.2, 0.7)]
    means = [labels[p == value].mean() for value in (0.1, 0.2, 0.7)]
    assert table.observed == pytest.approx(means)
    expected = sum(
        (p == value).mean() * abs(value - mean)
        for value, mean in zip((0.1, 0.2, 0.7), means, strict=True)
    )
    assert expected_calibration_error(labels, p) == pytest.approx(expected)


def test_calibration_error_against_quantile_bins_of_scipy(drawn):
    labels, z = drawn
    p = special.expit(z + 0.5)
    # Distinct predictions in multiples of 20: equal-mass bins are blocks of ranks.
    block = (stats.rankdata(p, method="ordinal") - 1) // (len(p) // 20)
    predicted = stats.binned_statistic(block, p, bins=20).statistic
    observed = stats.binned_statistic(block, labels, bins=20).statistic
    expected = np.abs(predicted - observed).mean()
    assert expected_calibration_error(labels, p) == pytest.approx(expected)
    calibrated = expected_calibration_error(labels, special.expit(z))
    assert calibrated < 0.1 * expected


def test_rows_may_come_in_any_order(drawn):
    labels, z = drawn
    labels, p = labels[:5000], special.expit(z[:5000])
    order = np.random.default_rng(2).permutation(5000)
    for measure in (log_loss, predicted_over_observed, expected_calibration_error):
        moved = measure(labels[order], p[order])
        assert moved == pytest.approx(measure(labels, p), rel=1e-12)


def test_what_is_not_defined_is_nan():
    assert np.isnan(log_loss([], []))
    assert np.isnan(log_loss_from_logits([], []))
    assert np.isnan(expected_calibration_error([], []))
    assert len(reliability([], []).rows) == 0
    assert np.isnan(predicted_over_observed([0, 0], [0.1, 0.2]))
    # One class is enough for log loss and calibration error.
    assert log_loss([0, 0], [0.5, 0.5]) == pytest.approx(np.log(2))
    assert expected_calibration_error([0, 0], [0.1, 0.3], bins=1) == pytest.approx(0.2)


@pytest.mark.parametrize("p", [[0.2, 1.1], [-0.1, 0.2], [np.nan, 0.2]])
def test_what_is_no_probability_is_refused(p):
    for measure in (log_loss, predicted_over_observed, expected_calibration_error):
        with pytest.raises(ValueError, match="probabilities"):
            measure([0, 1], p)


def test_no_bins_are_refused():
    with pytest.raises(ValueError, match="bins must be at least 1"):
        reliability([0, 1], [0.1, 0.2], bins=0)


@pytest.mark.parametrize(("scale", "level"), [(1, 0), (0.3, 2), (4, -9), (-2, 1)])
def test_refit_agrees_with_unpenalised_logistic_regression(drawn, scale, level):
    labels, z = (values[:5_000] for values in drawn)
    z = (z - level) / scale
    actual = refit(labels, z)
    reference = LogisticRegression(C=np.inf, tol=1e-10).fit(z[:, None], labels)
    assert actual.slope == pytest.approx(reference.coef_[0, 0], rel=1e-3)
    assert actual.shift == pytest.approx(reference.intercept_[0], rel=1e-3)
    # At the minimum the sums agree; no neighbour is better.
    least = log_loss_from_logits(labels, actual(z))
    assert special.expit(actual(z)).sum() == pytest.approx(labels.sum(), rel=1e-9)
    for step in (0.999, 1.001):
        assert log_loss_from_logits(labels, actual(z) * step) > least


def test_refit_undoes_a_distortion_of_scale_and_level(drawn):
    labels, z = drawn
    half = len(z) // 2
    distorted = 2.5 * z - 1
    actual = refit(labels[:half], distorted[:half])
    assert actual.slope == pytest.approx(0.4, abs=0.01)
    assert actual.shift == pytest.approx(0.4, abs=0.05)
    new, p = labels[half:], special.expit(actual(distorted[half:]))
    before = expected_calibration_error(new, special.expit(distorted[half:]))
    assert expected_calibration_error(new, p) < 0.1 * before


def test_refit_has_no_answer_where_no_slope_is_the_best():
    for labels, z in (
        ([1, 1], [0.0, 1.0]),
        ([0, 1], [2.0, 2.0]),
        ([0, 0, 1, 1], [0.0, 1.0, 1.0, 2.0]),
        ([1, 1, 0], [0.0, 1.0, 2.0]),
        ([], []),
    ):
        assert np.isnan([refit(labels, z).slope, refit(labels, z).shift]).all()
    with pytest.raises(ValueError, match="row 1"):
        refit([0, 1, 0], [0.0, np.inf, 1.0])
