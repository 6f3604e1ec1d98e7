"""Weights of pairs and of labels: their range, values of pairs, costs of label 1."""

from functools import partial
from itertools import product

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax import (
    bce_loss,
    focal_bce_loss,
    jrc_loss,
    ladder_loss,
    pwiser_loss,
    ranknet_loss,
)
from pwiser_jax.losses import ConversionBank, jrc_ranking_loss, ladder_terms
from tests.losses import reference
from tests.losses.data import FORMS, NORMALIZATIONS, labels, row_options, scores

SIZE = 40
CLICKS, CONVERSIONS = labels(SIZE)
LEVELS = reference.pwiser_levels(CLICKS, CONVERSIONS)
SCORES = scores("random", SIZE)
MARGINS = {(2, 1): 0.125, (2, 0): 0.25}
OPTIONS = row_options(SIZE)
WEIGHTS = OPTIONS["weights"]
VALUES = (np.random.default_rng(7).integers(1, 9, SIZE) / 4).astype(np.float32)
SCALES = [1e20, 1e-19, 1e-24, 1e36, 1e-30]


def in_units(loss, scale):
    """The loss and gradient with all weights times a power of two near a scale."""
    power = np.float32(2.0 ** np.round(np.log2(scale)))
    return jax.jit(jax.value_and_grad(loss))(SCORES, WEIGHTS * power)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("scale", SCALES)
