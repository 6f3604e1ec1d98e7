"""What every layer needs to know of one forward pass, besides its own input."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike


class Context(NamedTuple):
    """One forward pass over a batch of B rows, or over one device's share of it.

    Attributes:
        train: use batch statistics and dropout, rather than running statistics.
        mask: bool[B], False for padding rows; None where every row is real.
        rows: uint32[B], the position of each row in the batch of all devices.
        axis_name: the axis over which devices share the batch.
        dtype: what the factors of matrix products are rounded to; all else is float32.
    """

    train: bool
    mask: jax.Array | None = None
    rows: jax.Array | None = None
    axis_name: str | None = None
    dtype: DTypeLike = jnp.float32

    def real_rows(self, batch: int, ndim: int, axis: int) -> jax.Array:
        """1 for a real row and 0 for padding, on this of so many axes; batch is B."""
        shape = [1] * ndim
        shape[axis] = batch
        if self.mask is None:
            return jnp.ones(shape)
        return self.mask.astype(jnp.float32).reshape(shape)

    def over_devices(self, x: jax.Array) -> jax.Array:
        """The sum of x over the devices."""
        return x if self.axis_name is None else lax.psum(x, self.axis_name)

    def varying(self, x: jax.Array, like: jax.Array) -> jax.Array:
        """x, the same on all devices, typed as differing between them, as `like` does.

        shard_map's types ask for it where a custom gradient differs by device.
        """
        if self.axis_name is None:
            return x
        return x + 0 * lax.stop_gradient(like.ravel()[0])

    def count_rows(self, batch: int) -> jax.Array:
        """Number of real rows on all devices, a float32 scalar; batch is B."""
        if self.mask is None:
            count = jnp.float32(batch)
        else:
            count = jnp.sum(self.mask, dtype=jnp.float32)
        return self.over_devices(count)
