"""Linear layers over one input, the first ones by factors."""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

WIDE = 64  # multiplications that cost about as much as reading one number a few times
ALIGNED = 8  # columns: a GPU's fast kernels want rows of multiples of 16 bytes


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

    def product(self, layer: Weights, dtype: DTypeLike) -> "Product":
        """z kernel + bias of a layer or of a stack, not yet made."""
        kernel = _wide(self.reduced(layer, dtype))
        return Product(self.factors(), kernel, layer.bias.shape, dtype)

    @property
    def _padding(self) -> int:
        """Columns of zeros among the factors."""
        return -(sum(part.x.shape[1] for part in self.parts) + 1) % ALIGNED

    def factors(self) -> jax.Array:
        """[B, N]: all x, zeros up to a multiple N of `ALIGNED`, a column of ones."""
        last = np.zeros((1, self._padding + 1), np.float32)
        last[:, -1] = 1
        last = jnp.broadcast_to(last, (self.parts[0].x.shape[0], last.shape[1]))
        return jnp.concatenate([*(part.x for part in self.parts), last], axis=1)

    def reduced(self, layer: Weights, dtype: DTypeLike) -> jax.Array:
        """The kernel [..., N, O] of the factors; the bias is its last row."""
        ends = np.cumsum([part.width for part in self.parts])[:-1]
        blocks = jnp.split(layer.kernel, ends, axis=-2)
        by_vectors = [
            (part.vectors, block)
            for part, block in zip(self.parts, blocks, strict=True)
            if part.vectors is not None
        ]
        projected = iter(matmuls(by_vectors, dtype))
        rows = [
            block if part.vectors is None else next(projected)
            for part, block in zip(self.parts, blocks, strict=True)
        ]
        last = jnp.expand_dims(layer.bias, -2)
        zeros = jnp.zeros((*last.shape[:-2], self._padding, last.shape[-1]))
        return jnp.concatenate([*rows, zeros, last], axis=-2)


class Product(NamedTuple):
    """factors [B, N] @ kernel [N, U] as [B, *units], without being made: `matmul`'s, of
    this dtype. The factors' last column is one: the kernel's last row is a bias."""

    factors: jax.Array
    kernel: jax.Array
    units: tuple[int, ...]
    dtype: DTypeLike

    def made(self) -> jax.Array:
        y = matmul(self.factors, self.kernel, self.dtype)
        return y.reshape(-1, *self.units)

    @property
    def is_wide(self) -> bool:
        """Whether it has far more columns than its factors: then what is known of the
        N² pairs of factors costs less than a few readings of U columns."""
        inputs, outputs = self.kernel.shape
        return inputs**2 <= WIDE * outputs


def width(x: jax.Array | Features) -> int:
    """I, the inputs of a layer that reads x."""
    return x.width if isinstance(x, Features) else x.shape[-1]


def is_shared(x: jax.Array | Features) -> bool:
    """Whether a stack of layers has one input, and not one each."""
    return isinstance(x, Features) or x.ndim == 2


def vector(x: jax.Array | Features) -> jax.Array:
    """x as one array."""
    return x.vector() if isinstance(x, Features) else x


def matmul(a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    """a @ b of factors rounded to dtype, as float32, like its gradients.

    Hardware that multiplies bfloat16 adds in float32; the sums are rounded at the end.
    """
    return jnp.matmul(a.astype(dtype), b.astype(dtype)).astype(jnp.float32)


def matmuls(
    pairs: Sequence[tuple[jax.Array, jax.Array]], dtype: DTypeLike
) -> list[jax.Array]:
    """a @ b of each pair: [..., n, O] of [n, D] and [..., D, O].

    Those with about as many rows n are one batch, each filled up with zeros to a power
    of two: many small products take an accelerator longer to start than to do.
    """
    batches: dict[tuple[int, ...], list[int]] = {}
    for i, (a, b) in enumerate(pairs):
        batches.setdefault((1 << (len(a) - 1).bit_length(), *b.shape), []).append(i)
    found = dict[int, jax.Array]()
    for (most, *stack, inputs, _), members in batches.items():
        alike = [pairs[i] for i in members]
        a = jnp.stack([jnp.pad(a, ((0, most - len(a)), (0, 0))) for a, _ in alike])
        b = jnp.stack([b for _, b in alike], axis=-3)
        # Repeated by layer: for one product of a whole stack, b would be transposed.
        a = jnp.broadcast_to(a, (*stack, len(members), most, inputs))
        several = jnp.moveaxis(matmul(a, b, dtype), -3, 0)
        for i, y in zip(members, several, strict=True):
            found[i] = y[..., : len(pairs[i][0]), :]
    return [found[i] for i in range(len(pairs))]


def product(
    x: jax.Array | Features, layer: Weights, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """x kernel + bias, x [B, I]: [B, O] of a layer, [B, E, O] of a stack of E.

    A stack is one matrix product, too, [B, I] with [I, E O]. Where each of a stack has
    an input of its own, x is [E, B, I], and so is the output, [E, B, O]. Products are
    `matmul`'s, of this dtype.
    """
    if isinstance(x, Features):
        return x.product(layer, dtype).made()
    if not is_shared(x):
        return matmul(x, layer.kernel, dtype) + jnp.expand_dims(layer.bias, -2)
    y = matmul(x, _wide(layer.kernel), dtype) + layer.bias.reshape(1, -1)
    return y.reshape(-1, *layer.bias.shape)


def unmade_if_wide(
    x: jax.Array | Features, layer: Weights, dtype: DTypeLike
) -> jax.Array | Product:
    """`product`, or what makes it where that is better to know."""
    if isinstance(x, Features):
        y = x.product(layer, dtype)
        return y if y.is_wide else y.made()
    return product(x, layer, dtype)


def _wide(kernel: jax.Array) -> jax.Array:
    """[I, O] as it is, [E, I, O] as [I, E O]."""
    if kernel.ndim == 2:
        return kernel
    return jnp.swapaxes(kernel, 0, 1).reshape(kernel.shape[1], -1)
