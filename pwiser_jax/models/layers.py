"""Linear layers, alone or in stacks, and what the models make of them."""

import math
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pwiser_jax.models.batch_norm import BatchNorm
from pwiser_jax.models.context import Context
from pwiser_jax.models.dropout import Dropout
from pwiser_jax.models.product import (
    Features,
    Weights,
    matmul,
    product,
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

    [B, I] -> [B, D]; with `stack`, that many side by side that read the same input:
    [E, B, D]. Without a hidden layer, the input itself.
    """

    hidden: tuple[int, ...]
    dropout: float
    stack: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array | Features, context: Context) -> jax.Array:
        y = None
        for i, units in enumerate(self.hidden):
            layer = Linear(units, self.stack, name=f"layer_{i}")
            if y is None:
                y, rows = product(x, layer(width(x)), context.dtype), 0
            else:
                kernel, bias = layer(y.shape[-1])
                y = matmul(y, kernel, context.dtype) + jnp.expand_dims(bias, -2)
                rows = -2
            y = nn.relu(BatchNorm(rows, name=f"norm_{i}")(y, context))
            y = Dropout(self.dropout, rows, name=f"dropout_{i}")(y, context)
            if i == 0 and self.stack is not None:
                # Expert-major from here on: each has its own input.
                y = jnp.swapaxes(y, 0, 1)
        return vector(x) if y is None else y


class Tower(nn.Module):
    """A task's own layers: hidden ones, then one unit: [B, D] -> logits [B]."""

    hidden: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array | Features, context: Context) -> jax.Array:
        x = Blocks(self.hidden, self.dropout, name="hidden")(x, context)
        return product(x, Linear(1, name="out")(width(x)), context.dtype)[:, 0]


class Mix(nn.Module):
    """Σ_e softmax(gate)_e expert_e: [B, D] from gate [B, E] and groups of [E_g, B, D].

    The gate's columns run over the groups in order: E = Σ_g E_g. The weights f[B, E]
    are sown into "intermediates" as "gate", for whoever wants to watch them.
    """

    @nn.compact
    def __call__(self, gate: jax.Array, *groups: jax.Array) -> jax.Array:
        ends = np.cumsum([len(experts) for experts in groups])
        softmax = nn.softmax(gate)
        self.sow("intermediates", "gate", softmax)
        weights = jnp.split(softmax, ends[:-1], axis=1)
        pairs = zip(weights, groups, strict=True)
        mixed = (jnp.einsum("be,ebd->bd", w, experts) for w, experts in pairs)
        return reduce(add, mixed)
