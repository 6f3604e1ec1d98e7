"""What every layer needs to know of one forward pass, besides its own input."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax


class Context(NamedTuple):
    """One forward pass over a batch of B rows, or over one device's share of it.

    Attributes:
        train: use batch statistics and dropout, rather than running statistics.
        mask: bool[B], False for padding rows; None where every row is real.
        rows: uint32[B], the position of each row in the batch of all devices.
        axis_name: the axis over which devices share the batch.
    """

    train: bool
    mask: jax.Array | None = None
    rows: jax.Array | None = None
    axis_name: str | None = None

    def sum_rows(self, x: jax.Array) -> jax.Array:
        """Sum of x [..., B, D] over the real rows of all devices: [..., 1, D]."""
        if self.mask is not None:
            real = self.mask.reshape((1,) * (x.ndim - 2) + (-1, 1))
            x = jnp.where(real, x, 0)
        total = jnp.sum(x, axis=-2, keepdims=True)
        return total if self.axis_name is None else lax.psum(total, self.axis_name)

    def count_rows(self, batch: int) -> jax.Array:
        """Number of real rows on all devices, a float32 scalar; batch is B."""
        if self.mask is None:
            count = jnp.float32(batch)
        else:
            count = jnp.sum(self.mask, dtype=jnp.float32)
        return count if self.axis_name is None else lax.psum(count, self.axis_name)
