"""Cross-entropy against its float64 definition, up to logits of 1e4."""

import jax
import numpy as np
import pytest

from pwiser_jax import bce_loss
from tests.losses import reference
from tests.losses.data import row_options

SIZE = 40
OPTIONS = row_options(SIZE)
del OPTIONS["segments"]


@pytest.mark.parametrize("options", [{}, OPTIONS], ids=["plain", "rows"])
@pytest.mark.parametrize("scale", [1, 30, 1e4])
@pytest.mark.parametrize("labels", ["hard", "soft"])
def test_bce_equals_its_definition(options, scale, labels):
    rng = np.random.default_rng(0)
    logits = (scale * rng.normal(size=SIZE)).astype(np.float32)
    y = rng.random(SIZE).astype(np.float32)
    y = y.round().astype(np.int32) if labels == "hard" else y
    value, gradient = jax.value_and_grad(lambda z: bce_loss(z, y, **options))(logits)
    np.testing.assert_allclose(
        value, reference.bce_loss(logits, y, **options), rtol=2e-6
    )
    expected = reference.bce_gradient(logits, y, **options)
    np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=1e-30)


@pytest.mark.parametrize(
    ("logit", "label"), [(1e4, 1), (-1e4, 0), (1e4, 0), (-1e4, 1), (40, 1), (-40, 0)]
)
def test_bce_of_certain_rows(logit, label):
    """No 0 times infinity; and a right answer's small loss is not rounded to 0."""
    value, gradient = jax.value_and_grad(bce_loss)(
        np.array([logit], np.float32), np.array([label])
    )
    expected = reference.bce_loss([logit], [label])
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    slope = reference.bce_gradient([logit], [label])
    np.testing.assert_allclose(gradient, slope, rtol=1e-6)


def test_the_definitions_gradient_is_its_slope():
    rng = np.random.default_rng(0)
    z, y, step = rng.normal(size=8), rng.random(8), 1e-5
    for i, slope in enumerate(reference.bce_gradient(z, y)):
        nudge = step * (np.arange(8) == i)
        rise = reference.bce_loss(z + nudge, y) - reference.bce_loss(z - nudge, y)
        np.testing.assert_allclose(rise / (2 * step), slope, rtol=1e-6)
