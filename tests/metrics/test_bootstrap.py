"""The bootstrap against a plain definition, and DeLong's interval against it."""

import numpy as np
import pytest

from experiments.lib.coverage import clustered_scores
from pwiser_jax.metrics import auc, auc_difference, bootstrap_auc_difference


def test_weighted_auc_is_that_of_rows_repeated():
    """The bootstrap's own draws, made again by repeating rows."""
    rng = np.random.default_rng(0)
    labels, groups = rng.random(60) < 0.4, rng.integers(9, size=60)
    a, b = rng.integers(6, size=60), rng.normal(size=60)
    actual = bootstrap_auc_difference(labels, a, b, groups, draws=40, seed=5)
    codes = np.unique(groups, return_inverse=True)[1]
    again = np.random.default_rng(5)
    gaps = []
    for size in (16, 16, 8):
        for times in again.multinomial(9, np.full(9, 1 / 9), size):
            rows = np.repeat(np.arange(60), times[codes])
            gaps.append(auc(labels[rows], a[rows]) - auc(labels[rows], b[rows]))
    assert actual.value == pytest.approx(auc(labels, a) - auc(labels, b))
    assert actual.standard_error == pytest.approx(np.std(gaps, ddof=1))
    assert (actual.low, actual.high) == pytest.approx(
        tuple(np.quantile(gaps, [0.025, 0.975]))
    )


@pytest.mark.parametrize("grouped", [True, False])
def test_delong_and_the_bootstrap_agree(grouped):
    rng = np.random.default_rng(1)
    labels, a, b, groups = clustered_scores(rng, groups=500)
    chosen = groups if grouped else None
    delong = auc_difference(labels, a, b, chosen)
    drawn = bootstrap_auc_difference(labels, a, b, chosen, draws=1000)
    assert drawn.value == pytest.approx(delong.value)
    assert drawn.standard_error == pytest.approx(delong.standard_error, rel=0.1)
    width = delong.high - delong.low
    assert drawn.low == pytest.approx(delong.low, abs=0.1 * width)
    assert drawn.high == pytest.approx(delong.high, abs=0.1 * width)


def test_rows_that_say_nothing():
    assert np.isnan(bootstrap_auc_difference([1, 1], [1, 2], [2, 1]).value)
    # One of two rows is missing in half of the draws.
    actual = bootstrap_auc_difference([0, 1], [1, 2], [2, 1], draws=50)
    assert (actual.low, actual.high) == (1, 1)
    with pytest.raises(ValueError, match="draws"):
        bootstrap_auc_difference([0, 1], [1, 2], [2, 1], draws=1)
