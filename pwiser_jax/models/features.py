"""Linear layers on embedded fields, without materialising the embeddings.

A small field's embedding is a one-hot vector times its table, so that a layer's product
with it is the one-hot vector times (table @ weights): the table is projected once per
batch, instead of one embedding per row.
"""

import math
from collections.abc import Mapping, Sequence
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
    """Some inputs of a layer: x [B, D], or x [B, n] @ n rows [n, D] of a table."""

    x: jax.Array
    has_rows: bool = False

    @property
    def columns(self) -> int:
        """D, or n with rows of a table."""
        return self.x.shape[1]


class Features(NamedTuple):
    """z [B, I], the concatenation of the features, which is not materialised.

    A layer computes z W = Σ_f (x_f table_f) W_f as Σ_f x_f (table_f W_f): the same
    function, with far fewer operations where x_f has few columns. Tables of similar n
    are padded with zeros to a power of two and multiplied in one batched product: an
    accelerator starts many small products more slowly than it computes them.

    Attributes:
        features: the features.
        tables: of the features that have rows, one below another.
        padded: the tables of each batched product, [some, n, D], by n.
    """

    features: Sequence[Feature]
    tables: Sequence[jax.Array]
    padded: Mapping[int, Sequence[jax.Array]]

    @classmethod
    def of(
        cls,
        features: Sequence[Feature],
        shared: jax.Array | None = None,
        last: jax.Array | None = None,
    ) -> "Features":
        """The features.

        Args:
            features: the features.
            shared: the rows of those that have some, one below another.
            last: the rows of the last one, if they are not among the shared ones.
        """
        padded: dict[int, list[jax.Array]] = {}
        if shared is not None:
            sharing = features if last is None else features[:-1]
            rows = _consecutive([f.columns * f.has_rows for f in sharing])
            batches = {size: some for size, some in _batches(sharing).items() if size}
            indices = [
                np.stack([_padded(rows[i], size) for i in some])
                for size, some in batches.items()
            ]
            stacks = take_rows(shared, *indices)
            padded = {
                size: [stack] for size, stack in zip(batches, stacks, strict=True)
            }
        if last is not None:
            size = _up_to_power(len(last))
            stack = jnp.pad(last, ((0, size - len(last)), (0, 0)))[None]
            padded.setdefault(size, []).append(stack)
        tables = [table for table in (shared, last) if table is not None]
        return cls(features, tables, padded)

    @property
    def widths(self) -> list[int]:
        """D of each feature."""
        dim = self.tables[0].shape[1] if self.tables else 0
        return [dim if f.has_rows else f.columns for f in self.features]

    @property
    def width(self) -> int:
        """I."""
        return sum(self.widths)

    def concatenated(self) -> jax.Array:
        """z as an array."""
        ends = np.cumsum([f.columns for f in self.features if f.has_rows])[:-1]
        tables = iter(
            jnp.split(jnp.concatenate(self.tables), ends) if self.tables else []
        )
        blocks = [f.x @ next(tables) if f.has_rows else f.x for f in self.features]
        return jnp.concatenate(blocks, axis=1)

    def product(self, layer: LinearWeights, dtype: DTypeLike) -> jax.Array:
        """z kernel + bias: [B, O], or [B, E, O] of a stack."""
        y = matmul(self.factors(), _wide(self.projected(layer, dtype)), dtype)
        return y.reshape(-1, *layer.bias.shape)

    @property
    def _padding(self) -> int:
        """Columns of zeros among the factors."""
        return -(sum(f.columns for f in self.features) + 1) % ALIGNED

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
        products, rows = self._products(layer.kernel, dtype)
        (kernel,) = take_rows(products, np.concatenate(rows))
        last = jnp.expand_dims(layer.bias, -2)
        zeros = jnp.zeros((*last.shape[:-2], self._padding, last.shape[-1]))
        return jnp.concatenate([kernel, zeros, last], axis=-2)

    def _products(
        self, kernel: jax.Array, dtype: DTypeLike
    ) -> tuple[jax.Array, list[np.ndarray]]:
        """table_f W_f of each feature, or W_f where x_f is the input itself.

        Returns:
            All products one below another, [..., M, O], and the rows of each.
        """
        *stack, _, outputs = kernel.shape
        batches, of_kernel = _batches(self.features), _consecutive(self.widths)
        blocks = take_rows(
            kernel,
            *(np.concatenate([of_kernel[i] for i in b]) for b in batches.values()),
        )
        products, rows, total = [], dict[int, np.ndarray](), 0
        for (size, some), y in zip(batches.items(), blocks, strict=True):
            if size:
                # Repeated by layer: for one product of a stack, y would be transposed.
                a = jnp.concatenate(self.padded[size])
                a = jnp.broadcast_to(a, (*stack, *a.shape))
                y = matmul(a, y.reshape(*stack, len(some), -1, outputs), dtype)
            products.append(y.reshape(*stack, -1, outputs))
            for i in some:
                columns = self.features[i].columns
                rows[i] = total + np.arange(columns)
                total += size or columns
        return jnp.concatenate(products, axis=-2), [rows[i] for i in sorted(rows)]


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


