"""The definition in tiles of positives: any surrogate, in little memory."""

import jax
import jax.numpy as jnp
from jax import Array

from pwiser_jax.losses.pairs import broadcast
from pwiser_jax.losses.pairs.types import Others, Positives
from pwiser_jax.losses.pairwise import Gate, Surrogate
from pwiser_jax.losses.search import first_rows

# Positives in a tile: memory is N times this, and rare positives fill one or a few.
TILE = 256


def pair_row_sums(
    positives: Positives, others: Others, surrogate: Surrogate, gate: Gate
) -> tuple[Array, Array]:
    """Sums over positives for each other row, in O(N TILE) memory.

    Rows of weight 0 go to the end, and tiles without one are skipped: time is that
    of positives which count, not of P. (Under `vmap` over weights or levels nothing is
    skipped.) See `pwiser_jax.losses.pairs` for the definition.
    """
    count = positives.scores.shape[0]
    size = max(1, min(TILE, count))
    tiles = -(-count // size)
    index = first_rows(positives.weights != 0, tiles * size)

    def tiled(rows: Array) -> Array:
        packed = rows.at[index].get(mode="fill", fill_value=0)
        return packed.reshape(tiles, size)

    # Sums over no positives: zeros that vary over the same device axes as the rest,
    # which shard_map asks of a scan's carry and of both branches of a cond.
    nothing = broadcast.pair_row_sums(
        jax.tree.map(lambda rows: rows[:0], positives), others, surrogate, gate
    )

    # The checkpoint keeps tiles from being stored for the backward pass; `broadcast`
    # has one of its own, which keeps them from being handed from cond to cond.
    @jax.checkpoint
    def tile_sums(tile: Positives) -> tuple[Array, Array]:
        def work(tile: Positives) -> tuple[Array, Array]:
            return broadcast.pair_row_sums(tile, others, surrogate, gate)

        return jax.lax.cond(jnp.any(tile.weights != 0), work, lambda _: nothing, tile)

    def step(sums: tuple[Array, Array], tile: Positives):
        return jax.tree.map(jnp.add, sums, tile_sums(tile)), None

    return jax.lax.scan(step, nothing, jax.tree.map(tiled, positives))[0]
