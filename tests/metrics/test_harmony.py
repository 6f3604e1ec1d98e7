"""Discordant pairs and agreement of orders against lists of all pairs."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pwiser_jax.metrics import discordance, order_agreement

ROWS = st.lists(st.tuples(st.integers(0, 3), st.integers(-2, 2)), max_size=12)


@given(ROWS)
def test_discordance_counts_every_pair(rows):
    levels = np.array([level for level, _ in rows], int)
    scores = np.array([score for _, score in rows], float)
    costs: dict[tuple[int, int], list[float]] = {}
    for i, j in combinations(range(len(rows)), 2):
        hi, lo = (i, j) if levels[i] > levels[j] else (j, i)
        if levels[hi] > levels[lo]:
            gap = scores[hi] - scores[lo]
            cost = 1.0 if gap < 0 else 0.5 if gap == 0 else 0.0
            costs.setdefault((levels[hi], levels[lo]), []).append(cost)
    actual = discordance(levels, scores)
    every = [cost for level in costs.values() for cost in level]
    assert actual.pairs == len(every)
    assert actual.share == pytest.approx(
        np.mean(every) if every else np.nan, nan_ok=True
    )
    assert actual.by_levels == pytest.approx({k: np.mean(v) for k, v in costs.items()})


def test_discordance_refuses_what_has_no_levels():
    with pytest.raises(ValueError, match="one length"):
        discordance([0, 1], [0.5])
    with pytest.raises(ValueError, match="integers"):
        discordance([0.5, 1], [0.5, 0.5])
    with pytest.raises(ValueError, match="NaN in row 1"):
        discordance([0, 1], [0.5, np.nan])


def test_order_agreement_counts_every_pair():
    rng = np.random.default_rng(0)
    a, b = rng.integers(5, size=(2, 40))
    both = own_a = own_b = 0
    for i, j in combinations(range(40), 2):
        x, y = np.sign(a[i] - a[j]), np.sign(b[i] - b[j])
        both, own_a, own_b = both + x * y, own_a + abs(x), own_b + abs(y)
    assert order_agreement(a, b) == pytest.approx(both / np.sqrt(own_a * own_b))
    assert order_agreement(a, np.exp(a)) == pytest.approx(1)
    assert order_agreement(a, -a) == pytest.approx(-1)
    assert np.isnan(order_agreement([1], [1]))
    assert np.isnan(order_agreement([1, 1], [1, 2]))
    for wrong in ([[1, 2], [1]], [[1, 2], [1, np.nan]]):
        with pytest.raises(ValueError, match=r"one length|NaN"):
            order_agreement(*wrong)
