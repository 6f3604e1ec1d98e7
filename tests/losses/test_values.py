"""Pair losses against their float64 definitions, in value and gradient."""

import jax
import numpy as np
import pytest

from pwiser_jax import ladder_loss, pwiser_loss
from pwiser_jax.losses import ladder_terms
from tests.losses import reference
from tests.losses.data import (
    NORMALIZATIONS,
    SCORES,
    SHAPES,
    labels,
    row_options,
    scores,
)

SIZE = 37
LEVEL_MARGINS = {(3, 2): 0.125, (3, 0): 0.5, (2, 1): 0.1, (1, 0): -0.25}


def assert_close(actual, expected, scale=None):
    """Within 2e-6, of the largest entry for a gradient."""
    scale = np.abs(expected).max() if scale is None else scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-6 * scale + 1e-30)


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize(("surrogate", "gate"), SHAPES)
@pytest.mark.parametrize("options", [{}, row_options(SIZE)], ids=["plain", "rows"])
def test_pwiser_equals_its_definition(surrogate, gate, normalize, options):
    clicks, conversions = labels(SIZE)
    levels = reference.pwiser_levels(clicks, conversions)
    choice = {"surrogate": surrogate, "gate": gate, "normalize": normalize, **options}
    for kind in SCORES:
        s = scores(kind, SIZE)
        margins = (0.1, 0.2) if kind in ("random", "tenths") else (0.125, 0.25)

        def loss(s, margins=margins):
            return pwiser_loss(s, clicks, conversions, margins=margins, **choice)

        value, gradient = jax.value_and_grad(loss)(s)
        definition = (s, levels, reference.pwiser_margins(margins))
        assert_close(value, reference.ladder_loss(*definition, **choice))
        assert_close(gradient, reference.ladder_gradient(*definition, **choice))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
@pytest.mark.parametrize(("surrogate", "gate"), SHAPES)
def test_ladder_equals_its_definition(surrogate, gate, normalize):
    levels = np.random.default_rng(5).integers(0, 4, SIZE)
    choice = {
        "surrogate": surrogate,
        "gate": gate,
        "normalize": normalize,
        "term_weights": {(3, 2): 0.5, (1, 0): 2.0},
        **row_options(SIZE),
    }
    for kind in ("logits", "ties", "tenths"):
        s = scores(kind, SIZE)
        value, gradient = jax.value_and_grad(
            lambda s: ladder_loss(s, levels, LEVEL_MARGINS, **choice)
        )(s)
        definition = (s, levels, LEVEL_MARGINS)
        assert_close(value, reference.ladder_loss(*definition, **choice))
        assert_close(gradient, reference.ladder_gradient(*definition, **choice))


@pytest.mark.parametrize("normalize", NORMALIZATIONS)
def test_terms_are_numerators_and_denominators(normalize):
    s, options = scores("random", SIZE), row_options(SIZE)
    levels = np.random.default_rng(5).integers(0, 4, SIZE)
    terms = ladder_terms(s, levels, LEVEL_MARGINS, normalize=normalize, **options)
    sums = reference.ladder_terms(s, levels, LEVEL_MARGINS, **options)
    divisors = reference.term_divisors(s, levels, LEVEL_MARGINS, normalize, **options)
    assert list(terms) == list(LEVEL_MARGINS)
    for term, (numerator, denominator) in terms.items():
        np.testing.assert_allclose(numerator, sums[term][0], rtol=2e-6)
        assert denominator == divisors[term]


@pytest.mark.parametrize("margins", [(0.125, None), (None, 0.25)])
def test_a_margin_of_none_leaves_the_term_out(margins):
    s, (clicks, conversions) = scores("random", SIZE), labels(SIZE)
    value = pwiser_loss(s, clicks, conversions, margins=margins)
    levels = reference.pwiser_levels(clicks, conversions)
    terms = reference.pwiser_margins(margins)
    assert_close(value, reference.ladder_loss(s, levels, terms))


def test_gradient_by_the_margins():
    """x grows with the margin as it does with the lower score."""
    s, (clicks, conversions) = scores("random", SIZE), labels(SIZE)
    levels = reference.pwiser_levels(clicks, conversions)

    def loss(margins):
        return pwiser_loss(s, clicks, conversions, margins=margins)

    gradient = jax.grad(loss)(np.array([0.1, 0.2], np.float32))
    for k, term in enumerate([(2, 1), (2, 0)]):
        margin = {term: (0.1, 0.2)[k]}
        by_scores = reference.ladder_gradient(s, levels, margin)
        assert_close(gradient[k], by_scores[levels == term[1]].sum())


@pytest.mark.parametrize(("surrogate", "gate"), SHAPES)
def test_the_definitions_gradient_is_its_slope(surrogate, gate):
    levels = np.random.default_rng(5).integers(0, 4, SIZE)
    # Multiples of 1/64 + 1/128 for odd levels: no pair is at a kink or at the jump.
    s = np.round(scores("logits", SIZE) * 64) / 64 + (levels % 2) / 128 + levels / 512
    choice = {"surrogate": surrogate, "gate": gate, **row_options(SIZE)}
    gradient = reference.ladder_gradient(s, levels, LEVEL_MARGINS, **choice)
    step = 1e-4
    for i in range(SIZE):
        up, down = s.copy(), s.copy()
        up[i] += step
        down[i] -= step
        rise = [
            reference.ladder_loss(
                x, levels, LEVEL_MARGINS, precision=np.float64, **choice
            )
            for x in (up, down)
        ]
        slope = (rise[0] - rise[1]) / (2 * step)
        np.testing.assert_allclose(slope, gradient[i], rtol=1e-5, atol=1e-7)