def take_rows(x: jax.Array, *indices: np.ndarray) -> list[jax.Array]:
    """x[..., index, :] for each index; zeros where it is -1. No row is taken twice.

    A gather each, and one gather for the gradient, where the gradient of indexing would
    be a scatter: row by row, on a CPU.
    """
    *stack, height, width = x.shape
    index = np.concatenate([some.ravel() for some in indices])
    back = np.full(height, -1)
    back[index[index >= 0]] = np.flatnonzero(index >= 0)

    def rows(x: jax.Array, index: np.ndarray) -> jax.Array:
        exists = index >= 0
        # One axis of rows: XLA's gathers along other axes end in a transposition.
        first = x.shape[-2] * np.arange(math.prod(stack))[:, None]
        at = first + np.where(exists, index, 0).ravel()
        taken = jnp.take(x.reshape(-1, width), at.ravel(), axis=0, mode="clip")
        taken = taken.reshape(*stack, *index.shape, width)
        return taken if exists.all() else jnp.where(exists[..., None], taken, 0)

    @jax.custom_vjp
    def take(x: jax.Array) -> list[jax.Array]:
        return [rows(x, some) for some in indices]

    def backward(_: None, gradients: list[jax.Array]) -> tuple[jax.Array]:
        flat = [g.reshape(*stack, -1, width) for g in gradients]
        return (rows(jnp.concatenate(flat, axis=-2), back),)

    take.defvjp(lambda x: (take(x), None), backward)
    return take(x)


def _batches(features: Sequence[Feature]) -> dict[int, list[int]]:
    """Positions of features by the rows of their tables, up to a power of two.

    Those without rows have the key 0.
    """
    batches: dict[int, list[int]] = {}
    for i, feature in enumerate(features):
        size = _up_to_power(feature.columns) if feature.has_rows else 0
        batches.setdefault(size, []).append(i)
    return batches


def _up_to_power(n: int) -> int:
    """The smallest power of two that is not below n."""
    return 1 << (n - 1).bit_length()


def _padded(rows: np.ndarray, size: int) -> np.ndarray:
    return np.pad(rows, (0, size - len(rows)), constant_values=-1)


def _consecutive(sizes: Sequence[int]) -> list[np.ndarray]:
    """0, 1, 2 and so on, in arrays of these sizes."""
    return np.split(np.arange(sum(sizes)), np.cumsum(sizes)[:-1])


def _wide(kernel: jax.Array) -> jax.Array:
    """[I, O] as it is, [E, I, O] as [I, E O]."""
    if kernel.ndim == 2:
        return kernel
    return jnp.swapaxes(kernel, 0, 1).reshape(kernel.shape[1], -1)
