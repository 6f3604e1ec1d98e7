"""Plain forms of the models' layers, as baselines of the benchmarks.

`plain_model` registers a model with plain layers under a new name, which the benchmark
trains like any model. It computes the same function, except for the random bits of
dropout; its parameters may be split differently.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from pwiser_jax.models import MODELS, register_model
from pwiser_jax.models.context import Context
from pwiser_jax.models.features import Features
from pwiser_jax.models.layers import Blocks, Layer


class OneByOne(Blocks):
    """A stack of experts or towers as separate networks."""

    @nn.compact
    def __call__(self, x: jax.Array | Features, context: Context) -> jax.Array:
        if self.stack is None:
            return super().__call__(x, context)
        if isinstance(x, Features) or x.ndim == 2:
            inputs = [x] * self.stack
        else:
            inputs = list(x)
        outputs = [
            Blocks(self.hidden, self.dropout, name=f"expert_{e}")(expert_input, context)
            for e, expert_input in enumerate(inputs)
        ]
        return jnp.stack(outputs)


class FlaxBatchNorm(nn.Module):
    """Flax's batch norm; it treats padding as valid rows."""

    axis: int = -2

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        units: Any = [k for k in range(x.ndim) if k != self.axis % x.ndim]
        norm = nn.BatchNorm(not context.train, units, 0.9, use_fast_variance=False)
        return norm(x)


class FlaxDropout(nn.Module):
    """Flax's dropout, with bits from jax.random."""

    rate: float
    axis: int = -2

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return nn.Dropout(self.rate)(x, deterministic=not context.train)


class WithFlaxBatchNorm(Blocks):
    batch_norm: Layer = FlaxBatchNorm


class WithFlaxDropout(Blocks):
    dropout_layer: Layer = FlaxDropout


FORMS: dict[str, type[Blocks]] = {
    "experts": OneByOne,
    "batch_norm": WithFlaxBatchNorm,
    "dropout": WithFlaxDropout,
}


class NoBatchNorm(nn.Module):
    """Nothing in place of batch norm."""

    axis: int = -2

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        self.variable("batch_stats", "mean", jnp.zeros, ())
        return x


class WithoutBatchNorm(Blocks):
    batch_norm: Layer = NoBatchNorm


# Another function, to measure what a part costs.
WITHOUT: dict[str, type[Blocks]] = {"no batch norm": WithoutBatchNorm}


def plain_model(model: str, form: str) -> str:
    """Registers a model with one of FORMS or WITHOUT and returns its name."""
    name = f"{model} with plain {form}"
    if name not in MODELS:
        cls = MODELS[model]
        register_model(
            name, type(cls.__name__, (cls,), {"blocks": (FORMS | WITHOUT)[form]})
        )
    return name
