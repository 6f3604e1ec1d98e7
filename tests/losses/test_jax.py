"""Losses under jit, vmap and the precisions; their imports."""

import subprocess
import sys
from pathlib import Path

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
from tests.losses import reference
from tests.losses.data import FORMS, labels, row_options, scores

SIZE = 16
SCORES, (CLICKS, CONVERSIONS) = scores("random", SIZE), labels(SIZE)
MARGINS = np.array([[0.1, 0.2], [0.5, 0.0], [-0.2, 0.3]], np.float32)


@pytest.mark.parametrize("form", FORMS)
def test_new_margins_do_not_compile_again(form):
    traces = []

    @jax.jit
    def loss(margins, factor):
        traces.append(margins)
        terms = {(2, 1): margins[0], (2, 0): margins[1]}
        levels = jnp.where(CONVERSIONS > 0, 2, CLICKS)
        return pwiser_loss(
            SCORES, CLICKS, CONVERSIONS, margins=margins, pairs=form
        ) + ladder_loss(
            SCORES, levels, terms, term_weights={(2, 1): factor}, pairs=form
        )

    assert len({float(loss(margins, 2.0)) for margins in MARGINS}) == len(MARGINS)
    assert loss(MARGINS[0], 3.0) != loss(MARGINS[0], 2.0)
    assert len(traces) == 1


def test_new_numbers_do_not_compile_again():
    traces = []

    @jax.jit
    def loss(gamma, alpha):
        traces.append(gamma)
        return (
            focal_bce_loss(SCORES, CLICKS, gamma=gamma, alpha=alpha)
            + bce_ranknet_loss(SCORES, CLICKS, alpha=alpha)
            + jrc_loss(np.stack([SCORES, -SCORES], axis=1), CLICKS, alpha=alpha)
        )

    arguments = [(2.0, 0.5), (1.0, 0.5), (2.0, 0.25)]
    assert len({float(loss(*numbers)) for numbers in arguments}) == len(arguments)
    assert len(traces) == 1


@pytest.mark.parametrize("form", FORMS)
def test_vmap_equals_a_loop(form):
    """Over scores and margins, and over weights, on which tiles depend."""
    options = [row_options(SIZE, seed) for seed in range(3)]
    weights = np.stack([option["weights"] for option in options])
    many = np.stack([scores("random", SIZE, seed) for seed in range(3)])

    @jax.jit
    @jax.value_and_grad
    def loss(s, margins, weights):
        return pwiser_loss(
            s, CLICKS, CONVERSIONS, margins=margins, weights=weights, pairs=form
        )

    for axes in ((0, None, None), (None, 0, None), (0, 0, 0)):
        arguments = [
            array if axis == 0 else array[0]
            for array, axis in zip((many, MARGINS, weights), axes, strict=True)
        ]
        together = jax.vmap(loss, in_axes=axes)(*arguments)
        for k in range(3):
            one = [
                array[k] if axis == 0 else array
                for array, axis in zip(arguments, axes, strict=True)
            ]
            for a, b in zip(together, loss(*one), strict=True):
                np.testing.assert_allclose(a[k], b, rtol=1e-6, atol=1e-7)


def test_vmap_equals_a_loop_without_a_form():
    """Over all arguments: scores, labels, weights, segments and numbers."""
    options = [row_options(SIZE, seed) for seed in range(3)]
    weights, segments = (
        np.stack([option[name] for option in options])
        for name in ("weights", "segments")
    )
    many = np.stack([scores("logits", SIZE, seed) for seed in range(3)])
    clicks = np.stack([labels(SIZE, seed)[0] for seed in range(3)])
    alphas = np.float32([0.1, 0.5, 0.9])

    @jax.jit
    @jax.value_and_grad
    def loss(s, y, weights, segments, alpha):
        rows = {"weights": weights, "alpha": alpha}
        both = jnp.stack([s, -s], axis=1)
        return (
            bce_ranknet_loss(s, y, segments=segments, **rows)
            + 2 * jrc_loss(both, y, segments=segments, **rows)
            + 3 * focal_bce_loss(s, y, **rows)
            + 4 * label_constraint_loss(jax.nn.sigmoid(both), weights=weights)
        )

    together = jax.vmap(loss)(many, clicks, weights, segments, alphas)
    for k in range(3):
        one = loss(many[k], clicks[k], weights[k], segments[k], alphas[k])
        for a, b in zip(together, one, strict=True):
            np.testing.assert_allclose(a[k], b, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_widened(dtype):
    def beside_zero(s):
        return jnp.stack([jnp.zeros_like(s), s], axis=1)

    narrow = jnp.asarray(SCORES, dtype)
    wide = narrow.astype(jnp.float32)
    for loss in (
        lambda s: pwiser_loss(s, CLICKS, CONVERSIONS),
        lambda s: bce_loss(s, CLICKS),
        lambda s: focal_bce_loss(s, CLICKS),
        lambda s: ranknet_loss(s, CLICKS),
        lambda s: jrc_loss(beside_zero(s), CLICKS),
        lambda s: label_constraint_loss(beside_zero(s)),
    ):
        run = jax.jit(jax.value_and_grad(loss))
        value, gradient = run(narrow)
        expected, wide_gradient = run(wide)
        assert value.dtype == jnp.float32
        assert value == expected
        np.testing.assert_array_equal(gradient, wide_gradient.astype(dtype))


def test_double_precision_stays():
    with jax.enable_x64(True):
        s = np.random.default_rng(0).random(SIZE)
        levels = reference.pwiser_levels(CLICKS, CONVERSIONS)
        value = pwiser_loss(s, CLICKS, CONVERSIONS)
        terms = reference.pwiser_margins((0.1, 0.2))
        expected = reference.ladder_loss(s, levels, terms, precision=np.float64)
        np.testing.assert_allclose(value, expected, rtol=1e-13)
        value = bce_loss(s, CLICKS)
        np.testing.assert_allclose(value, reference.bce_loss(s, CLICKS), rtol=1e-13)
        value = ranknet_loss(s, CLICKS)
        expected = reference.ranknet_loss(s, CLICKS)
        np.testing.assert_allclose(value, expected, rtol=1e-13)
        logits = np.stack([s, -s], axis=1)
        value = jrc_loss(logits, CLICKS, segments=levels)
        expected = reference.jrc_loss(logits, CLICKS, segments=levels)
        np.testing.assert_allclose(value, expected, rtol=1e-13)
        assert pwiser_loss(SCORES, CLICKS, CONVERSIONS).dtype == jnp.float32


def test_losses_need_only_jax_chex_and_numpy():
    program = """
import sys
from pwiser_jax.losses import pwiser_loss
heavy = {"flax", "optax", "orbax", "polars", "matplotlib", "sklearn", "jsonargparse"}
others = {"data", "metrics", "models", "reports", "tasks", "training"}
names = {name.split(".")[0] for name in sys.modules}
package = {name.split(".")[1] for name in sys.modules if name.startswith("pwiser_jax.")}
print(sorted(names & heavy), sorted(package & others))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[] []"
