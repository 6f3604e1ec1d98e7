"""Batch normalisation over the valid rows of all devices.

Flax's BatchNorm averages the devices' means with equal weights, so a device with few
valid rows, or none, distorts the statistics.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from pwiser_jax.models.context import Context


class BatchNorm(nn.Module):
    """Normalises each unit: (x - mean) / sqrt(var + epsilon) * scale + bias.

    x holds the rows on one axis: [B, D], [E, B, D] or, with axis 0, [B, E, D]. Its
    padding rows must be finite.

    In training, mean and variance are computed over the valid rows of all devices: sums
    over rows, summed over devices, divided once. As in PyTorch, the batch is normalised
    by the biased variance (over n) and the running variance averages the unbiased one
    (over n - 1). A batch of fewer than two valid rows does not change the running
    statistics.

    Parameters scale and bias, batch_stats mean and var: x's shape without the rows.
    """

    axis: int = -2
    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        rows = self.axis
        shape = list(x.shape)
        batch = shape.pop(rows)
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        mean, var = running_mean.value, running_var.value
        if context.train:
            count = context.count_rows(batch)

            def average(x: jax.Array) -> jax.Array:
                total = jnp.sum(context.zero_padding(x, rows), axis=rows)
                return context.over_devices(total) / jnp.maximum(count, 1)

            # Two passes: the mean of squares minus the squared mean would cancel. The
            # variance is least at the mean, so its gradient by the mean is 0.
            mean = average(x)
            center = lax.stop_gradient(jnp.expand_dims(mean, rows))
            var = average(jnp.square(x - center))
            unbiased = var * (count / jnp.maximum(count - 1, 1))
            for running, batch_value in ((running_mean, mean), (running_var, unbiased)):
                new = self.momentum * running.value + (1 - self.momentum) * batch_value
                running.value = jnp.where(count > 1, new, running.value)
        slope = scale * lax.rsqrt(var + self.epsilon)
        # The mean's gradient is -slope times the bias's: through x - mean it would be
        # one more sum over the rows.
        constant_mean = lax.stop_gradient(mean)
        units = (constant_mean, slope, bias - slope * (mean - constant_mean))
        center, slope, shift = (jnp.expand_dims(a, rows) for a in units)
        return (x - center) * slope + shift
