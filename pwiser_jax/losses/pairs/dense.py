"""The definition of the pair sums: all pairs at once, or in tiles of positives."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from pwiser_jax.losses.pairs.options import (
    SURROGATES,
    PairOptions,
    active_pairs,
    excess,
)
from pwiser_jax.losses.pairs.search import first_rows

# Positives in a tile: memory is N times this, and rare positives fill one or a few.
TILE = 256


class Positives(NamedTuple):
    """Rows that should score higher, of all devices."""

    scores: Array  # f[P]
    weights: Array  # f[P]
    segments: Array | None = None  # int[P]
    labels: Array | None = None  # f or int [P]: pairs only with lower labels


class Others(NamedTuple):
    """Rows that should score lower, of this device, each with its margin."""

    scores: Array  # f[N]
    weights: Array  # f[N]
    segments: Array | None = None  # int[N]
    margins: Array | None = None  # f[N]; None with the logistic surrogate: no margin
    labels: Array | None = None  # f or int [N]


# Recomputed in the backward pass: cheaper than storing N x P arrays until then.
@partial(jax.checkpoint, static_argnums=2)
def broadcast(
    positives: Positives, others: Others, options: PairOptions
) -> tuple[Array, Array]:
    """The pair sums of each other row, in O(N P) time and memory.

    See `pwiser_jax.losses.pairs` for the definition.
    """
    positive, other = positives.scores[None, :], others.scores[:, None]
    weights = positives.weights[None, :] * others.weights[:, None]
    if positives.segments is not None and others.segments is not None:
        same = positives.segments[None, :] == others.segments[:, None]
        weights = jnp.where(same, weights, 0)
    if positives.labels is not None and others.labels is not None:
        higher = positives.labels[None, :] > others.labels[:, None]
        weights = jnp.where(higher, weights, 0)
    if others.margins is None:  # nothing cancels
        active, x = True, -(positive - other)
    else:
        margin = others.margins[:, None]
        active = active_pairs(positive - other, margin, options)
        x = excess(positive, other, margin)
    active &= weights != 0
    # Twice `where`: the phi of an inactive pair may overflow, and 0 times infinity is
    # NaN, in the value and in the gradient.
    x = jnp.where(active, x, 0)
    values = jnp.where(active, SURROGATES[options.surrogate](x), 0)
    return jnp.sum(weights * values, axis=1), jnp.sum(weights, axis=1)


def blocked(
    positives: Positives, others: Others, options: PairOptions
) -> tuple[Array, Array]:
    """The pair sums of each other row, in O(N TILE) memory.

    Positives of weight 0 are packed to the end, and tiles that hold no others are
    skipped: time is proportional to the number of unmasked rows. (Under `vmap` over
        weights no tile is skipped.)
    """
    count = len(positives.weights)
    size = max(1, min(TILE, count))
    tiles = -(-count // size)
    index = first_rows(positives.weights != 0, tiles * size)

    def tiled(array: Array) -> Array:
        packed = array.at[index].get(mode="fill", fill_value=0)
        return packed.reshape(tiles, size)

    # Sums over no rows: zeros that vary over the same device axes as the rest, which
    # shard_map requires of a scan's carry and of both branches of a cond.
    nothing = broadcast(jax.tree.map(lambda x: x[:0], positives), others, options)

    # The checkpoint keeps tiles from being stored for the backward pass.
    @jax.checkpoint
    def sums_of(tile: Positives) -> tuple[Array, Array]:
        return jax.lax.cond(
            jnp.any(tile.weights != 0),
            lambda tile: broadcast(tile, others, options),
            lambda _: nothing,
            tile,
        )

    def step(
        sums: tuple[Array, Array], tile: Positives
    ) -> tuple[tuple[Array, Array], None]:
        return jax.tree.map(jnp.add, sums, sums_of(tile)), None

    return jax.lax.scan(step, nothing, jax.tree.map(tiled, positives))[0]
