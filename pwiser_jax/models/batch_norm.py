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
from pwiser_jax.models.product import Product


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, for each unit of x.

    x holds the rows on one axis, as [B, D], [E, B, D] or, with axis 0, [B, E, D]; what
    it holds in padding must be finite. Or it is a `Product` f W that is not made yet:
    its moments are those of the factors, mean(f) W and diag(W^T cov(f) W), and scaling
    its units is scaling W. So no pass over x is needed, nor one for the gradients.

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
    def __call__(self, x: jax.Array | Product, context: Context) -> jax.Array:
        rows = self.axis
        if isinstance(x, Product):
            batch_size, shape = x.factors.shape[0], list(x.units)
        else:
            shape = list(x.shape)
            batch_size = shape.pop(rows)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if context.train:
            count = context.count_rows(batch_size)
            if isinstance(x, Product):
                x, mean, var = _moments_of_product(x, context, count)
            else:
                mean, var = _moments(x, context, count, rows)
            mean, var = mean.reshape(shape), var.reshape(shape)
            unbiased = var * (count / jnp.maximum(count - 1, 1))
            for running, batch in ((running_mean, mean), (running_var, unbiased)):
                new = self.momentum * running.value + (1 - self.momentum) * batch
                running.value = jnp.where(count > 1, new, running.value)
        else:
            mean, var = running_mean.value, running_var.value
        slope = scale * lax.rsqrt(var + self.epsilon)
        if isinstance(x, Product):
            x = x._replace(kernel=x.kernel * slope.reshape(1, -1))
            shift = bias if context.train else bias - mean * slope
            return x.made() + shift[None]
        mean, slope, bias = (
            context.varying(jnp.expand_dims(of_units, rows), like=x)
            for of_units in (mean, slope, bias)
        )
        return _affine(x, mean, slope, bias, rows)


# Two passes over the rows: the mean of squares less the squared mean would cancel. The
# variance is least at the mean, so its gradient does not go through it.


def _moments(
    x: jax.Array, context: Context, count: jax.Array, rows: int
) -> tuple[jax.Array, jax.Array]:
    """Mean and biased variance of x over all real rows, `count` of them."""
    real, n = context.real_rows(x.shape[rows], x.ndim, rows), jnp.maximum(count, 1)
    total: Any = _total(x, real, rows)
    mean = context.over_devices(total) / n
    squares: Any = _squares(x, lax.stop_gradient(mean), real, rows)
    return mean, context.over_devices(squares) / n


def _moments_of_product(
    x: Product, context: Context, count: jax.Array
) -> tuple[Product, jax.Array, jax.Array]:
    """x less its mean, then mean and biased variance, [U], over all real rows."""
    factors, kernel = x.factors, x.kernel
    real, n = context.real_rows(factors.shape[0], 2, 0), jnp.maximum(count, 1)
    total: Any = _total(factors, real, 0)
    centre = context.over_devices(total) / n
    products: Any = _products(factors - lax.stop_gradient(centre), real)
    var: Any = _quadratic(context.over_devices(products) / n, kernel)
    mean = jnp.matmul(centre, kernel, precision="highest")
    return x._replace(factors=factors - centre), mean, var


@jax.custom_vjp
def _products(x: jax.Array, real: jax.Array) -> jax.Array:
    """Σ real x x^T over the rows; takes gradients to be symmetric, as `_quadratic`'s
    are."""
    return jnp.matmul((real * x).T, x, precision="highest")


def _products_forward(x, real):
    return _products(x, real), (x, real)


def _products_backward(saved, slope):
    x, real = saved
    return 2 * real * jnp.matmul(x, slope, precision="highest"), None


_products.defvjp(_products_forward, _products_backward)


@jax.custom_vjp
def _quadratic(matrix: jax.Array, w: jax.Array) -> jax.Array:
    """diag(w^T matrix w) of a symmetric matrix without negative eigenvalues."""
    return _quadratic_forward(matrix, w)[0]


def _quadratic_forward(matrix, w):
    half = jnp.matmul(matrix, w, precision="highest")
    # Rounding may leave less than nothing of a unit that hardly varies.
    return jnp.maximum(jnp.sum(w * half, axis=0), 0), (half, w)


def _quadratic_backward(saved, slope):
    half, w = saved
    of_matrix = jnp.matmul(w * slope[None], w.T, precision="highest")
    return of_matrix, 2 * half * slope[None]


_quadratic.defvjp(_quadratic_forward, _quadratic_backward)


# Sums over rows and their gradients. Each is written such that XLA need not store what
# it reduces: on a CPU a reduction reads x - mean as it goes, but only if nothing else
# wants that difference. So each difference is made of a mean of its own (the barrier)
# and gradients start from x again.


def _sum(x: jax.Array, axis: int) -> jax.Array:
    return jnp.sum(x, axis=axis, keepdims=True)


def _sum_of_real(x: jax.Array, real: jax.Array, axis: int) -> jax.Array:
    """Σ real x over the rows, as a product: it needs no array of x's size for `real`,
    which XLA makes on a CPU for a reduction."""
    axis %= x.ndim
    if axis == 0:
        total = jnp.tensordot(real.ravel(), x, (0, 0), precision="highest")
        return total[None]
    # One product a layer of the stack: for one of all, XLA would transpose x.
    each = jnp.broadcast_to(real.reshape(1, 1, -1), (len(x), 1, x.shape[axis]))
    return jnp.matmul(each, x, precision="highest")


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
