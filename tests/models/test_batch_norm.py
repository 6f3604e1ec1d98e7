"""Batch normalisation over valid rows: its gradient, and difficult statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax.models.batch_norm import BatchNorm
from pwiser_jax.models.context import Context


def make(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def normalise(x, mask, variables):
    """(Σ sin(y) over the real rows, (y, new statistics)), gradient by x and params."""

    def total(x, params):
        context = Context(train=True, mask=mask)
        both = {**variables, "params": params}
        y, state = BatchNorm().apply(both, x, context, mutable=["batch_stats"])
        return jnp.where(mask[:, None], jnp.sin(y), 0).sum(), (y, state["batch_stats"])

    both = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
    return jax.jit(both)(x, variables["params"])


def random_variables(shape):
    return {
        "params": {"scale": make(shape, 1), "bias": make(shape, 2)},
        "batch_stats": {"mean": make(shape, 3), "var": make(shape, 4) ** 2},
    }


@pytest.mark.parametrize("shape", [(8, 3), (2, 8, 3)], ids=["alone", "stack"])
def test_gradient_is_that_of_the_definition(shape):
    x, mask = make(shape), np.array([1, 0, 1, 1, 0, 1, 1, 1], bool)
    variables = random_variables((*shape[:-2], shape[-1]))

    def definition(x, params):
        real = x[..., mask, :]
        mean, var = real.mean(-2, keepdims=True), real.var(-2, keepdims=True)
        scale, bias = params["scale"][..., None, :], params["bias"][..., None, :]
        return jnp.sin((real - mean) / jnp.sqrt(var + 1e-5) * scale + bias).sum()

    both = jax.jit(jax.value_and_grad(definition, (0, 1)))
    expected = both(x, variables["params"])
    (value, _), gradients = normalise(x, mask, variables)
    np.testing.assert_allclose(value, expected[0], rtol=1e-5)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        gradients,
        expected[1],
    )


@pytest.mark.parametrize("real", [0, 1])
def test_too_few_real_rows_leave_the_running_statistics_alone(real):
    variables = random_variables((3,))
    (_, (y, stats)), gradients = normalise(make((4, 3)), np.arange(4) < real, variables)
    jax.tree.map(np.testing.assert_array_equal, stats, variables["batch_stats"])
    assert np.isfinite(y).all()
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_values_far_from_zero():
    """Float32 leaves about 1e-4 of each value here; the mean of squares less the
    squared mean would leave nothing of the variance."""
    x = 3000 + make((500, 2))
    fresh = BatchNorm().init(jax.random.key(0), x, Context(train=False))
    (_, (y, stats)), _ = normalise(x, np.ones(500, bool), fresh)
    exact = x.astype(np.float64)
    normal = (exact - exact.mean(0)) / exact.std(0)
    np.testing.assert_allclose(y, normal, rtol=0, atol=5e-3)
    expected = 0.9 + 0.1 * exact.var(0, ddof=1)
    np.testing.assert_allclose(stats["var"], expected, rtol=1e-4)
