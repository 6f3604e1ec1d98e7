"""Cross-entropy that rows answered well hardly enter."""

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
    number,
)


def focal_bce_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 2.0,
    alpha: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """Focal loss, the weighted mean over rows, from logits.

        loss = sum_i w_i (y_i α F(z_i) + (1 - y_i) (1 - α) F(-z_i)) / sum_i w_i
        F(z) = -(1 - σ(z))^γ log σ(z)

    With γ = 0 and no α it is `bce_loss`. The power is taken of logarithms, so that
    value and gradient are exact where σ(z) rounds to 0 or 1. Options: see
    `pwiser_jax.losses`.

    Args:
        logits: f[B], z.
        labels: f, int or bool [B], y in [0, 1].
        gamma: γ, at least 0; may be traced.
        alpha: α in [0, 1], the weight of label 1, 1 - α being that of label 0; may be
            traced. None leaves both factors out. The paper's best is 0.25 with γ = 2.
        where: bool[B], rows that count.
        weights: f[B].
        axis_name: mapped axis over whose devices the rows are spread.

    Returns:
        f[]; 0 where no row counts.

    Raises:
        AssertionError: a wrong shape or type; the message names the argument.

    Reference:
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017:
        https://arxiv.org/abs/1708.02002

    >>> import jax.numpy as jnp
    >>> loss = focal_bce_loss(jnp.array([0.0, 0.0]), jnp.array([1, 0]), gamma=1.0)
    >>> print(f"{loss:.4f}")  # (1 - 1/2) log 2
    0.3466
    """
    z = float_rows("logits", logits)
    y = label_rows(z, "labels", labels).astype(z.dtype)
    power = number("gamma", gamma, z.dtype)
    rows = counted_rows(z, where, weights)
    y = jnp.where(rows.weights != 0, y, 0)
    of_ones, of_zeros = y, 1 - y
    if alpha is not None:
        balance = number("alpha", alpha, z.dtype)
        of_ones, of_zeros = balance * of_ones, (1 - balance) * of_zeros

    log_p, log_q = jax.nn.log_sigmoid(rows.values), jax.nn.log_sigmoid(-rows.values)
    costs = -of_ones * jnp.exp(power * log_q) * log_p
    costs -= of_zeros * jnp.exp(power * log_p) * log_q
    return mean_over_rows(costs, rows, axis_name)
