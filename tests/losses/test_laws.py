"""Laws of single losses; those of all losses are in test_properties.py."""

import numpy as np
import pytest

from pwiser_jax import bce_loss, ladder_loss, pwiser_loss
from pwiser_jax.losses import ladder_terms
from tests.losses.data import labels, row_options, scores

SIZE = 24
CLICKS, CONVERSIONS = labels(SIZE)
LEVELS = np.random.default_rng(5).integers(0, 4, SIZE)
SCORES = scores("random", SIZE)


def test_negatives_of_segments_without_conversions_are_counted():
    s, levels = SCORES[:4], np.array([2, 1, 1, 1])
    segments = np.array([0, 0, 1, 1])
    terms = ladder_terms(
        s, levels, {(2, 1): 0.1}, normalize="negatives", segments=segments
    )
    assert terms[2, 1][1] == 3


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_a_term_without_a_level_is_zero(missing):
    levels = np.where(missing == LEVELS, 3, LEVELS) % 4
    margins = {(2, 1): 0.5, (2, 0): 0.5, (1, 0): 0.5}
    levels = np.where(levels == 3, 4, levels)  # no term knows level 4
    terms = ladder_terms(SCORES, levels, {**margins, (4, 3): 0.5})
    for (hi, lo), (numerator, denominator) in terms.items():
        empty = missing in (hi, lo) or (hi, lo) == (4, 3)
        assert (denominator == 0) == (numerator == 0) == empty


def test_pwiser_is_the_ladder_of_two_labels():
    options = row_options(SIZE)
    levels = np.where(CONVERSIONS, 2, CLICKS)
    expected = pwiser_loss(SCORES, CLICKS, CONVERSIONS, **options)
    margins = {(2, 1): 0.1, (2, 0): 0.2}
    assert ladder_loss(SCORES, levels, margins, **options) == expected


def test_term_weights_are_1_by_default():
    margins = {(3, 2): 0.1, (3, 0): 0.5, (2, 1): 0.2}
    weights = {(3, 2): 0.5, (3, 0): 2}
    some = ladder_loss(SCORES, LEVELS, margins, term_weights=weights)
    weights[2, 1] = 1
    assert ladder_loss(SCORES, LEVELS, margins, term_weights=weights) == some
    assert ladder_loss(SCORES, LEVELS, margins) != some


def test_labels_of_any_type():
    for dtype in (bool, np.int32, np.uint8, np.float32):
        clicks, conversions = CLICKS.astype(dtype), CONVERSIONS.astype(dtype)
        value = pwiser_loss(SCORES, clicks, conversions)
        assert value == pwiser_loss(SCORES, CLICKS, CONVERSIONS)
        assert bce_loss(SCORES, clicks) == bce_loss(SCORES, CLICKS)
