"""Sums over pairs in tiles of one side, for any cost of a pair, in little memory."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from jax import Array

Rows = TypeVar("Rows")
Sums = TypeVar("Sums")

# Rows in a tile: memory is N times this, and rare positives fill one or a few.
TILE = 256


def tile_sums(pair_sums: Callable[[Rows], Sums], rows: Rows, counts: Array) -> Sums:
    """pair_sums(rows), added up over tiles of the rows.

    Rows that do not count (counts, bool[P]) go to the last tiles, and tiles without
    one that does are skipped: time is that of rows which count, not of P. (Under
    `vmap` over what says which rows count, nothing is skipped.) `pair_sums` gives 0
    for rows that are all zeros, which fill the last tile.
    """
    size = max(1, min(TILE, len(counts)))
    tiles = -(-len(counts) // size)
    order = jnp.argsort(~counts, stable=True)

    def tiled(array: Array) -> Array:
        padding = (0, tiles * size - len(counts))
        return jnp.pad(array[order], padding).reshape(tiles, size)

    # Sums over no rows: zeros that vary over the same device axes as the rest, which
    # shard_map asks of a scan's carry and of both branches of a cond.
    nothing = pair_sums(jax.tree.map(lambda array: array[:0], rows))

    # The outer checkpoint keeps tiles from being stored for the backward pass, the
    # inner one from being handed from one pass's cond to the other's.
    @jax.checkpoint
    def sums_of(tile: Rows, some: Array) -> Sums:
        work = jax.checkpoint(pair_sums)
        return jax.lax.cond(some, work, lambda _: nothing, tile)

    def step(sums: Sums, tile: tuple[Rows, Array]):
        return jax.tree.map(jnp.add, sums, sums_of(*tile)), None

    some = jnp.any(tiled(counts), axis=1)
    return jax.lax.scan(step, nothing, (jax.tree.map(tiled, rows), some))[0]