def test_a_mean_does_not_depend_on_the_unit_of_the_weights(form, scale):
    """Not in one bit, since the unit is a power of two; nor in any form."""

    def loss(s, weights):
        return ladder_loss(s, LEVELS, MARGINS, pairs=form, weights=weights)

    expected, actual = in_units(loss, 1.0), in_units(loss, scale)
    assert expected[0] > 0
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize(
    "loss",
    [
        lambda s, w: ranknet_loss(s, LEVELS, weights=w),
        lambda s, w: ranknet_loss(s, LEVELS, surrogate="hinge", weights=w),
        lambda s, w: bce_loss(s, CLICKS, weights=w),
        lambda s, w: focal_bce_loss(s, CLICKS, weights=w),
        lambda s, w: pwiser_loss(s, CLICKS, CONVERSIONS, weights=w, pair_values=w),
    ],
)
def test_other_means_do_not_either(loss, scale):
    for a, b in zip(in_units(loss, scale), in_units(loss, 1.0), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_jrc_of_large_and_small_weights():
    """Its ranking term is not a mean: log of the weights' unit is added."""
    both = np.stack([SCORES, -SCORES], axis=1)
    for scale in (1e20, 1e-19, 1e-24):
        value = jrc_ranking_loss(both, CLICKS, weights=WEIGHTS * np.float32(scale))
        expected = jrc_ranking_loss(both, CLICKS, weights=WEIGHTS) + np.log(scale)
        np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize("scale", [2.0**10, 2.0**-12, 0.3])
def test_sums_are_in_the_unit_of_the_weights(normalize, scale):
    weights = (WEIGHTS * np.float32(scale)).astype(np.float32)
    choice = {"normalize": normalize, "weights": weights}
    definition = (SCORES, LEVELS, MARGINS)
    value = ladder_loss(*definition, **choice)
    np.testing.assert_allclose(
        value, reference.ladder_loss(*definition, **choice), rtol=2e-6
    )
    terms = ladder_terms(*definition, **choice)
    sums = reference.ladder_terms(*definition, weights=weights)
    divisors = reference.term_divisors(*definition, **choice)
    for term, (numerator, denominator) in terms.items():
        np.testing.assert_allclose(numerator, sums[term][0], rtol=2e-6)
        np.testing.assert_allclose(denominator, divisors[term], rtol=1e-6)


def by_value(terms, levels_of_pairs):
    """The definition of pair values: pairs one by one, {term: (numerator, weights)}."""
    sums = {}
    for (hi, lo), margin in terms.items():
        numerator = denominator = 0.0
        for i in np.flatnonzero(levels_of_pairs == hi):
            for j in np.flatnonzero(levels_of_pairs == lo):
                weight = float(WEIGHTS[i]) * WEIGHTS[j] * VALUES[i]
                x = max(0.0, margin - (float(SCORES[i]) - float(SCORES[j])))
                numerator += weight * x**2
                denominator += weight
        sums[hi, lo] = numerator, denominator
    return sums


@pytest.mark.parametrize("form", FORMS)
def test_pair_values_weigh_pairs_by_their_higher_row(form):
    choice = {"weights": WEIGHTS, "pair_values": VALUES, "pairs": form}
    expected = by_value(MARGINS, LEVELS)
    terms = ladder_terms(SCORES, LEVELS, MARGINS, **choice)
    for term, sums in expected.items():
        np.testing.assert_allclose(terms[term], sums, rtol=2e-6)
    mean = sum(numerator / weights for numerator, weights in expected.values())
    ladder = ladder_loss(SCORES, LEVELS, MARGINS, **choice)
    np.testing.assert_allclose(ladder, mean, rtol=2e-6)
    margins = tuple(MARGINS.values())
    pwiser = pwiser_loss(SCORES, CLICKS, CONVERSIONS, margins=margins, **choice)
    assert pwiser == ladder


@pytest.mark.parametrize("form", FORMS)
def test_pair_values_of_ranknet(form):
    terms = {(hi, lo): 0.5 for hi in range(3) for lo in range(hi)}
    sums = by_value(terms, LEVELS).values()
    value = ranknet_loss(
        SCORES,
        LEVELS,
        surrogate="squared_hinge",
        margin=0.5,
        pairs=form,
        weights=WEIGHTS,
        pair_values=VALUES,
    )
    expected = sum(n for n, _ in sums) / sum(w for _, w in sums)
    np.testing.assert_allclose(value, expected, rtol=2e-6)


def test_equal_pair_values_change_nothing():
    rows = {"weights": WEIGHTS, "pair_values": np.full(SIZE, 0.25, np.float32)}
    for loss in (
        lambda **rows: pwiser_loss(SCORES, CLICKS, CONVERSIONS, **rows),
        lambda **rows: ranknet_loss(SCORES, LEVELS, **rows),
    ):
        assert loss(**rows) == loss(weights=WEIGHTS)


def test_a_bank_has_no_pair_values():
    bank = ConversionBank(np.ones(1, np.float32), np.ones(1, np.float32))
    with pytest.raises(ValueError, match=r"^bank: "):
        pwiser_loss(SCORES, CLICKS, CONVERSIONS, bank=bank, pair_values=VALUES)


def test_positive_weight_multiplies_costs_of_label_1_in_the_numerator():
    soft = np.random.default_rng(3).random(SIZE).astype(np.float32)
    rows = {"weights": WEIGHTS, "where": OPTIONS["where"]}

    for loss, y in product((bce_loss, focal_bce_loss), (CLICKS, soft)):
        weighted = jax.jit(partial(loss, SCORES, y, **rows))
        none, one, three = (weighted(positive_weight=p) for p in (0.0, 1.0, 3.0))
        np.testing.assert_allclose(one, weighted(), rtol=1e-6)
        # Linear in the weight: label 0 alone costs at weight 0.
        np.testing.assert_allclose(three - none, 3 * (one - none), rtol=1e-5)
    zeros = bce_loss(SCORES, CLICKS, positive_weight=0.0)
    expected = np.sum((1 - CLICKS) * np.logaddexp(0, SCORES)) / SIZE
    np.testing.assert_allclose(zeros, expected, rtol=1e-6)


def test_jrc_is_the_sum_of_its_two_terms():
    both = np.stack([SCORES, -SCORES], axis=1)
    pointwise = {"where": OPTIONS["where"], "weights": WEIGHTS}
    calibration = bce_loss(both[:, 1] - both[:, 0], CLICKS, **pointwise)
    ranking = jrc_ranking_loss(both, CLICKS, **OPTIONS)
    for alpha in (0.0, 0.25, 1.0):
        expected = alpha * calibration + (1 - alpha) * ranking
        value = jrc_loss(both, CLICKS, alpha=alpha, **OPTIONS)
        np.testing.assert_allclose(value, expected, rtol=1e-6)


@pytest.mark.parametrize("far", [1e5, 1e8, 1e30])
@pytest.mark.parametrize("surrogate", ["hinge", "squared_hinge"])
def test_a_large_score_costs_other_segments_nothing(far, surrogate):
    """In the sorted form, as segments share one sort and one table of sums."""
    size = 200
    clicks, conversions = labels(size, conversions=0.4)
    segments = np.arange(size) % 4
    s = scores("random", size)
    s[2] = far
    s[6] = -far
    clicks[[2, 6]], conversions[[2, 6]] = (1, 1), (0, 1)

    @jax.jit
    def gradient(s, weights):
        return jax.grad(
            lambda s: pwiser_loss(
                s,
                jnp.asarray(clicks),
                jnp.asarray(conversions),
                surrogate=surrogate,
                normalize="none",
                pairs="sorted",
                segments=segments,
                weights=weights,
            )
        )(s)

    others = segments != 2
    with_far = gradient(s, np.ones(size, np.float32))[others]
    without = gradient(s, others.astype(np.float32))[others]
    largest = np.abs(without).max()
    assert largest > 0
    np.testing.assert_allclose(with_far, without, rtol=1e-5, atol=1e-6 * largest)
