"""Sums over pairs in tiles of one side, for any cost of a pair, in little memory."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from pwiser_jax.losses.pairs.search import first_rows


class Weighted(Protocol):
    """Arrays with an entry a row; rows that do not take part have weight 0."""

    @property
    def weights(self) -> Array: ...  # f[P]


Rows = TypeVar("Rows", bound=Weighted)
Sums = TypeVar("Sums")

# Rows in a tile: memory is N times this, and rare positives fill one or a few.
TILE = 256


def tile_sums(pair_sums: Callable[[Rows], Sums], rows: Rows) -> Sums:
    """pair_sums(rows), added up over tiles of the rows.

    Rows of weight 0 go to the end, and tiles without another are skipped: time is that
    of rows which take part, not of P. (Under `vmap` over weights nothing is skipped.)
    `pair_sums` is a `jax.checkpoint`, so that its N x TILE arrays are not handed from
    cond to cond.
    """
    count = len(rows.weights)
    size = max(1, min(TILE, count))
    tiles = -(-count // size)
    index = first_rows(rows.weights != 0, tiles * size)

    def tiled(array: Array) -> Array:
        packed = array.at[index].get(mode="fill", fill_value=0)
        return packed.reshape(tiles, size)

    # Sums over no rows: zeros that vary over the same device axes as the rest, which
    # shard_map asks of a scan's carry and of both branches of a cond.
    nothing = pair_sums(jax.tree.map(lambda array: array[:0], rows))

    # The checkpoint keeps tiles from being stored for the backward pass.
    @jax.checkpoint
    def sums_of(tile: Rows) -> Sums:
        some = jnp.any(tile.weights != 0)
        return jax.lax.cond(some, pair_sums, lambda _: nothing, tile)

    def step(sums: Sums, tile: Rows):
        return jax.tree.map(jnp.add, sums, sums_of(tile)), None

    return jax.lax.scan(step, nothing, jax.tree.map(tiled, rows))[0]
