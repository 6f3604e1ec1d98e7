"""NDCG and revenue by session against every order of the rows that are tied."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from pwiser_jax.metrics import mean_interval, session_ndcg, session_revenue

ROW = st.tuples(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2))
ROWS = st.lists(ROW, min_size=1, max_size=7)


def over_orders(gains, scores, measure):
    """The mean of a measure of the ranked gains over all orders of tied rows."""
    values = [
        measure(gains[list(order)])
        for order in permutations(range(len(gains)))
        if all(scores[a] >= scores[b] for a, b in pairwise(order))
    ]
    return np.mean(values)


@settings(max_examples=40)
@given(ROWS, st.integers(1, 4))
def test_each_session_is_ranked_by_itself(rows, k):
    gains, scores, groups = np.array(rows, float).T

    def dcg(ranked):
        return (ranked[:k] / np.log2(np.arange(2, 2 + len(ranked[:k])))).sum()

    actual = session_ndcg(gains, scores, groups, k)
    revenue = session_revenue(gains, scores, groups, k)
    assert len(actual) == len(revenue) == len(np.unique(groups))
    for at, group in enumerate(np.unique(groups)):
        ranked_rows = gains[groups == group], scores[groups == group]
        best = dcg(np.sort(ranked_rows[0])[::-1])
        expected = over_orders(*ranked_rows, dcg) / best if best else np.nan
        assert actual[at] == pytest.approx(expected, nan_ok=True)
        sold = over_orders(*ranked_rows, lambda ranked: ranked[:k].sum())
        assert revenue[at] == pytest.approx(sold)


def test_ndcg_agrees_with_scikit_learn():
    rng = np.random.default_rng(0)
    gains, scores = rng.integers(0, 3, (20, 12)), rng.integers(0, 6, (20, 12))
    groups = np.repeat(np.arange(20), 12)
    for k in (None, 5):
        actual = session_ndcg(gains.ravel(), scores.ravel(), groups, k)
        each = [ndcg_score(gains[[i]], scores[[i]], k=k) for i in range(20)]
        np.testing.assert_allclose(actual, each)
    assert mean_interval(actual).value == pytest.approx(np.mean(each))


def test_rows_may_come_in_any_order_and_sessions_have_any_name():
    rng = np.random.default_rng(1)
    gains, scores = rng.random(30), rng.random(30)
    groups = rng.choice(["a", "b", "c"], 30)
    order = rng.permutation(30)
    for measure in (session_ndcg, session_revenue):
        np.testing.assert_allclose(
            measure(gains, scores, groups, 3),
            measure(gains[order], scores[order], groups[order], 3),
        )


def test_what_is_wrong_is_named():
    with pytest.raises(ValueError, match="at least 0, row 1"):
        session_ndcg([1, -1], [0, 0], [0, 0])
    with pytest.raises(ValueError, match="k must be"):
        session_revenue([1], [0], [0], 0)
    with pytest.raises(ValueError, match="row 0 has NaN"):
        session_ndcg([1], [np.nan], [0])
    with pytest.raises(ValueError, match="one length"):
        session_ndcg([1], [1, 2], [0])
    assert len(session_ndcg([], [], [])) == 0
