"""Sums over pairs in tiles of one side, for any cost of a pair, in little memory."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import Array


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

    Tiles without a row that takes part are skipped. (Under `vmap` over what decides
    that, nothing is skipped.) Rows of zeros fill the last tile.
    """
    count = len(rows.weights)
    size = max(1, min(TILE, count))
    tiles = -(-count // size)

    def tiled(array: Array) -> Array:
        return jnp.pad(array, (0, tiles * size - count)).reshape(tiles, size)

    # Sums over no rows: zeros that vary over the same device axes as the rest, which
    # shard_map asks of a scan's carry and of both branches of a cond.
    nothing = pair_sums(jax.tree.map(lambda array: array[:0], rows))

    # The outer checkpoint keeps tiles from being stored for the backward pass, the
    # inner one from being handed from one pass's cond to the other's.
    @jax.checkpoint
    def sums_of(tile: Rows) -> Sums:
        work = jax.checkpoint(pair_sums)
        return jax.lax.cond(jnp.any(tile.weights != 0), work, lambda _: nothing, tile)

    def step(sums: Sums, tile: Rows):
        return jax.tree.map(jnp.add, sums, sums_of(tile)), None

    return jax.lax.scan(step, nothing, jax.tree.map(tiled, rows))[0]
