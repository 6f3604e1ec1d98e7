"""Dropout whose mask depends on where a value is, and on nothing else.

A generator that fills an array depends on the array's shape: the same batch on two
devices, or under vmap, would meet other masks. Here each value hashes its own
coordinates (seed, row of the whole batch, unit), so the mask of a row is the same
wherever the row is computed. One finaliser a value is also several times cheaper than
threefry on a CPU.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pwiser_jax.models.context import Context


def scramble(x: jax.Array) -> jax.Array:
    """A bijection of uint32 in which each input bit flips each output bit about half
    of the time: the finaliser "lowbias32".

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
    """bool of the given shape, the rows on `axis`, True with probability 1 - rate.

    seeds is uint32[2] and rows uint32[B]. Rows and units are scrambled under their own
    seeds first: neighbouring coordinates then meet the last hash far apart, and two
    layers whose seeds happen to be close share nothing.
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
    """Zeroes each value of x with probability rate, scales up the rest.

    x holds the rows on one axis: [B, D], [E, B, D] or, with axis 0, [B, E, D].

    Only in training. Needs the rng "dropout", the same key on every device; another
    key for each step, the module's place in the model is folded in.
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
                # Counting from 0 on each device would give them all the same mask.
                raise ValueError("rows must be given for dropout with an axis_name")
            rows = jnp.arange(x.shape[self.axis], dtype=jnp.uint32)
        seeds = jax.random.bits(self.make_rng("dropout"), (2,), jnp.uint32)
        keep = keep_mask(seeds, rows, x.shape, self.rate, self.axis)
        return jnp.where(keep, x / (1 - self.rate), 0)
