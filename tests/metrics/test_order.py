"""The order of rows by score, against NumPy's stable sort."""

import numpy as np
import pytest

from pwiser_jax.metrics import score_order


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_rows_are_in_the_order_of_their_scores(dtype):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=500).astype(dtype).round(1)
    scores[:6] = 0.0, -0.0, np.inf, -np.inf, 1e-45, -1e-45
    order = score_order(scores)
    assert (scores[order] == np.sort(scores)).all()
    assert (np.sort(order) == np.arange(len(scores))).all()


@pytest.mark.parametrize("scores", [[], [1.0], [-2.0, -2.0, 0.0, -0.0, 3.0]])
def test_sorted_rows_stay_as_they_are(scores):
    assert score_order(np.array(scores, np.float32)) == slice(None)
