"""A memory of recent conversions, for batches that hold none."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from pwiser_jax.losses.pairs.search import first_rows
from pwiser_jax.losses.rows import AxisName, float_rows, label_rows, rows_like


class ConversionBank(NamedTuple):
    """Scores of the last conversions, newest batch first; constants to differentiation.

    Attributes:
        scores: f[K]; 0 where nothing is remembered yet.
        weights: f[K]: 1, or 0 where nothing is remembered yet.
    """

    scores: Array
    weights: Array


def conversion_bank(capacity: int, dtype: DTypeLike = jnp.float32) -> ConversionBank:
    """An empty bank of `capacity` conversions, to be carried from step to step.

    Give it to `pwiser_loss(..., bank=bank)`, where its scores are further conversions,
    of weight 1, and renew it by `update_bank`. Scores are those of the weights they
    were made with: a capacity of a few batches' conversions keeps them fresh.

    Raises:
        ValueError: the capacity is less than 1.

    >>> import jax.numpy as jnp
    >>> bank = conversion_bank(3)
    >>> for scores in ([0.9, 0.2], [0.3, 0.4]):
    ...     bank = update_bank(bank, jnp.array(scores), jnp.array([1, 0]))
    >>> print(bank.scores, bank.weights)
    [0.3 0.9 0. ] [1. 1. 0.]
    """
    if capacity < 1:
        raise ValueError(f"capacity: expected 1 or more, not {capacity}")
    return ConversionBank(jnp.zeros(capacity, dtype), jnp.zeros(capacity, dtype))


def update_bank(
    bank: ConversionBank,
    scores: ArrayLike,
    conversions: ArrayLike,
    *,
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> ConversionBank:
    """The bank after a batch: its conversions, then the older ones, as many as fit.

    Args:
        bank: the bank before, the same on every device.
        scores: f[B], in the unit of the loss; those not finite are not remembered.
        conversions: f, int or bool [B], above 0 for a conversion.
        where: bool[B], rows that count.
        axis_name: mapped axis over whose devices the rows are spread: the new bank is
            that of the whole batch, the same on every device.

    Raises:
        AssertionError: a wrong shape or type; the message names the argument.
    """
    chex.assert_equal_shape(bank, custom_message="bank: expected two arrays f[K]")
    s = jax.lax.stop_gradient(float_rows("scores", scores))
    kept = (label_rows(s, "conversions", conversions) > 0) & jnp.isfinite(s)
    if where is not None:
        kept &= rows_like(s, "where", where, bool)
    capacity = len(bank.scores)
    new = _pack(s, kept, min(capacity, len(s)))
    if axis_name is not None:
        new = jax.lax.all_gather(new, axis_name, tiled=True)
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), new, bank)
    return _pack(both.scores.astype(bank.scores.dtype), both.weights > 0, capacity)


def _pack(scores: Array, kept: Array, capacity: int) -> ConversionBank:
    index = first_rows(kept, capacity)
    return ConversionBank(
        scores.at[index].get(mode="fill", fill_value=0),
        (index < len(scores)).astype(scores.dtype),
    )
