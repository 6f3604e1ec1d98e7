"""Losses that look at one row at a time."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.losses.rows import (
    AxisName,
    counted_rows,
    float_rows,
    label_rows,
    mean_over_rows,
)


def bce_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """Binary cross-entropy, the weighted mean over rows, from logits.

        loss = sum_i w_i (-y_i log σ(z_i) - (1 - y_i) log σ(-z_i)) / sum_i w_i

    Log-sigmoids keep value and gradient exact where σ(z) rounds to 0 or 1. Options:
    see `pwiser_jax.losses`.

    Args:
        logits: f[B], z.
        labels: f, int or bool [B], y in [0, 1].
        where: bool[B], rows that count.
        weights: f[B].
        axis_name: mapped axis over whose devices the rows are spread.

    Returns:
        f[]; 0 where no row counts.

    Raises:
        AssertionError: a wrong shape or type; the message names the argument.

    >>> import jax.numpy as jnp
    >>> loss = bce_loss(jnp.array([2.0, -1.0, 0.0]), jnp.array([1, 0, 1]))
    >>> print(f"{loss:.4f}")  # mean of log(1 + e^-2), log(1 + e^-1), log 2
    0.3778
    """
    z = float_rows("logits", logits)
    y = label_rows(z, "labels", labels).astype(z.dtype)
    rows = counted_rows(z, where, weights)
    y = jnp.where(rows.weights != 0, y, 0)
    z = rows.values
    entropy = -y * jax.nn.log_sigmoid(z) - (1 - y) * jax.nn.log_sigmoid(-z)
    return mean_over_rows(entropy, rows, axis_name)
