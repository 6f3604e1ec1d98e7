"""Laws that hold for every loss, whatever its formula."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from losses_data import NORMALIZATIONS, SHAPES, labels, row_options, scores

from pwiser_jax import bce_loss, ladder_loss, pwiser_loss
from pwiser_jax.losses import ladder_terms

SIZE = 24
CLICKS, CONVERSIONS = labels(SIZE)
LEVELS = np.random.default_rng(5).integers(0, 4, SIZE)
LADDER = {(3, 2): 0.1, (3, 0): 0.5, (2, 1): 0.2}


def pwiser(s, rows, **options):
    return pwiser_loss(s, CLICKS[rows], CONVERSIONS[rows], **options)


def ladder(s, rows, **options):
    return ladder_loss(s, LEVELS[rows], LADDER, **options)


def bce(s, rows, **options):
    options.pop("segments", None)
    return bce_loss(s, CLICKS[rows], **options)


PAIR_LOSSES = {
    "ladder": ladder,
    "blocked": partial(pwiser, pairs="blocked"),
    **{
        f"{surrogate}-{gate}": partial(pwiser, surrogate=surrogate, gate=gate)
        for surrogate, gate in SHAPES
    },
    **{
        f"over-{normalize}": partial(pwiser, normalize=normalize)
        for normalize in NORMALIZATIONS[1:]
    },
}
LOSSES = {"bce": bce, **PAIR_LOSSES}
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES.keys())
every_pair_loss = pytest.mark.parametrize(
    "loss", PAIR_LOSSES.values(), ids=PAIR_LOSSES.keys()
)

ALL = np.arange(SIZE)
SCORES = scores("random", SIZE)


def value_and_gradient(loss, s, rows, **options):
    return jax.value_and_grad(lambda s: loss(s, rows, **options))(jnp.asarray(s))


def assert_equal(actual, expected):
    for a, b in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@every_loss
def test_order_of_rows_changes_nothing(loss):
    options = row_options(SIZE)
    value, gradient = value_and_gradient(loss, SCORES, ALL, **options)
    order = np.random.default_rng(7).permutation(SIZE)
    shuffled = {name: rows[order] for name, rows in options.items()}
    actual = value_and_gradient(loss, SCORES[order], order, **shuffled)
    assert_equal(actual, (value, gradient[order]))


@every_loss
@pytest.mark.parametrize("how", ["where", "weights"])
def test_masking_rows_is_dropping_them(loss, how):
    """Whatever the masked rows hold."""
    keep = row_options(SIZE)["where"]
    options = {"where": keep} if how == "where" else {"weights": np.float32(keep)}
    garbage = np.resize(np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38]), SIZE)
    masked = np.where(keep, SCORES, garbage)
    value, gradient = value_and_gradient(loss, masked, ALL, **options)
    dropped = value_and_gradient(loss, SCORES[keep], ALL[keep])
    assert_equal((value, gradient[keep]), dropped)
    np.testing.assert_array_equal(gradient[~keep], 0)


@every_loss
def test_no_row_gives_zero(loss):
    nothing = np.zeros(SIZE, bool)
    value, gradient = value_and_gradient(
        loss, np.full(SIZE, np.nan, np.float32), ALL, where=nothing
    )
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@every_loss
def test_weight_two_is_the_row_twice(loss):
    weights = 1 + np.float32(np.arange(SIZE) % 3 == 0)
    value, gradient = value_and_gradient(loss, SCORES, ALL, weights=weights)
    twice = np.repeat(ALL, weights.astype(int))
    expected, by_copy = value_and_gradient(loss, SCORES[twice], twice)
    assert_equal((value, gradient), (expected, np.bincount(twice, by_copy)))


@every_pair_loss
def test_a_common_shift_changes_nothing(loss):
    s = np.round(SCORES * 1024) / 1024  # and s + 4 is exact too
    value, gradient = value_and_gradient(loss, s, ALL)
    assert_equal(value_and_gradient(loss, s + 4, ALL), (value, gradient))
    np.testing.assert_allclose(gradient.sum(), 0, atol=1e-6 * np.abs(gradient).max())


@pytest.mark.parametrize("surrogate", ["hinge", "squared_hinge"])
def test_nothing_to_gain_where_the_order_is_right(surrogate):
    s = LEVELS.astype(np.float32)
    value, gradient = value_and_gradient(ladder, s, ALL, surrogate=surrogate)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_sums_over_segments_are_sums_of_the_segments_sums(normalize):
    options = row_options(SIZE)
    segments = options["segments"]
    of = partial(ladder_terms, margins=LADDER, normalize=normalize)
    whole = of(SCORES, LEVELS, **options)
    parts = [
        of(
            SCORES[rows],
            LEVELS[rows],
            where=options["where"][rows],
            weights=options["weights"][rows],
        )
        for rows in (segments == segment for segment in np.unique(segments))
    ]
    for term, (numerator, denominator) in whole.items():
        np.testing.assert_allclose(
            numerator, sum(part[term][0] for part in parts), rtol=1e-6
        )
        if normalize != "none":
            assert denominator == sum(part[term][1] for part in parts)


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
    matrix = np.full((3, 3), np.nan)
    matrix[2, 1], matrix[2, 0] = 0.1, 0.2
    expected = pwiser(SCORES, ALL, **options)
    for margins in (matrix, {(2, 1): 0.1, (2, 0): 0.2}):
        assert ladder_loss(SCORES, levels, margins, **options) == expected


def test_term_weights_as_a_mapping_or_a_matrix():
    matrix = np.full((4, 4), np.nan)
    matrix[3, 2], matrix[3, 0], matrix[2, 1] = 0.5, 2, 1
    as_mapping = ladder(SCORES, ALL, term_weights={(3, 2): 0.5, (3, 0): 2})
    assert ladder(SCORES, ALL, term_weights=matrix) == as_mapping
    assert ladder(SCORES, ALL) != as_mapping


def test_labels_of_any_type():
    for dtype in (bool, np.int32, np.uint8, np.float32):
        clicks, conversions = CLICKS.astype(dtype), CONVERSIONS.astype(dtype)
        assert pwiser_loss(SCORES, clicks, conversions) == pwiser(SCORES, ALL)
        assert bce_loss(SCORES, clicks) == bce(SCORES, ALL)
