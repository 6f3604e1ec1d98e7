"""The sorted form's accuracy, on scores made to lose digits and on a million rows."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax import pwiser_loss
from pwiser_jax.losses import ladder_terms
from pwiser_jax.losses.pairs.bins import binned_sums
from tests.losses import prefix_reference, reference
from tests.losses.data import SHAPES

BOUND = 1e-5  # of the loss; of the gradient's largest entry
HINGES = [shape for shape in SHAPES if shape[0] != "logistic"]
PROBABILITIES, EIGHTHS, LOGITS = (0.1, 0.2), (0.125, 0.25), (0.5, 1.0)


def levels_of(kind, size):
    rng = np.random.default_rng(1)
    conversions = {
        "rare": lambda: rng.random(size) < 0.005,
        "half": lambda: rng.random(size) < 0.5,
        "one": lambda: np.arange(size) == size // 2,
        "all": lambda: np.ones(size, bool),
        "none": lambda: np.zeros(size, bool),
    }[kind]()
    return np.where(conversions, 2, rng.random(size) < 0.3)


def almost(converted, clicked, neither):
    """Margins satisfied to 1e-4: s + m rounds away most of what is left."""

    def make(rng, levels):
        s = np.choose(levels, [neither, clicked, converted])
        return s - 1e-4 * rng.random(len(levels)) * (levels == 2)

    return make


SCORES = {
    "probabilities": (PROBABILITIES, lambda rng, levels: rng.random(len(levels))),
    "logits": (LOGITS, lambda rng, levels: 3 * rng.normal(size=len(levels))),
    "equal": (PROBABILITIES, lambda rng, levels: np.full(len(levels), 0.1)),
    "two values": (PROBABILITIES, lambda rng, x: rng.choice([0.3, 0.7], len(x))),
    "1e-6 apart": (
        PROBABILITIES,
        lambda rng, x: 0.5 + 1e-6 * rng.integers(0, 50, len(x)),
    ),
    "1e3 apart": (PROBABILITIES, lambda rng, x: 1e3 * rng.integers(-5, 5, len(x))),
    "ties at the margin": (EIGHTHS, lambda rng, x: rng.integers(0, 8, len(x)) / 8),
    "near ties": (
        PROBABILITIES,
        lambda rng, x: rng.integers(0, 10, len(x)) * np.float32(0.1),
    ),
    "almost satisfied": (PROBABILITIES, almost(0.6, 0.5, 0.4)),
    "almost, about zero": (PROBABILITIES, almost(0.1003, 0.0003, -0.0997)),
    "almost, logits": (LOGITS, almost(0.7, 0.2, -0.3)),
    "almost, one far": (
        PROBABILITIES,
        lambda rng, x: (
            almost(0.6, 0.5, 0.4)(rng, x) + 1e3 * (np.arange(len(x)) == np.argmin(x))
        ),
    ),
}


def batch(scores, labels, size):
    margins, make = SCORES[scores]
    levels = levels_of(labels, size)
    s = make(np.random.default_rng(2), levels).astype(np.float32)
    return s, levels, np.float32(margins)


@cache
def compiled(surrogate, gate):
    def loss(s, levels, margins):
        return pwiser_loss(
            s,
            levels >= 1,
            levels == 2,
            margins=margins,
            surrogate=surrogate,
            gate=gate,
            pairs="sorted",
        )

    return jax.jit(jax.value_and_grad(loss))


def check(scores, labels, size, surrogate, gate):
    s, levels, margins = batch(scores, labels, size)
    value, gradient = compiled(surrogate, gate)(s, levels, margins)
    expected, slopes = prefix_reference.pwiser_loss(s, levels, margins, surrogate, gate)
    case = f"{scores}, {labels}, {size} rows"
    assert abs(float(value) - expected) <= BOUND * expected, case
    difference = np.abs(np.asarray(gradient) - slopes).max()
    assert difference <= BOUND * np.abs(slopes).max(), case


@pytest.mark.parametrize(("surrogate", "gate"), HINGES)
def test_prefix_sums_are_the_definition(surrogate, gate):
    for scores in SCORES:
        s, levels, margins = batch(scores, "half", 60)
        value, gradient = prefix_reference.pwiser_loss(
            s, levels, margins, surrogate, gate
        )
        terms = {(2, 1): margins[0], (2, 0): margins[1]}
        choice = {"surrogate": surrogate, "gate": gate}
        expected = reference.ladder_loss(s, levels, terms, **choice)
        np.testing.assert_allclose(float(value), expected, rtol=1e-9, atol=1e-25)
        slopes = reference.ladder_gradient(s, levels, terms, **choice)
        scale = np.abs(slopes).max()
        np.testing.assert_allclose(
            gradient.astype(float), slopes, rtol=0, atol=1e-9 * scale + 1e-25
        )


@pytest.mark.parametrize(("surrogate", "gate"), HINGES)
def test_accuracy(surrogate, gate):
    for labels in ("rare", "half", "one", "all", "none"):
        for scores in SCORES:
            check(scores, labels, 5003, surrogate, gate)


@pytest.mark.parametrize(("surrogate", "gate"), HINGES)
@pytest.mark.parametrize("labels", ["rare", "half"])
def test_accuracy_of_a_million_rows(surrogate, gate, labels):
    for scores in ("probabilities", "equal", "almost satisfied", "almost, one far"):
        check(scores, labels, 2**20, surrogate, gate)


def test_pair_counts_beyond_integers_of_32_bits():
    size = 262_144
    levels = levels_of("half", size)
    terms = jax.jit(lambda s: ladder_terms(s, levels, {(2, 1): 0.1, (2, 0): 0.2}))
    actual = terms(np.zeros(size, np.float32))
    conversions = int(np.sum(levels == 2))
    for (_, lower), (_, pairs) in actual.items():
        expected = conversions * int(np.sum(levels == lower))
        assert expected > 2**31
        assert abs(int(pairs) - expected) <= 2e-7 * expected


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_sums_of_a_bin_lose_nothing(scale):
    size = 2**20
    rng = np.random.default_rng(0)
    bins = np.where(np.arange(size) < size // 2, 0, rng.integers(1, 4, size))
    values = np.where(bins == 0, 0.1, rng.normal(size=size)) * scale
    values = values.astype(np.float32)
    sums = jax.jit(binned_sums, static_argnums=2)(values, bins, 5)
    expected = np.bincount(bins, values.astype(float), minlength=5)
    np.testing.assert_allclose(sums[0], expected[0], rtol=1e-7)
    np.testing.assert_allclose(
        sums, expected, rtol=2**-23, atol=2**-20 * np.abs(values).max()
    )
    order = rng.permutation(size)
    again = jax.jit(binned_sums, static_argnums=2)(values[order], bins[order], 5)
    np.testing.assert_array_equal(again, sums)


@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_sums_in_double_precision_beyond_single_ranges(scale):
    with jax.enable_x64(True):
        values = np.random.default_rng(0).random(64) * scale
        bins = np.arange(64) % 3
        sums = binned_sums(jnp.asarray(values), jnp.asarray(bins), 3)
        np.testing.assert_allclose(sums, np.bincount(bins, values), rtol=1e-13)


def test_sums_of_bins_do_not_hide_bad_values():
    for bad in (np.nan, np.inf):
        values = jnp.array([1.0, bad, 2.0])
        assert np.isnan(binned_sums(values, jnp.array([0, 1, 2]), 3)).all()


@pytest.mark.parametrize("wrong", ["forward mode", "second derivatives"])
def test_sorted_has_first_derivatives_in_reverse_mode_only(wrong):
    s, levels, _ = batch("probabilities", "half", 20)

    def loss(s):
        return pwiser_loss(s, levels >= 1, levels == 2, pairs="sorted")

    if wrong == "forward mode":
        with pytest.raises(TypeError, match="forward-mode"):
            jax.jvp(loss, (s,), (s,))
    else:
        with pytest.raises(NotImplementedError, match="broadcast"):
            jax.grad(lambda s: jnp.sum(jax.grad(loss)(s) ** 2))(s)
