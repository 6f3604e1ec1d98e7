"""The effect of invalid values, and the errors for invalid arguments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax import (
    bce_loss,
    bce_ranknet_loss,
    focal_bce_loss,
    jrc_loss,
    label_constraint_loss,
    ladder_loss,
    pwiser_loss,
    ranknet_loss,
)
from tests.losses.data import FORM_SURROGATES

SCORES = np.array([0.9, 0.4, 0.5, 0.1], np.float32)
COLUMNS = np.stack([SCORES, SCORES[::-1]], axis=1)
CLICKS = np.array([1, 1, 1, 0])
CONVERSIONS = np.array([1, 0, 0, 0])
LADDER = {(1, 0): 0.1}
NAN = float("nan")
BAD = [NAN, float("inf"), -float("inf")]


def pwiser(scores=SCORES, clicks=CLICKS, conversions=CONVERSIONS, **options):
    return pwiser_loss(scores, clicks, conversions, **options)


def ladder(scores=SCORES, levels=CLICKS, margins=LADDER, **options):
    return ladder_loss(scores, levels, margins, **options)


def bce(logits=SCORES, labels=CLICKS, **options):
    return bce_loss(logits, labels, **options)


def focal(logits=SCORES, labels=CLICKS, **options):
    return focal_bce_loss(logits, labels, **options)


def ranknet(scores=SCORES, labels=CLICKS, **options):
    return ranknet_loss(scores, labels, **options)


def both(logits=SCORES, labels=CLICKS, **options):
    return bce_ranknet_loss(logits, labels, **options)


def jrc(logits=COLUMNS, labels=CLICKS, **options):
    return jrc_loss(logits, labels, **options)


def constraint(probabilities=COLUMNS, **options):
    return label_constraint_loss(probabilities, **options)


def changed(array, row, value):
    result = np.array(array, np.float32)
    result[row] = value
    return result


@pytest.mark.parametrize(("form", "surrogate"), FORM_SURROGATES)
@pytest.mark.parametrize("conversions", [[1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
def test_a_bad_score_that_counts_gives_nan(form, surrogate, conversions):
    """Also where no pair holds it, where the loss would else be 0."""

    @jax.jit
    def run(scores):
        return jax.value_and_grad(pwiser)(
            scores, conversions=jnp.array(conversions), surrogate=surrogate, pairs=form
        )

    assert np.isfinite(run(SCORES)[0])
    for row in range(4):
        for bad in BAD:
            value, gradient = run(changed(SCORES, row, bad))
            assert np.isnan(value)
            assert np.isnan(gradient[row])


@pytest.mark.parametrize("loss", [bce, focal, ranknet, both, jrc, constraint])
def test_a_bad_number_that_counts_gives_nan(loss):
    run = jax.jit(jax.value_and_grad(loss))
    good = COLUMNS if loss in (jrc, constraint) else SCORES
    assert np.isfinite(run(good)[0])
    for entry in np.ndindex(*good.shape):
        for bad in BAD:
            value, gradient = run(changed(good, entry, bad))
            assert np.isnan(value)
            assert np.isnan(gradient[entry])


@pytest.mark.parametrize(
    "call",
    [
        lambda: pwiser(clicks=changed(CLICKS, 3, NAN)),
        lambda: pwiser(conversions=changed(CONVERSIONS, 3, NAN)),
        lambda: pwiser(weights=changed(np.ones(4), 3, NAN)),
        lambda: pwiser(weights=changed(np.ones(4), 0, np.inf)),
        lambda: pwiser(margins=(0.1, NAN)),
        lambda: bce(labels=changed(CLICKS, 3, NAN)),
        lambda: bce(weights=changed(np.ones(4), 3, NAN)),
        lambda: focal(labels=changed(CLICKS, 3, NAN)),
        lambda: focal(gamma=NAN),
        lambda: focal(alpha=NAN),
        lambda: ranknet(labels=changed(CLICKS, 3, NAN)),
        lambda: ranknet(weights=changed(np.ones(4), 3, NAN)),
        lambda: both(labels=changed(CLICKS, 3, NAN)),
        lambda: both(alpha=NAN),
        lambda: jrc(labels=changed(CLICKS, 3, NAN)),
        lambda: jrc(weights=changed(np.ones(4), 3, np.inf)),
        lambda: jrc(alpha=NAN),
        lambda: constraint(weights=changed(np.ones(4), 3, NAN)),
        lambda: jax.jit(ladder)(SCORES, np.array([1, 0, 0, 2])),
        lambda: jax.jit(ladder)(SCORES, np.array([1, 0, 0, -1])),
    ],
)
def test_other_bad_values_that_count_give_nan(call):
    assert np.isnan(call())


def test_bad_values_that_do_not_count_change_nothing():
    options = {"where": np.array([True, True, True, False])}
    bad = {
        "clicks": changed(CLICKS, 3, NAN),
        "conversions": changed(CONVERSIONS, 3, NAN),
        "weights": changed(np.ones(4), 3, NAN),
    }
    assert pwiser(**bad, **options) == pwiser(**options)
    labels, weights = bad["clicks"], bad["weights"]
    for loss in (bce, focal, ranknet, both, jrc):
        assert loss(labels=labels, weights=weights, **options) == loss(**options)
    assert constraint(weights=weights, **options) == constraint(**options)
    levels = np.array([1, 0, 0, 7])
    assert ladder(levels=levels, **options) == ladder(levels=levels % 7, **options)


def test_huge_scores_without_a_pair_are_harmless():
    """Their pairs would overflow."""
    s = np.array([3e38, -3e38, 3e38, -3e38], np.float32)
    nothing = np.zeros(4, int)
    value, gradient = jax.value_and_grad(pwiser)(s, conversions=nothing)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("error", "name", "call"),
    [
        (AssertionError, "scores", lambda: pwiser(scores=np.ones((4, 1), np.float32))),
        (AssertionError, "scores", lambda: pwiser(scores=np.ones(4, int))),
        (AssertionError, "clicks", lambda: pwiser(clicks=CLICKS[:3])),
        (AssertionError, "clicks", lambda: pwiser(clicks=CLICKS * 1j)),
        (AssertionError, "conversions", lambda: pwiser(conversions=CLICKS[:, None])),
        (AssertionError, "where", lambda: pwiser(where=CLICKS)),
        (AssertionError, "where", lambda: pwiser(where=np.ones(3, bool))),
        (AssertionError, "weights", lambda: pwiser(weights=CLICKS)),
        (AssertionError, "weights", lambda: pwiser(weights=SCORES[:2])),
        (AssertionError, "segments", lambda: pwiser(segments=SCORES)),
        (AssertionError, "segments", lambda: pwiser(segments=CLICKS[:2])),
        (ValueError, "segments", lambda: pwiser(segments=CLICKS * 2**32)),
        (ValueError, "surrogate", lambda: pwiser(surrogate="huber")),
        (ValueError, "gate", lambda: pwiser(gate="open")),
        (ValueError, "gate", lambda: pwiser(gate="literal", surrogate="hinge")),
        (ValueError, "normalize", lambda: pwiser(normalize="mean")),
        (ValueError, "pairs", lambda: pwiser(pairs="all")),
        (ValueError, "pairs", lambda: pwiser(pairs="sorted", surrogate="logistic")),
        (ValueError, "margins", lambda: pwiser(margins=0.1)),
        (ValueError, "margins", lambda: pwiser(margins=(0.1, 0.2, 0.3))),
        (ValueError, "margins", lambda: pwiser(margins=(None, None))),
        (AssertionError, "margins", lambda: pwiser(margins=np.ones((2, 2)))),
        (AssertionError, "levels", lambda: ladder(levels=SCORES)),
        (AssertionError, "levels", lambda: ladder(levels=CLICKS[:2])),
        (ValueError, "levels", lambda: ladder(levels=np.array([1, 0, 2, 0]))),
        (ValueError, "levels", lambda: ladder(levels=np.array([-1, 0, 1, 0]))),
        (ValueError, "margins", lambda: ladder(margins={(1, 1): 0.1})),
        (ValueError, "margins", lambda: ladder(margins={(1, -1): 0.1})),
        (ValueError, "margins", lambda: ladder(margins={(0, 1): 0.1})),
        (TypeError, "margins", lambda: ladder(margins=np.array([[NAN, 1], [1, NAN]]))),
        (TypeError, "margins", lambda: ladder(margins=[[NAN]])),
        (ValueError, "margins", lambda: ladder(margins={})),
        (AssertionError, "margins", lambda: ladder(margins={(1, 0): SCORES})),
        (
            TypeError,
            "margins",
            lambda: jax.jit(lambda m: ladder(margins=[[m, m], [m, m]]))(0.1),
        ),
        (ValueError, "term_weights", lambda: ladder(term_weights={(2, 0): 1.0})),
        (TypeError, "term_weights", lambda: ladder(term_weights=np.ones((2, 2)))),
        (AssertionError, "term_weights", lambda: ladder(term_weights={(1, 0): SCORES})),
        (AssertionError, "logits", lambda: bce(logits=CLICKS)),
        (AssertionError, "labels", lambda: bce(labels=CLICKS[:2])),
        (AssertionError, "where", lambda: bce(where=CLICKS)),
        (AssertionError, "weights", lambda: bce(weights=SCORES[:2])),
        (AssertionError, "logits", lambda: focal(logits=COLUMNS)),
        (AssertionError, "labels", lambda: focal(labels=CLICKS * 1j)),
        (AssertionError, "gamma", lambda: focal(gamma=SCORES)),
        (AssertionError, "alpha", lambda: focal(alpha=SCORES)),
        (AssertionError, "scores", lambda: ranknet(scores=COLUMNS)),
        (AssertionError, "labels", lambda: ranknet(labels=CLICKS[:2])),
        (AssertionError, "weights", lambda: ranknet(weights=CLICKS)),
        (AssertionError, "segments", lambda: ranknet(segments=SCORES)),
        (ValueError, "normalize", lambda: ranknet(normalize="negatives")),
        (AssertionError, "logits", lambda: both(logits=CLICKS)),
        (AssertionError, "segments", lambda: both(segments=CLICKS[:2])),
        (AssertionError, "alpha", lambda: both(alpha=SCORES)),
        (AssertionError, "logits", lambda: jrc(logits=SCORES)),
        (AssertionError, "logits", lambda: jrc(logits=COLUMNS[:, :1])),
        (AssertionError, "logits", lambda: jrc(logits=COLUMNS.astype(int))),
        (AssertionError, "labels", lambda: jrc(labels=CLICKS[:2])),
        (AssertionError, "segments", lambda: jrc(segments=SCORES)),
        (ValueError, "segments", lambda: jrc(segments=CLICKS * 2**32)),
        (AssertionError, "alpha", lambda: jrc(alpha=SCORES)),
        (AssertionError, "probabilities", lambda: constraint(SCORES)),
        (AssertionError, "probabilities", lambda: constraint(COLUMNS[:, :1])),
        (AssertionError, "probabilities", lambda: constraint(COLUMNS.astype(int))),
        (AssertionError, "where", lambda: constraint(where=CLICKS)),
    ],
)
def test_errors_name_the_argument(error, name, call):
    with pytest.raises(error, match=rf"\b{name}: "):
        call()
