"""The arguments that every layer of a forward pass needs besides its input."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


class Context(NamedTuple):
    """A forward pass over a batch of B rows, or over one device's share of them.

    Attributes:
        train: use batch statistics and dropout, rather than running statistics.
        mask: bool[B], False for padding rows; None without padding.
        rows: uint32[B], the position of each row in the batch of all devices.
        axis_name: mapped axis that the batch is sharded over, if any.
        dtype: dtype of the factors of matrix products; all else is float32.
    """

    train: bool
    mask: jax.Array | None = None
    rows: jax.Array | None = None
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    def zero_padding(self, x: jax.Array, axis: int) -> jax.Array:
        """Sets padding rows of x to 0; the rows are on this axis."""
        if self.mask is None:
            return x
        return jnp.where(jnp.expand_dims(self.mask, _all_but(axis, x.ndim)), x, 0)

    def over_devices(self, x: jax.Array) -> jax.Array:
        """Sums x over the devices."""
        return x if self.axis_name is None else lax.psum(x, self.axis_name)

    def count_rows(self, batch: int) -> jax.Array:
        """Counts the valid rows on all devices, as a float32 scalar; batch is B."""
        if self.mask is None:
            count = jnp.float32(batch)
        else:
            count = jnp.sum(self.mask, dtype=jnp.float32)
        return self.over_devices(count)


def _all_but(axis: int, ndim: int) -> tuple[int, ...]:
    return tuple(k for k in range(ndim) if k != axis % ndim)
