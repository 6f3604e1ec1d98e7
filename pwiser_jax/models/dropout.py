"""Dropout whose mask is a hash of (seed, row of the global batch, unit).

A row's mask is therefore the same on any number of devices and under vmap; a
generator's bits would depend on the array's shape. One hash per value is also several
times cheaper than threefry on a CPU.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pwiser_jax.models.context import Context


def scramble(x: jax.Array) -> jax.Array:
    """Hashes uint32 by the finaliser "lowbias32", a bijection.

    Each input bit flips each output bit about half of the time.

    Reference: Chris Wellons, https://nullprogram.com/blog/2018/07/31/
    """
    x = (x ^ (x >> 16)) * np.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * np.uint32(0x846CA68B)
    return x ^ (x >> 16)


def keep_mask(
    seeds: jax.Array,
    rows: jax.Array,
    shape: tuple[int, ...],
    rate: float,
    axis: int = -2,
) -> jax.Array:
    """Draws the mask: True (keep) with probability 1 - rate.

    Rows and units are hashed with separate seeds before they are combined, so that
    neighbouring coordinates and similar seeds give independent bits.

    Args:
        seeds: uint32[2].
        rows: uint32[B], positions in the global batch.
        shape: shape of the mask, with B on `axis`.
        rate: probability of dropping a value.
        axis: the axis of the rows.

    Returns:
        bool of that shape.
    """
    of_units = list(shape)
    of_units[axis] = 1
    of_rows = [1] * len(shape)
    of_rows[axis] = -1
    row = scramble(seeds[0] ^ rows).reshape(of_rows)
    units = jnp.arange(math.prod(of_units), dtype=jnp.uint32)
    unit = scramble(seeds[1] ^ units).reshape(of_units)
    return scramble(row + unit) >= np.uint32(round(rate * 2**32))


class Dropout(nn.Module):
    """Zeroes each value with probability rate and divides the others by 1 - rate.

    x holds the rows on one axis: [B, D], [E, B, D] or, with axis 0, [B, E, D].

    Active in training only. Needs the rng "dropout": the same key on all devices and a
    new one each step. Flax folds in the module's path.
    """

    rate: float
    axis: int = -2

    @nn.compact
    def __call__(self, x: jax.Array, context: Context) -> jax.Array:
        if not context.train or self.rate == 0:
            return x
        rows = context.rows
        if rows is None:
            if context.axis_name is not None:
                # Positions from 0 would give all devices the same mask.
                raise ValueError("rows must be given for dropout with an axis_name")
            rows = jnp.arange(x.shape[self.axis], dtype=jnp.uint32)
        seeds = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
        keep = keep_mask(seeds, rows, x.shape, self.rate, self.axis)
        return jnp.where(keep, x / (1 - self.rate), 0)
