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

    With `stack`, that many of them side by side: [E, B, O]. The first product is the
    caller's, who may have others of the same input:

        y, gate = product(x, blocks.first(width(x)), gate_weights)
        out = blocks(y, context)
    """

    hidden: tuple[int, ...]
    rate: float
    stack: int | None = None

    def setup(self) -> None:
        self.layer = [Linear(width, self.stack) for width in self.hidden]
        rows = [-2 if i else 0 for i in range(len(self.hidden))]
        self.norm = [BatchNorm(axis) for axis in rows]
        self.dropout = [Dropout(self.rate, axis) for axis in rows]

    def first(self, inputs: int) -> Weights:
        """The weights of the first layer, which reads so many inputs."""
        return self.layer[0](inputs)

    def __call__(self, y: jax.Array, context: Context) -> jax.Array:
        """From the first product, [B, O] or [B, E, O], to the last layer's output."""
        for i, norm in enumerate(self.norm):
            if i:
                kernel, bias = self.layer[i](y.shape[-1])
                y = matmul(y, kernel, context.dtype) + jnp.expand_dims(bias, -2)
            y = self.dropout[i](nn.relu(norm(y, context)), context)
            if i == 0 and self.stack is not None:
                # Expert-major from here on: each has its own input.
                y = jnp.swapaxes(y, 0, 1)
        return y


def through(blocks: Blocks, x: jax.Array | Features, context: Context) -> jax.Array:
    """The output of blocks that read x [B, I] alone; without a layer, x itself."""
    if not blocks.hidden:
        return vector(x)
    (y,) = product(x, blocks.first(width(x)), dtype=context.dtype)
    return blocks(y, context)


class Tower(nn.Module):
    """A task's own layers: hidden ones, then one unit: [B, D] -> logits [B]."""

    hidden: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array | Features, context: Context) -> jax.Array:
        hidden = Blocks(self.hidden, self.dropout, name="hidden")
        x = through(hidden, x, context)
        (logits,) = product(x, Linear(1, name="out")(width(x)), dtype=context.dtype)
        return logits[:, 0]


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
