"""Linear layers on embedded fields, without materialising the embeddings.

A small field's embedding is a one-hot vector times its table, so that a layer's product
with it is the one-hot vector times (table @ weights): the table is projected once per
batch, instead of one embedding per row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike

ALIGNED = 8  # columns: a GPU's fast kernels want rows of multiples of 16 bytes


class LinearWeights(NamedTuple):
    """Kernel [I, O] and bias [O] of a linear layer; [E, I, O] and [E, O] of a stack."""

    kernel: jax.Array
    bias: jax.Array


class Feature(NamedTuple):
    """Some inputs of a layer: x [B, n] @ table [n, D], or without a table x [B, D]."""

    x: jax.Array
    table: jax.Array | None = None

    @property
    def width(self) -> int:
        """D."""
        return (self.x if self.table is None else self.table).shape[1]


class Features(NamedTuple):
    """z [B, I], the concatenation of the features, which is not materialised.

    A layer computes z W = Σ_f (x_f table_f) W_f as Σ_f x_f (table_f W_f): the same
    function, with far fewer operations where x_f has few columns.
    """

    features: Sequence[Feature]

    @property
    def width(self) -> int:
        """I."""
        return sum(feature.width for feature in self.features)

    def concatenated(self) -> jax.Array:
        """z as an array."""
        blocks = [f.x if f.table is None else f.x @ f.table for f in self.features]
        return jnp.concatenate(blocks, axis=1)

    def product(self, layer: LinearWeights, dtype: DTypeLike) -> jax.Array:
        """z kernel + bias: [B, O], or [B, E, O] of a stack."""
        y = matmul(self.factors(), _wide(self.projected(layer, dtype)), dtype)
        return y.reshape(-1, *layer.bias.shape)

    @property
    def _padding(self) -> int:
        """Columns of zeros among the factors."""
        return -(sum(f.x.shape[1] for f in self.features) + 1) % ALIGNED

    def factors(self) -> jax.Array:
        """All x concatenated, zeros up to a multiple of `ALIGNED`, and ones: [B, N]."""
        last = np.zeros((1, self._padding + 1), np.float32)
        last[:, -1] = 1
        last = jnp.broadcast_to(last, (self.features[0].x.shape[0], last.shape[1]))
        return jnp.concatenate([*(f.x for f in self.features), last], axis=1)

    def projected(self, layer: LinearWeights, dtype: DTypeLike) -> jax.Array:
        """The kernel [..., N, O] that the factors are multiplied with.

        Its last row, that of the ones, is the bias.
        """
        ends = np.cumsum([f.width for f in self.features])[:-1]
        blocks = jnp.split(layer.kernel, ends, axis=-2)
        pairs = [
            (feature.table, block)
            for feature, block in zip(self.features, blocks, strict=True)
            if feature.table is not None
        ]
        projections = iter(matmuls(pairs, dtype))
        rows = [
            block if feature.table is None else next(projections)
            for feature, block in zip(self.features, blocks, strict=True)
        ]
        last = jnp.expand_dims(layer.bias, -2)
        zeros = jnp.zeros((*last.shape[:-2], self._padding, last.shape[-1]))
        return jnp.concatenate([*rows, zeros, last], axis=-2)


def width(x: jax.Array | Features) -> int:
    """The number of inputs I of a layer that reads x."""
    return x.width if isinstance(x, Features) else x.shape[-1]


def is_shared(x: jax.Array | Features) -> bool:
    """Whether all layers of a stack read the same input, [B, I]."""
    return isinstance(x, Features) or x.ndim == 2


def concatenated(x: jax.Array | Features) -> jax.Array:
    """x as an array."""
    return x.concatenated() if isinstance(x, Features) else x


def product(
    x: jax.Array | Features, layer: LinearWeights, dtype: DTypeLike = jnp.float32
) -> jax.Array:
    """x kernel + bias.

    Args:
        x: [B, I], or [E, B, I] where each layer of a stack has its own input.
        layer: a layer, or a stack of E layers.
        dtype: dtype of the factors; see `matmul`.

    Returns:
        [B, O] of a layer. A stack gives [B, E, O] by one product of [B, I] with
        [I, E O], or [E, B, O] for an input [E, B, I].
    """
    if isinstance(x, Features):
        return x.product(layer, dtype)
    if not is_shared(x):
        return matmul(x, layer.kernel, dtype) + jnp.expand_dims(layer.bias, -2)
    y = matmul(x, _wide(layer.kernel), dtype) + layer.bias.reshape(1, -1)
    return y.reshape(-1, *layer.bias.shape)


def matmul(a: jax.Array, b: jax.Array, dtype: DTypeLike) -> jax.Array:
    """a @ b, its factors rounded to dtype, as float32; the gradients likewise.

    Hardware that multiplies bfloat16 adds in float32; the sums are rounded at the end.
    """
    return jnp.matmul(a.astype(dtype), b.astype(dtype)).astype(jnp.float32)


def matmuls(
    pairs: Sequence[tuple[jax.Array, jax.Array]], dtype: DTypeLike
) -> list[jax.Array]:
    """a @ b of each pair, [n, D] and [..., D, O]: [..., n, O].

    Pairs of similar n are one batched product, padded with zeros to a power of two:
    an accelerator starts many small products more slowly than it computes them.
    """
    batches: dict[tuple[int, ...], list[int]] = {}
    for i, (a, b) in enumerate(pairs):
        batches.setdefault((1 << (len(a) - 1).bit_length(), *b.shape), []).append(i)
    products = dict[int, jax.Array]()
    for (most, *stack, inputs, _), members in batches.items():
        batch = [pairs[i] for i in members]
        a = jnp.stack([jnp.pad(a, ((0, most - len(a)), (0, 0))) for a, _ in batch])
        b = jnp.stack([b for _, b in batch], axis=-3)
        # Repeated by layer: for one product of a whole stack, b would be transposed.
        a = jnp.broadcast_to(a, (*stack, len(members), most, inputs))
        results = jnp.moveaxis(matmul(a, b, dtype), -3, 0)
        for i, y in zip(members, results, strict=True):
            products[i] = y[..., : len(pairs[i][0]), :]
    return [products[i] for i in range(len(pairs))]


def _wide(kernel: jax.Array) -> jax.Array:
    """[I, O] as it is, [E, I, O] as [I, E O]."""
    if kernel.ndim == 2:
        return kernel
    return jnp.swapaxes(kernel, 0, 1).reshape(kernel.shape[1], -1)
