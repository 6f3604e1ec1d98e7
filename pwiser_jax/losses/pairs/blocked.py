"""The definition in tiles of positives: any surrogate, in little memory."""

import jax
import jax.numpy as jnp
from jax import Array

from pwiser_jax.losses.pairs import broadcast
from pwiser_jax.losses.pairs.types import Others, Positives
from pwiser_jax.losses.pairwise import Gate, Surrogate

# Positives in a tile: memory is N times this, and rare positives fill one or a few.
TILE = 256


def pair_row_sums(
    positives: Positives, others: Others, surrogate: Surrogate, gate: Gate
) -> tuple[Array, Array]:
    """Sums over positives for each other row, in O(N TILE) memory.

    Positives are packed to the front, and tiles without one are skipped: time is that
    of positives which count, not of P. (Under `vmap` over weights or levels nothing is
    skipped.) See `pwiser_jax.losses.pairs` for the definition.
    """
    count = positives.scores.shape[0]
    size = max(1, min(TILE, count))
    tiles = -(-count // size)

    def tiled(rows: Array) -> Array:
        return jnp.pad(rows, (0, tiles * size - count)).reshape(tiles, size)

    # Sums over no positives: zeros that vary over the same device axes as the rest,
    # which shard_map asks of a scan's carry and of both branches of a cond.
    nothing = broadcast.pair_row_sums(
        jax.tree.map(lambda rows: rows[:0], positives), others, surrogate, gate
    )

    # The outer checkpoint keeps tiles from being stored for the backward pass, the
    # inner one from being handed from one pass's cond to the other's.
    @jax.checkpoint
    def tile_sums(tile: Positives) -> tuple[Array, Array]:
        work = jax.checkpoint(
            lambda tile: broadcast.pair_row_sums(tile, others, surrogate, gate)
        )
        return jax.lax.cond(jnp.any(tile.weights != 0), work, lambda _: nothing, tile)

    def step(sums: tuple[Array, Array], tile: Positives):
        return jax.tree.map(jnp.add, sums, tile_sums(tile)), None

    return jax.lax.scan(step, nothing, jax.tree.map(tiled, positives))[0]
