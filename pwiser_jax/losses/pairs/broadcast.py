"""The definition itself: N x P arrays. The reference, and fast for small batches."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from pwiser_jax.losses.pairs.options import (
    SURROGATES,
    Gate,
    Surrogate,
    active_pairs,
    excess,
)
from pwiser_jax.losses.pairs.types import Others, Positives


# Recomputed in the backward pass: cheaper than keeping N x P arrays until then.
@partial(jax.checkpoint, static_argnums=(2, 3))
def pair_row_sums(
    positives: Positives, others: Others, surrogate: Surrogate, gate: Gate
) -> tuple[Array, Array]:
    """Sums over positives for each other row, in O(N P) time and memory.

    See `pwiser_jax.losses.pairs` for the definition.
    """
    positive, other = positives.scores[None, :], others.scores[:, None]
    margin = others.margins[:, None]
    weights = positives.weights[None, :] * others.weights[:, None]
    if positives.segments is not None and others.segments is not None:
        same = positives.segments[None, :] == others.segments[:, None]
        weights = jnp.where(same, weights, 0)
    active = active_pairs(positive - other, margin, surrogate, gate) & (weights != 0)
    # Twice `where`: an idle pair's phi may overflow, and 0 times infinity is NaN, in
    # the value as in the gradient.
    x = jnp.where(active, excess(positive, other, margin), 0)
    values = jnp.where(active, SURROGATES[surrogate](x), 0)
    return jnp.sum(weights * values, axis=1), jnp.sum(weights, axis=1)
