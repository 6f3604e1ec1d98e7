"""A bank of scores of recent conversions, for batches without conversions."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from pwiser_jax.losses.pairs import Positives
from pwiser_jax.losses.pairs.bins import scaled
from pwiser_jax.losses.pairs.search import first_rows
from pwiser_jax.losses.rows import (
    AxisName,
    PairRows,
    check_array,
    click_labels,
    float_rows,
    rows_like,
)


class ConversionBank(NamedTuple):
    """Scores of the last conversions, newest batch first; constants in gradients.

    Attributes:
        scores: f[K]; 0 in empty places.
        weights: f[K]: 1, or 0 in empty places.
    """

    scores: Array
    weights: Array


def conversion_bank(capacity: int, dtype: DTypeLike = jnp.float32) -> ConversionBank:
    """An empty bank of `capacity` conversions, part of the training state.

    Pass it to `pwiser_loss(..., bank=bank)`, where its scores are further conversions
    of weight 1, and update it with `update_bank`. Its scores come from the model
    parameters of earlier steps: a capacity of a few batches' conversions keeps them
    fresh.

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
        scores: f[B], in the unit of the loss; those that are not finite are left out.
        conversions: f, int or bool [B], 0 or 1.
        where, axis_name: see `pwiser_jax.losses`. The new bank is that of the whole
            batch, the same on every device.

    Returns:
        The new bank, of the same capacity.

    Raises:
        AssertionError: a wrong shape or type.
        ValueError: concrete conversions other than 0 and 1; traced ones are left out.
    """
    _check_shapes(bank)
    s = jax.lax.stop_gradient(float_rows("scores", scores))
    converted, bad = click_labels(s, "conversions", conversions, where, None)
    kept = (converted > 0) & ~bad & jnp.isfinite(s)
    if where is not None:
        kept &= rows_like(s, "where", where, bool)
    capacity = len(bank.scores)
    new = _pack(s, kept, min(capacity, len(s)))
    if axis_name is not None:
        new = jax.lax.all_gather(new, axis_name, tiled=True)
    both = jax.tree.map(lambda *parts: jnp.concatenate(parts), new, bank)
    return _pack(both.scores.astype(bank.scores.dtype), both.weights > 0, capacity)


def bank_positives(
    bank: ConversionBank | None, rows: PairRows
) -> tuple[Positives | None, Array | int]:
    """The bank as positives in the unit of the rows' weights, and its poison. The
    poison is NaN if a score or weight of the bank is invalid, else 0.

    Raises:
        ValueError: the rows have segments or pair values, which the bank has not.
    """
    if bank is None:
        return None, 0
    if rows.segments is not None:
        raise ValueError("bank: its conversions have no segments; choose one of both")
    if rows.has_pair_values:
        raise ValueError(
            "bank: its conversions have no pair values; choose one of both"
        )
    _check_shapes(bank)
    scores, weights = jax.lax.stop_gradient(bank)
    valid = jnp.isfinite(scores) & jnp.isfinite(weights) & (weights >= 0)
    bad = ~valid & (weights != 0)
    return (
        Positives(jnp.where(bad, 0, scores), scaled(weights, -rows.row_unit)),
        jnp.where(jnp.any(bad), jnp.nan, 0),
    )


def _check_shapes(bank: ConversionBank) -> None:
    message = "bank: expected two arrays f[K]"
    scores, weights = map(jnp.asarray, bank)
    check_array(message, scores, (None,), float)
    check_array(message, weights, scores.shape, float)


def _pack(scores: Array, kept: Array, capacity: int) -> ConversionBank:
    index = first_rows(kept, capacity)
    return ConversionBank(
        scores.at[index].get(mode="fill", fill_value=0),
        (index < len(scores)).astype(scores.dtype),
    )
