"""Losses of one row at a time."""

from itertools import pairwise

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.losses.rows import (
    AxisName,
    check_values,
    click_labels,
    float_columns,
    float_rows,
    masked_rows,
    mean_over_rows,
    number,
)


def bce_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    positive_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """Binary cross-entropy, the weighted mean over rows, from logits.

        loss = sum_i w_i (-p y_i log σ(z_i) - (1 - y_i) log σ(-z_i)) / sum_i w_i

    Log-sigmoids keep value and gradient exact where σ(z) rounds to 0 or 1.

    Args:
        logits: f[B], z.
        labels: f, int or bool [B], y in [0, 1].
        positive_weight: p, at least 0, multiplies the costs of label 1, in the
            numerator only; may be traced. 1 by default.
        where, weights, axis_name: see `pwiser_jax.losses`.

    Returns:
        f[]; 0 if all rows are masked.

    Raises:
        AssertionError: a wrong shape or type.
        ValueError: concrete labels outside [0, 1]; traced ones give NaN.

    >>> import jax.numpy as jnp
    >>> loss = bce_loss(jnp.array([2.0, -1.0, 0.0]), jnp.array([1, 0, 1]))
    >>> print(f"{loss:.4f}")  # mean of log(1 + e^-2), log(1 + e^-1), log 2
    0.3778
    """
    z = float_rows("logits", logits)
    y, bad = click_labels(z, "labels", labels, where, weights, soft=True)
    rows = masked_rows(z, where, weights, bad)
    y = jnp.where(rows.weights != 0, y.astype(z.dtype), 0)
    ones, zeros = _label_costs(y, positive_weight)
    z = rows.values
    entropy = -ones * jax.nn.log_sigmoid(z) - zeros * jax.nn.log_sigmoid(-z)
    return mean_over_rows(entropy, rows, axis_name)


def focal_bce_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    gamma: ArrayLike = 2.0,
    alpha: ArrayLike | None = None,
    positive_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """Focal cross-entropy: down-weights well-classified rows. From logits.

        loss = sum_i w_i (p y_i α F(z_i) + (1 - y_i) (1 - α) F(-z_i)) / sum_i w_i
        F(z) = -(1 - σ(z))^γ log σ(z)

    With γ = 0 and no α it is `bce_loss`. The power is computed from logarithms, so that
    value and gradient are exact where σ(z) rounds to 0 or 1.

    Args:
        logits: f[B], z.
        labels: f, int or bool [B], y in [0, 1].
        gamma: γ, at least 0; may be traced.
        alpha: α in [0, 1], the weight of label 1, 1 - α being that of label 0; may be
            traced. None leaves both factors out. The paper's best is 0.25 with γ = 2.
        positive_weight: p, see `bce_loss`.
        where, weights, axis_name: see `pwiser_jax.losses`.

    Returns:
        f[]; 0 if all rows are masked.

    Raises:
        AssertionError: a wrong shape or type.
        ValueError: concrete labels, γ or α out of range; traced ones give NaN.

    Reference:
        Lin et al., Focal Loss for Dense Object Detection, ICCV 2017:
        https://arxiv.org/abs/1708.02002

    >>> import jax.numpy as jnp
    >>> loss = focal_bce_loss(jnp.array([0.0, 0.0]), jnp.array([1, 0]), gamma=1.0)
    >>> print(f"{loss:.4f}")  # (1 - 1/2) log 2
    0.3466
    """
    z = float_rows("logits", logits)
    y, bad = click_labels(z, "labels", labels, where, weights, soft=True)
    power = number("gamma", gamma, z.dtype, 0)
    rows = masked_rows(z, where, weights, bad)
    y = jnp.where(rows.weights != 0, y.astype(z.dtype), 0)
    ones, zeros = _label_costs(y, positive_weight)
    if alpha is not None:
        balance = number("alpha", alpha, z.dtype, 0, 1)
        ones, zeros = balance * ones, (1 - balance) * zeros
    log_p, log_q = jax.nn.log_sigmoid(rows.values), jax.nn.log_sigmoid(-rows.values)
    costs = -ones * jnp.exp(power * log_q) * log_p
    costs -= zeros * jnp.exp(power * log_p) * log_q
    return mean_over_rows(costs, rows, axis_name)


def _label_costs(
    labels: Array, positive_weight: ArrayLike | None
) -> tuple[Array, Array]:
    """The factors of the costs of label 1 and of label 0."""
    if positive_weight is None:
        return labels, 1 - labels
    p = number("positive_weight", positive_weight, labels.dtype, 0)
    return p * labels, 1 - labels


def label_constraint_loss(
    probabilities: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """AITM's calibrator: a later step cannot be more probable than an earlier one.

        loss = sum_i w_i sum_k max(0, p_i,k+1 - p_i,k) / sum_i w_i

    It has no labels and replaces no other loss: AITM adds it to the cross-entropies of
    the tasks.

    Args:
        probabilities: f[B, K] in [0, 1], joint ones of a row's K >= 2 steps in their
            order, such as CTR and CTCVR (not CVR, which is conditional).
        where, weights, axis_name: see `pwiser_jax.losses`.

    Returns:
        f[]; 0 if all rows are masked.

    Raises:
        AssertionError: a wrong shape or type.
        ValueError: concrete numbers outside [0, 1]; traced ones give NaN.

    Reference:
        Xi et al., Modeling the Sequential Dependence among Audience Multi-step
        Conversions, KDD 2021: https://arxiv.org/abs/2105.08489

    >>> import jax.numpy as jnp
    >>> loss = label_constraint_loss(jnp.array([[0.3, 0.1], [0.2, 0.6]]))
    >>> print(f"{loss:.4f}")  # (0 + 0.4) / 2
    0.2000
    """
    steps = float_columns("probabilities", probabilities, "two or more probabilities")
    for step in steps:
        check_values(
            "probabilities",
            step,
            lambda p: ~((p < 0) | (p > 1)),
            "a number from 0 to 1",
            where,
            weights,
        )
    means = []
    for earlier, later in pairwise(steps):
        bad = (earlier < 0) | (earlier > 1) | (later < 0) | (later > 1)
        rises = masked_rows(later - earlier, where, weights, bad)
        # relu's gradient at 0 is 0: equal probabilities stay as they are.
        means.append(mean_over_rows(jax.nn.relu(rises.values), rises, axis_name))
    return sum(means[1:], start=means[0])
