"""ESCM2's losses of CVR: definitions in float64, constants, and a known bias."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax.losses import bce_loss, escm2_dr_loss, escm2_ips_loss
from tests.losses import reference
from tests.losses.data import row_options

SIZE = 23
OPTIONS = row_options(SIZE)
del OPTIONS["segments"]
RNG = np.random.default_rng(3)
CLICKS = RNG.random(SIZE) < 0.5
CONVERSIONS = CLICKS & (RNG.random(SIZE) < 0.4)
LOSSES = {"ips": (escm2_ips_loss, 2), "dr": (escm2_dr_loss, 3)}


def definition(logits, propensities, *, floor, where=None, weights=None):
    """Row by row, of constant propensities; with a third logit, doubly robust."""
    w = reference.row_weights(SIZE, where, weights)
    total = 0.0
    for i in np.flatnonzero(w):
        v = float(logits[i, 1])
        cost = reference.softplus(-v if CONVERSIONS[i] else v)
        share = float(CLICKS[i]) / max(propensities[i], floor)
        if logits.shape[1] == 2:
            total += w[i] * share * cost
        else:
            imputed = reference.softplus(float(logits[i, 2]))
            error = cost - imputed
            total += w[i] * (imputed + share * error + share * error**2)
    return total / w.sum()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "rows"])
@pytest.mark.parametrize("floor", [0.01, 0.3])
def test_value_and_gradient_equal_the_definition(name, options, floor):
    loss, columns = LOSSES[name]
    logits = (3 * RNG.normal(size=(SIZE, columns))).astype(np.float32)
    propensities = 1 / (1 + np.exp(-logits[:, 0].astype(float)))
    assert (propensities < 0.3).any()
    run = jax.jit(jax.value_and_grad(loss))
    value, gradient = run(logits, CLICKS, CONVERSIONS, floor=floor, **options)
    of_constants = partial(
        definition, propensities=propensities, floor=floor, **options
    )
    np.testing.assert_allclose(value, of_constants(logits), rtol=2e-6)
    slopes = reference.gradient(of_constants, logits)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-6)
    # The propensity is a constant: CTR learns nothing from CVR.
    np.testing.assert_array_equal(gradient[:, 0], 0)


@pytest.mark.parametrize("name", LOSSES)
def test_conversions_of_rows_without_a_click_are_not_read(name):
    loss, columns = LOSSES[name]
    logits = RNG.normal(size=(SIZE, columns)).astype(np.float32)
    other = np.where(CLICKS, CONVERSIONS, ~CONVERSIONS)
    assert loss(logits, CLICKS, CONVERSIONS) == loss(logits, CLICKS, other)


def fitted(loss):
    """The logit that Newton's method finds from 0: the loss is convex and smooth."""
    slope, curvature = jax.grad(loss), jax.hessian(loss)
    z = jnp.zeros(())
    for _ in range(30):
        z -= slope(z) / curvature(z)
    return float(jax.nn.sigmoid(z))


def test_a_known_selection_bias_is_removed():
    """Half of the rows are clicked nine times in ten and convert in half of the clicks,
    the others are clicked and convert once in ten: CVR over all rows is 0.3. A model
    that cannot tell the halves apart learns 0.46 from the clicks alone, and 0.3 from
    ESCM2, whose propensities are right."""
    rows = 1000
    likely = np.repeat([True, False], rows)
    place = np.tile(np.arange(rows), 2)
    clicks = place < np.where(likely, 900, 100)
    conversions = place < np.where(likely, 450, 10)
    propensity = np.where(likely, 0.9, 0.1)
    u = np.log(propensity / (1 - propensity)).astype(np.float32)

    def naive(z):
        return bce_loss(z + jnp.zeros_like(u), conversions, where=clicks)

    def ips(z, **options):
        logits = jnp.stack([u, z + jnp.zeros_like(u)], axis=1)
        return escm2_ips_loss(logits, clicks, conversions, **options)

    assert fitted(naive) == pytest.approx(0.46, abs=1e-4)
    assert fitted(ips) == pytest.approx(0.3, abs=1e-4)
    # The floor bounds the variance and lets the bias back in.
    assert fitted(partial(ips, floor=1)) == pytest.approx(0.46, abs=1e-4)


def test_dr_is_right_where_the_imputation_is_right_and_propensities_are_wrong():
    """The error loss of ESCM2-DR is the mean of the imputed costs then."""
    logits = np.zeros((SIZE, 3), np.float32)
    logits[:, 0] = RNG.normal(size=SIZE)
    # softplus(0) = log 2 is the cost of a CVR logit of 0.
    value = escm2_dr_loss(logits, CLICKS, CONVERSIONS)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-6)
