"""Counts of pairs and active pairs, against a count of all pairs."""

import jax
import numpy as np
import pytest

from pwiser_jax.losses import ConversionBank
from pwiser_jax.losses.counts import ladder_pairs

MARGINS = {(2, 1): 0.25, (2, 0): 0.5, (1, 0): 0.0}
ROWS = 64


def batch(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores in quarters, so that many pairs lie on a margin exactly; levels; mask."""
    random = np.random.default_rng(seed)
    scores = np.float32(random.integers(-4, 5, ROWS) / 4)
    return scores, random.integers(0, 3, ROWS), random.random(ROWS) < 0.8


def counted(scores, levels, where, bank, surrogate, gate) -> dict:
    """By definition: every pair is looked at."""
    upper = [(s, level) for s, level, w in zip(scores, levels, where, strict=True) if w]
    lower = list(upper)
    upper += [(s, 2) for s, weight in zip(*bank, strict=True) if weight]
    counts = {}
    for (hi, lo), margin in MARGINS.items():
        above = np.float32([s for s, level in upper if level == hi])
        below = np.float32([s for s, level in lower if level == lo])
        difference = above[:, None] - below[None, :]
        active = difference < (-margin if gate == "literal" else margin)
        if surrogate == "logistic":
            active = np.ones_like(active)
        counts[hi, lo] = difference.size, int(active.sum())
    return counts


BANK = ConversionBank(np.float32([0.25, -0.5, 9, 0]), np.float32([1, 1, 0, 0]))


@pytest.mark.parametrize(
    ("surrogate", "gate"),
    [("squared_hinge", "margin"), ("squared_hinge", "literal"), ("logistic", "margin")],
)
@pytest.mark.parametrize("devices", [1, 4])
def test_counts_are_those_of_the_definition(
    surrogate: str, gate: str, devices: int, request: pytest.FixtureRequest
) -> None:
    options = {"surrogate": surrogate, "gate": gate}
    if devices > 1:
        request.getfixturevalue("four_devices")
    axis = {"axis_name": "devices"} if devices > 1 else {}

    def count(scores, levels, where):
        return ladder_pairs(
            scores, levels, MARGINS, where=where, bank=BANK, **options, **axis
        )

    program = jax.pmap(count, "devices") if devices > 1 else jax.jit(count)
    for seed in range(3):
        rows = batch(seed)
        parts = [np.reshape(x, (devices, -1)) for x in rows] if devices > 1 else rows
        expected = counted(*rows, BANK, **options)
        for term, got in program(*parts).items():
            for number, exact in zip(got, expected[term], strict=True):
                assert number.dtype == np.float32
                assert np.all(np.asarray(number) == exact)


def test_masked_rows_may_hold_anything_and_no_pair_is_zero() -> None:
    scores = np.float32([0.5, np.nan, np.inf, 0.4])
    where = np.array([True, False, False, True])
    levels = np.array([1, 2, 0, 0])
    counts = ladder_pairs(scores, levels, MARGINS, where=where)
    assert {term: (int(a), int(b)) for term, (a, b) in counts.items()} == {
        (2, 1): (0, 0),
        (2, 0): (0, 0),
        (1, 0): (1, 0),
    }


def test_what_the_loss_calls_active_costs_something() -> None:
    from pwiser_jax.losses.ladder import ladder_terms

    scores, levels, where = batch(7)
    options = {"surrogate": "hinge", "where": where}
    costs = ladder_terms(scores, levels, MARGINS, **options)
    for term, (pairs, active) in ladder_pairs(
        scores, levels, MARGINS, **options
    ).items():
        assert float(costs[term][1]) == int(pairs)
        assert (float(costs[term][0]) > 0) == (int(active) > 0)


def test_counts_beyond_32_bits() -> None:
    """300,000 rows, half of them of either level: 22.5 billion pairs."""
    size = 300_000
    scores = np.zeros(size, np.float32)
    scores[::2] = np.where(np.arange(size // 2) % 3, 0.0, 9.0)
    counts = jax.jit(lambda s, y: ladder_pairs(s, y, {(1, 0): 0.5}))
    pairs, active = counts(scores, 1 - np.arange(size) % 2)[1, 0]
    exact = (size // 2) ** 2
    assert abs(float(pairs) - exact) <= 2e-7 * exact
    assert abs(float(active) - exact * 2 / 3) <= 2e-7 * exact


def test_counts_are_exact_below_2_to_the_24() -> None:
    pairs, active = ladder_pairs(
        np.zeros(8190, np.float32), np.arange(8190) % 2, {(1, 0): 0.5}
    )[1, 0]
    assert int(pairs) == int(active) == 4095**2 < 2**24
