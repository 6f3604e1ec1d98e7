"""Layers, single or stacked."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from pwiser_jax.models.batch_norm import BatchNorm
from pwiser_jax.models.context import Context
from pwiser_jax.models.dropout import Dropout
from pwiser_jax.models.features import (
    Features,
    LinearWeights,
    concatenated,
    is_shared,
    product,
    width,
)
from pwiser_jax.models.start import uniform

# Makes a module that maps (x, context) to an array of x's shape.
Layer = Callable[..., Callable[[jax.Array, Context], jax.Array]]


class Linear(nn.Module):
    """The kernel [I, O] and bias [O] of a layer; with `stack`, of E layers.

    Both are initialised uniformly in ±1/sqrt(I), as PyTorch's Linear, or with
    `zeros` at zero. `product` applies them.
    """

    features: int
    stack: int | None = None
    zeros: bool = False

    @nn.compact
    def __call__(self, inputs: int) -> LinearWeights:
        stack = () if self.stack is None else (self.stack,)
        kernel, bias = (*stack, inputs, self.features), (*stack, self.features)
        if self.zeros:
            zeros = nn.initializers.zeros
            return LinearWeights(
                self.param("kernel", zeros, kernel), self.param("bias", zeros, bias)
            )
        bound = 1 / math.sqrt(inputs)
        return LinearWeights(
            uniform(self, "kernel", kernel, bound), uniform(self, "bias", bias, bound)
        )


class Blocks(nn.Module):
    """Hidden layers: (Linear, BatchNorm, ReLU, Dropout) for each width in `hidden`.

    [B, I] -> [B, D]. With `stack`, E parallel networks, [E, B, D], with the same input
    [B, I] or separate inputs [E, B, I]. Without hidden layers, the input.

    Attributes:
        hidden: widths of the layers.
        dropout: rate of the dropout.
        stack: E, or None for one network.
        batch_norm, dropout_layer: the modules; a subclass may have others.
    """

    hidden: tuple[int, ...]
    dropout: float
    stack: int | None = None
    batch_norm: Layer = BatchNorm
    dropout_layer: Layer = Dropout

    @nn.compact
    def __call__(self, x: jax.Array | Features, context: Context) -> jax.Array:
        for i, units in enumerate(self.hidden):
            layer = Linear(units, self.stack, name=f"layer_{i}")(width(x))
            shared = self.stack is not None and is_shared(x)
            rows = 0 if shared else -2
            y = product(x, layer, context.dtype)
            y = nn.relu(self.batch_norm(rows, name=f"norm_{i}")(y, context))
            y = self.dropout_layer(self.dropout, rows, name=f"dropout_{i}")(y, context)
            # [B, E, D] after the first layer, [E, B, D] from then on.
            x = jnp.swapaxes(y, 0, 1) if shared else y
        return concatenated(x)


class Towers(nn.Module):
    """A tower for each task: hidden layers, then `outputs` units: [T, B, outputs].

    The input is [B, D] for all towers, or [T, B, D], one per tower.
    """

    tasks: int
    hidden: tuple[int, ...]
    dropout: float
    outputs: int = 1
    blocks: type[Blocks] = Blocks

    @nn.compact
    def __call__(self, x: jax.Array | Features, context: Context) -> jax.Array:
        hidden = self.blocks(self.hidden, self.dropout, self.tasks, name="hidden")
        x = hidden(x, context)
        out = Linear(self.outputs, self.tasks, name="out")(width(x))
        y = product(x, out, context.dtype)
        return jnp.swapaxes(y, 0, 1) if is_shared(x) else y
