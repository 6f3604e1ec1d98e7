"""Parts of training as one would write them first, to tell what ours save.

While `plain_form(name)` lasts, a model that is built and traced has that part. It is
the same function but for the bits of dropout; parameters may be cut otherwise.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import jax
import jax.numpy as jnp
from flax import linen as nn

from pwiser_jax.host import keep_freed_memory
from pwiser_jax.models.context import Context
from pwiser_jax.models.layers import Blocks
from pwiser_jax.models.product import Features, Product, is_shared


class Experts(nn.Module):
    """Blocks side by side, experts' or towers', each a network of its own."""

    hidden: tuple[int, ...]
    dropout: float
    stack: int

    @nn.compact
    def __call__(self, x: jax.Array | Features, context: Context) -> jax.Array:
        inputs = [x] * self.stack if is_shared(x) else list(x)
        one_by_one = [
            Blocks(self.hidden, self.dropout, name=f"expert_{e}")(own, context)
            for e, own in enumerate(inputs)
        ]
        return jnp.stack(one_by_one)


class BatchNorm(nn.Module):
    """Flax's; it takes all rows for real ones."""

    axis: int = -2

    @nn.compact
    def __call__(self, x: jax.Array | Product, context: Context) -> jax.Array:
        x = x.made() if isinstance(x, Product) else x
        units: Any = [k for k in range(x.ndim) if k != self.axis % x.ndim]
        norm = nn.BatchNorm(not context.train, units, 0.9, use_fast_variance=False)
        return norm(x)


class Dropout(nn.Module):
    """Flax's, whose bits are drawn by jax.random."""

    rate: float
    axis: int = -2

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        return nn.Dropout(self.rate)(x, deterministic=not context.train)


def give_back_freed_memory() -> None:
    """What the C library does when it is told nothing."""


PLACES = {
    "experts": (
        Experts,
        ("models.mmoe.Blocks", "models.ple.Blocks", "models.layers.Blocks"),
    ),
    # Nothing is wide: all is made before it is normalised.
    "moments": (0, ("models.product.WIDE",)),
    "batch_norm": (BatchNorm, ("models.layers.BatchNorm",)),
    "dropout": (Dropout, ("models.layers.Dropout",)),
    "memory": (give_back_freed_memory, ("training.host.keep_freed_memory",)),
    "threads": (keep_freed_memory, ("training.host.prepare_host",)),
}


@contextmanager
def plain_form(name: str) -> Iterator[None]:
    """One of PLACES, or "" for our own forms alone."""
    with ExitStack() as stack:
        if name:
            part, places = PLACES[name]
            for place in places:
                stack.enter_context(patch(f"pwiser_jax.{place}", part))
        yield
