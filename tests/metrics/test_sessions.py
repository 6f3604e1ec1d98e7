"""NDCG and revenue by session against every order of the rows that are tied."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import ndcg_score

from pwiser_jax.metrics import (
    auc,
    gauc_interval,
    grouped_auc,
    mean_interval,
    session_auc,
    session_ndcg,
    session_revenue,
)

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


def test_auc_of_each_session_and_gauc():
    rng = np.random.default_rng(4)
    groups, scores = rng.integers(0, 40, 300), rng.integers(0, 5, 300) / 4
    labels = rng.random(300) < 0.2 + 0.3 * scores
    each = session_auc(labels, scores, groups)
    rows = [groups == group for group in np.unique(groups)]
    expected = [auc(labels[at], scores[at]) for at in rows]
    assert np.isnan(each).any()
    np.testing.assert_allclose(each, expected)
    interval = gauc_interval(labels, scores, groups)
    assert interval.value == pytest.approx(grouped_auc(labels, scores, groups).value)
    assert np.isnan(gauc_interval([1, 1], [0.5, 0.2], [0, 0]).value)
    one = gauc_interval([1, 0], [0.5, 0.2], [0, 0])
    assert (one.value, np.isnan(one.low)) == (1.0, True)


def test_gauc_interval_of_equal_sessions_is_that_of_the_mean():
    rng = np.random.default_rng(5)
    groups, scores = np.repeat(np.arange(50), 6), rng.normal(size=300)
    labels = np.tile([0, 0, 1, 0, 1, 0], 50)
    expected = mean_interval(session_auc(labels, scores, groups))
    got = gauc_interval(labels, scores, groups)
    for name in ("value", "low", "high", "standard_error"):
        assert getattr(got, name) == pytest.approx(getattr(expected, name))


def test_gauc_interval_covers():
    """95% intervals of sessions of unequal sizes hold the truth about as often."""
    rng, hits = np.random.default_rng(6), 0
    for _ in range(300):
        sizes = rng.integers(3, 12, 60)
        groups = np.repeat(np.arange(60), sizes)
        labels = rng.random(len(groups)) < 0.4
        interval = gauc_interval(labels, rng.normal(size=len(groups)), groups)
        hits += interval.low <= 0.5 <= interval.high
    assert 0.91 <= hits / 300 <= 0.98
