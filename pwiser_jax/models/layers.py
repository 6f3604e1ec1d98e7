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


class Linear(nn.Module):
    """x @ kernel + bias; with `stack`, that many such layers side by side.

    Alone: [B, I] -> [B, O], kernel [I, O], bias [O]. A stack of E: [B, I], the same
    input for all, or [E, B, I], one each -> [E, B, O], kernel [E, I, O], bias [E, O].
    Kernel and bias start uniform in ±1/sqrt(I), as PyTorch's Linear does.
    """

    features: int
    stack: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        stack = () if self.stack is None else (self.stack,)
        start = _uniform(1 / math.sqrt(inputs))
        kernel = self.param("kernel", start, (*stack, inputs, self.features))
        bias = self.param("bias", start, (*stack, self.features))
        if self.stack is None or x.ndim == 3:
            y = x @ kernel
        else:
            # One product for the whole stack; the einsum is slower on a CPU.
            wide = jnp.swapaxes(kernel, 0, 1).reshape(inputs, -1)
            y = jnp.swapaxes((x @ wide).reshape(-1, self.stack, self.features), 0, 1)
        return y + jnp.expand_dims(bias, -2)


def _uniform(bound: float) -> nn.initializers.Initializer:
    def start(key, shape, dtype=jnp.float32, out_sharding=None):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return start


class Blocks(nn.Module):
    """Hidden layers: (Linear, BatchNorm, ReLU, Dropout) for each width in `hidden`."""

    hidden: tuple[int, ...]
    dropout: float
    stack: int | None = None

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        for i, width in enumerate(self.hidden):
            x = Linear(width, self.stack, name=f"layer_{i}")(x)
            x = BatchNorm(name=f"norm_{i}")(x, context)
            x = Dropout(self.dropout, name=f"dropout_{i}")(nn.relu(x), context)
        return x


class Tower(nn.Module):
    """A task's own layers: hidden ones, then one unit: [B, D] -> logits [B]."""

    hidden: tuple[int, ...]
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        x = Blocks(self.hidden, self.dropout, name="hidden")(x, context)
        return Linear(1, name="out")(x)[:, 0]


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
