"""Layers, alone or in stacks."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from pwiser_jax.models.batch_norm import BatchNorm
from pwiser_jax.models.context import Context
from pwiser_jax.models.dropout import Dropout
from pwiser_jax.models.product import (
    Features,
    Weights,
    is_shared,
    product,
    unmade_if_wide,
    vector,
    width,
)


class Linear(nn.Module):
    """Kernel [I, O] and bias [O] of a layer; with `stack`, E of them side by side.

    Both start uniform in ±1/sqrt(I), as PyTorch's Linear does. `product` applies them.
    """

    features: int
    stack: int | None = None

    @nn.compact
    def __call__(self, inputs: int) -> Weights:
        stack = () if self.stack is None else (self.stack,)
        start = _uniform(1 / math.sqrt(inputs))
        return Weights(
            self.param("kernel", start, (*stack, inputs, self.features)),
            self.param("bias", start, (*stack, self.features)),
        )


def _uniform(bound: float) -> nn.initializers.Initializer:
    def start(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return start


class Blocks(nn.Module):
    """Hidden layers: (Linear, BatchNorm, ReLU, Dropout) for each width in `hidden`.

    [B, I] -> [B, D]; with `stack`, that many side by side, which read the same input
    [B, I] or each its own, [E, B, I]: [E, B, D]. Without a hidden layer, the input.
    """

    hidden: tuple[int, ...]
    dropout: float
    stack: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array | Features, context: Context) -> jax.Array:
        for i, units in enumerate(self.hidden):
            layer = Linear(units, self.stack, name=f"layer_{i}")(width(x))
            shared = self.stack is not None and is_shared(x)
            rows = 0 if shared else -2
            y = unmade_if_wide(x, layer, context.dtype)
            y = nn.relu(BatchNorm(rows, name=f"norm_{i}")(y, context))
            y = Dropout(self.dropout, rows, name=f"dropout_{i}")(y, context)
            # Expert-major after the first layer: each has its own input.
            x = jnp.swapaxes(y, 0, 1) if shared else y
        return vector(x)


class Towers(nn.Module):
    """A tower for each task: hidden layers, then `outputs` units: [T, B, outputs].

    All read the same input [B, D], or each its own, [T, B, D].
    """

    tasks: int
    hidden: tuple[int, ...]
    dropout: float
    outputs: int = 1

    @nn.compact
    def __call__(self, x: jax.Array | Features, context: Context) -> jax.Array:
        x = Blocks(self.hidden, self.dropout, self.tasks, name="hidden")(x, context)
        out = Linear(self.outputs, self.tasks, name="out")(width(x))
        y = product(x, out, context.dtype)
        return jnp.swapaxes(y, 0, 1) if is_shared(x) else y
