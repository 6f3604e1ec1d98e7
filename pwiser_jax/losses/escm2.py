"""ESCM2: the CVR loss of all exposures, from the conversions of clicked rows."""

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.losses.rows import (
    AxisName,
    MaskedRows,
    click_labels,
    float_columns,
    masked_rows,
    mean_over_rows,
    number,
)


def escm2_ips_loss(
    logits: ArrayLike,
    clicks: ArrayLike,
    conversions: ArrayLike,
    *,
    floor: ArrayLike = 0.01,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """CVR's cross-entropy on clicked rows, weighted by inverse propensity (ESCM2-IPS).

        loss = sum_i w_i o_i δ_i / max(p_i, floor) / sum_i w_i
        p_i = σ(u_i),  δ_i = -c_i log σ(v_i) - (1 - c_i) log σ(-v_i)

    with clicks o, conversions c, and the logits u of CTR and v of CVR. p is a constant
    to differentiation. Where p is the probability of the click and above the floor, the
    expectation over clicks is the mean of δ over all rows, clicked or not.

    Args:
        logits: f[B, 2], u and v.
        clicks: f, int or bool [B], 0 or 1.
        conversions: f, int or bool [B], 0 or 1; read in clicked rows alone.
        floor: smallest propensity that is divided by, in (0, 1]; may be traced.
        where, weights, axis_name: see `pwiser_jax.losses`.

    Returns:
        f[]; 0 if all rows are masked.

    Raises:
        AssertionError: a wrong shape or type.
        ValueError: concrete labels or a floor out of range; traced ones give NaN.

    Reference:
        Wang et al., ESCM²: Entire Space Counterfactual Multi-Task Model for Post-Click
        Conversion Rate Estimation, SIGIR 2022: https://arxiv.org/abs/2204.05125

    >>> import jax.numpy as jnp
    >>> logits = jnp.array([[0.0, 0.0], [0.0, 0.0]])
    >>> loss = escm2_ips_loss(logits, jnp.array([1, 0]), jnp.array([1, 0]))
    >>> print(f"{loss:.4f}")  # log 2 / (1 / 2), over two rows
    0.6931
    """
    columns = float_columns("logits", logits, "two logits", count=2)
    rows, share, cost = _clicked(
        columns, clicks, conversions, floor, where=where, weights=weights
    )
    return mean_over_rows(share * cost, rows[0], axis_name)


def escm2_dr_loss(
    logits: ArrayLike,
    clicks: ArrayLike,
    conversions: ArrayLike,
    *,
    floor: ArrayLike = 0.01,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """CVR's doubly robust loss, with the error of its imputation (ESCM2-DR).

        loss = sum_i w_i (e_i + r_i (δ_i - e_i) + r_i (δ_i - e_i)^2) / sum_i w_i
        r_i = o_i / max(p_i, floor),  e_i = log(1 + e^m_i)

    with o, p and δ of `escm2_ips_loss`. e, the imputed δ, is the softplus of a third
    logit m, as δ is never negative. The first two terms are the paper's error loss: its
    expectation is the mean of δ over all rows where p or e is right. The third, the
    imputation loss, learns e on clicked rows.

    Args:
        logits: f[B, 3], u, v and m.
        clicks, conversions, floor, where, weights, axis_name: as `escm2_ips_loss`.

    Returns:
        f[]; 0 if all rows are masked.

    Raises:
        AssertionError, ValueError: as `escm2_ips_loss`.

    Reference: as `escm2_ips_loss`.

    >>> import jax.numpy as jnp
    >>> logits = jnp.zeros((2, 3))  # the imputation is right: δ = e = log 2
    >>> loss = escm2_dr_loss(logits, jnp.array([1, 0]), jnp.array([1, 0]))
    >>> print(f"{loss:.4f}")
    0.6931
    """
    columns = float_columns("logits", logits, "three logits", count=3)
    rows, share, cost = _clicked(
        columns, clicks, conversions, floor, where=where, weights=weights
    )
    imputed = jax.nn.softplus(rows[2].values)
    error = cost - imputed
    costs = imputed + share * (error + jnp.square(error))
    return mean_over_rows(costs, rows[0], axis_name)


def _clicked(
    columns: list[Array],
    clicks: ArrayLike,
    conversions: ArrayLike,
    floor: ArrayLike,
    *,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> tuple[list[MaskedRows], Array, Array]:
    """The rows of each column, o / max(p, floor), and δ."""
    u = columns[0]
    o, bad_click = click_labels(u, "clicks", clicks, where, weights)
    c, bad_conversion = click_labels(u, "conversions", conversions, where, weights)
    least = number("floor", floor, u.dtype, float(jnp.finfo(u.dtype).tiny), 1)
    bad = bad_click | bad_conversion
    rows = [masked_rows(column, where, weights, bad) for column in columns]
    poison = jnp.sum(jnp.stack([each.poison for each in rows]))
    rows[0] = rows[0]._replace(poison=poison)
    valid = rows[0].weights != 0
    o, c = (jnp.where(valid, x.astype(u.dtype), 0) for x in (o, c))
    propensity = jax.lax.stop_gradient(jax.nn.sigmoid(rows[0].values))
    v = rows[1].values
    cost = -c * jax.nn.log_sigmoid(v) - (1 - c) * jax.nn.log_sigmoid(-v)
    return rows, o / jnp.maximum(propensity, least), cost
