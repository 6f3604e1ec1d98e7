"""The definition in tiles of positives: any surrogate, in little memory."""

from jax import Array

from pwiser_jax.losses.pairs import broadcast
from pwiser_jax.losses.pairs.options import Gate, Surrogate
from pwiser_jax.losses.pairs.tiles import tile_sums
from pwiser_jax.losses.pairs.types import Others, Positives


def pair_row_sums(
    positives: Positives, others: Others, surrogate: Surrogate, gate: Gate
) -> tuple[Array, Array]:
    """Sums over positives for each other row, in O(N TILE) memory.

    Tiles without a positive are skipped: see `tile_sums`, and `pwiser_jax.losses.pairs`
    for the definition.
    """
    return tile_sums(
        lambda tile: broadcast.pair_row_sums(tile, others, surrogate, gate), positives
    )
