"""Batch normalisation over the real rows of all devices.

Flax's own averages the devices' means, whatever number of real rows each holds, so a
device with few of them, or none, moves the statistics of all.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from pwiser_jax.models.context import Context


class BatchNorm(nn.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, for each unit of [..., B, D].

    In training the moments are those of the batch's real rows on all devices: sums over
    rows, added over devices, divided once. As in PyTorch the batch is normalised by its
    biased variance (over n) and the running variance averages the unbiased one (over
    n - 1). A batch of fewer than two real rows has no such variance: it leaves
    both running statistics alone.

    Parameters scale and bias, batch_stats mean and var: each of shape [..., D].
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        shape = (*x.shape[:-2], x.shape[-1])
        scale = self.param("scale", nn.initializers.ones, shape)
        bias = self.param("bias", nn.initializers.zeros, shape)
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
        running_var = self.variable("batch_stats", "var", jnp.ones, shape)
        if context.train:
            count = context.count_rows(x.shape[-2])
            # Two passes: the mean of squares less the squared mean would cancel. The
            # variance is least at the mean, so its gradient does not go through it.
            mean = context.sum_rows(x) / jnp.maximum(count, 1)
            centred = x - lax.stop_gradient(mean)
            var = context.sum_rows(jnp.square(centred)) / jnp.maximum(count, 1)
            unbiased = var * (count / jnp.maximum(count - 1, 1))
            for running, batch in ((running_mean, mean), (running_var, unbiased)):
                batch = batch.reshape(shape)
                new = self.momentum * running.value + (1 - self.momentum) * batch
                running.value = jnp.where(count > 1, new, running.value)
        else:
            mean = jnp.expand_dims(running_mean.value, -2)
            var = jnp.expand_dims(running_var.value, -2)
        slope = jnp.expand_dims(scale, -2) * lax.rsqrt(var + self.epsilon)
        return (x - mean) * slope + jnp.expand_dims(bias, -2)
