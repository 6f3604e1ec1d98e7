"""Linear layers over one input as one matrix product, the first ones by factors."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np


class Weights(NamedTuple):
    """Of a linear layer: kernel [I, O] and bias [O]; a stack of E has E of each."""

    kernel: jax.Array
    bias: jax.Array


class Part(NamedTuple):
    """Some inputs of a layer: x [B, n] @ vectors [n, D], or x [B, D] itself."""

    x: jax.Array
    vectors: jax.Array | None = None

    @property
    def width(self) -> int:
        """D, the inputs that the part stands for."""
        return (self.x if self.vectors is None else self.vectors).shape[1]


class Features(NamedTuple):
    """z [B, I] = [part_1, part_2, ...] without being made.

    A layer gives z W = Σ (x vectors) W_part = Σ x (vectors W_part). Where a part's x
    has few columns, as the one-hot vectors of a small field have, the right-hand side
    is the same function with far fewer operations: the vectors meet the weights once a
    batch and not once a row.
    """

    parts: Sequence[Part]

    @property
    def width(self) -> int:
        """I, the inputs of a layer."""
        return sum(part.width for part in self.parts)

    def vector(self) -> jax.Array:
        """z."""
        parts = [p.x if p.vectors is None else p.x @ p.vectors for p in self.parts]
        return jnp.concatenate(parts, axis=1)

    def factors(self) -> jax.Array:
        """All x side by side: [B, N]."""
        return jnp.concatenate([part.x for part in self.parts], axis=1)

    def reduced(self, kernel: jax.Array) -> jax.Array:
        """The kernel [..., I, O] of z as that of the factors: [..., N, O]."""
        if all(part.vectors is None for part in self.parts):
            return kernel
        ends = np.cumsum([part.width for part in self.parts])[:-1]
        rows = [
            own if part.vectors is None else part.vectors @ own
            for part, own in zip(
                self.parts, jnp.split(kernel, ends, axis=-2), strict=True
            )
        ]
        return jnp.concatenate(rows, axis=-2)


def width(x: jax.Array | Features) -> int:
    """I, the inputs of a layer that reads x."""
    return x.width if isinstance(x, Features) else x.shape[-1]


def vector(x: jax.Array | Features) -> jax.Array:
    """x as one array."""
    return x.vector() if isinstance(x, Features) else x


def product(x: jax.Array | Features, *layers: Weights) -> list[jax.Array]:
    """x kernel + bias of each layer, for layers that read the same x [B, I].

    All of them are one matrix product, [B, I] with [I, Σ E O], so that narrow ones (a
    gate) ride along with wide ones (the experts). A layer gives [B, O], a stack of E
    gives [E, B, O].
    """
    kernels = [layer.kernel for layer in layers]
    if isinstance(x, Features):
        kernels = [x.reduced(kernel) for kernel in kernels]
        x = x.factors()
    wide = [_wide(kernel) for kernel in kernels]
    columns = x @ (wide[0] if len(wide) == 1 else jnp.concatenate(wide, axis=1))
    ends = np.cumsum([kernel.shape[1] for kernel in wide])[:-1]
    return [
        _of_stack(part, kernel) + jnp.expand_dims(layer.bias, -2)
        for part, kernel, layer in zip(
            jnp.split(columns, ends, axis=1), kernels, layers, strict=True
        )
    ]


def _wide(kernel: jax.Array) -> jax.Array:
    """[I, O] as it is, [E, I, O] as [I, E O]."""
    if kernel.ndim == 2:
        return kernel
    return jnp.swapaxes(kernel, 0, 1).reshape(kernel.shape[1], -1)


def _of_stack(columns: jax.Array, kernel: jax.Array) -> jax.Array:
    """[B, O] as it is, [B, E O] as [E, B, O]."""
    if kernel.ndim == 2:
        return columns
    return jnp.swapaxes(columns.reshape(-1, kernel.shape[0], kernel.shape[2]), 0, 1)
