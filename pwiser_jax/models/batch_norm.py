"""Batch normalisation over the real rows of all devices.

Flax's own averages the devices' means, whatever number of real rows each holds, so a
device with few of them, or none, moves the statistics of all.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from pwiser_jax.models.context import Context


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, for each unit of x.

    x holds the rows on one axis, as [B, D], [E, B, D] or, with axis 0, [B, E, D]; what
    it holds in padding must be finite.

    In training the moments are those of the batch's real rows on all devices: sums over
    rows, added over devices, divided once. As in PyTorch the batch is normalised by its
    biased variance (over n) and the running variance averages the unbiased one (over
    n - 1). A batch of fewer than two real rows has no such variance: it leaves
    both running statistics alone.

    Parameters scale and bias, batch_stats mean and var: of x's shape less the rows.
    """

    axis: int = -2
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        rows, shape = self.axis, list(x.shape)
        batch_size = shape.pop(rows)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if context.train:
            count = context.count_rows(batch_size)
            # Two passes: the mean of squares less the squared mean would cancel. The
            # variance is least at the mean, so its gradient does not go through it.
            real = context.real_rows(batch_size, x.ndim, rows)
            total: Any = _total(x, real, rows)
            mean = context.over_devices(total) / jnp.maximum(count, 1)
            squares: Any = _squares(x, lax.stop_gradient(mean), real, rows)
            var = context.over_devices(squares) / jnp.maximum(count, 1)
            unbiased = var * (count / jnp.maximum(count - 1, 1))
            for running, batch in ((running_mean, mean), (running_var, unbiased)):
                batch = batch.reshape(shape)
                new = self.momentum * running.value + (1 - self.momentum) * batch
                running.value = jnp.where(count > 1, new, running.value)
        else:
            mean = jnp.expand_dims(running_mean.value, rows)
            var = jnp.expand_dims(running_var.value, rows)
        slope = jnp.expand_dims(scale, rows) * lax.rsqrt(var + self.epsilon)
        mean, slope, bias = (
            context.varying(of_units, like=x)
            for of_units in (mean, slope, jnp.expand_dims(bias, rows))
        )
        return _affine(x, mean, slope, bias, rows)


# Sums over rows and their gradients. Each is written such that XLA need not store what
# it reduces: on a CPU a reduction reads x - mean as it goes, but only if nothing else
# wants that difference. So each difference is made of a mean of its own (the barrier)
# and gradients start from x again.


def _sum(x: jax.Array, axis: int) -> jax.Array:
    return jnp.sum(x, axis=axis, keepdims=True)


def _sum_of_real(x: jax.Array, real: jax.Array, axis: int) -> jax.Array:
    """Σ real x over the rows, as a product: it needs no array of x's size for `real`,
    which XLA makes on a CPU for a reduction."""
    total = jnp.tensordot(real.ravel(), x, (0, axis % x.ndim), precision="highest")
    return jnp.expand_dims(total, axis)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _total(x: jax.Array, real: jax.Array, axis: int) -> jax.Array:
    """Σ real x over the rows."""
    return _sum_of_real(x, real, axis)


def _total_forward(x, real, axis):
    return _total(x, real, axis), real


def _total_backward(axis, real, slope):
    return slope * real, None


_total.defvjp(_total_forward, _total_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def _squares(x: jax.Array, mean: jax.Array, real: jax.Array, axis: int) -> jax.Array:
    """Σ real (x - mean)² over the rows; the mean has no gradient."""
    return _sum_of_real(jnp.square(x - mean), real, axis)


def _squares_forward(x, mean, real, axis):
    return _squares(x, mean, real, axis), (x, mean, real)


def _squares_backward(axis, saved, slope):
    x, mean, real = saved
    return (x - lax.optimization_barrier(mean)) * (2 * slope * real), None, None


_squares.defvjp(_squares_forward, _squares_backward)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _affine(
    x: jax.Array, mean: jax.Array, slope: jax.Array, bias: jax.Array, axis: int
) -> jax.Array:
    """(x - mean) slope + bias."""
    return (x - lax.optimization_barrier(mean)) * slope + bias


def _affine_forward(x, mean, slope, bias, axis):
    return _affine(x, mean, slope, bias, axis), (x, mean, slope)


def _affine_backward(axis, saved, gradient):
    x, mean, slope = saved
    total = _sum(gradient, axis)
    centred = x - lax.optimization_barrier(mean)
    of_slope = _sum(gradient * centred, axis)
    return gradient * slope, -slope * total, of_slope, total


_affine.defvjp(_affine_forward, _affine_backward)
