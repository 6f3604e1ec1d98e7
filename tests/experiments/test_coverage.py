"""Intervals cover the true value at their level, in a small simulation."""

import numpy as np
import pytest

from experiments.lib.coverage import clustered_scores, coverage, true_aucs
from pwiser_jax.metrics import auc


def test_the_truth_of_the_simulation():
    labels, a, b, _ = clustered_scores(np.random.default_rng(0), groups=40_000)
    expected = true_aucs()
    assert auc(labels, a) == pytest.approx(expected[0], abs=0.003)
    assert auc(labels, b) == pytest.approx(expected[1], abs=0.003)


def test_intervals_hold_the_truth_at_their_rate():
    shares = coverage(worlds=600, groups=100, draws=100, seed=1)
    naive = shares.pop("AUC, rows as if independent")
    drawn = shares.pop("AUC difference, bootstrap by group")
    assert len(shares) == 4
    for name, share in shares.items():
        # Three standard errors of a share of .95 in 600 draws are .027.
        assert abs(share - 0.95) < 0.027, name
    assert drawn > 0.85  # 60 draws
    assert naive < 0.9
