"""JRC: two logits per row; their difference is calibrated, their values rank."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.losses.pointwise import bce_loss
from pwiser_jax.losses.rows import (
    AxisName,
    click_labels,
    float_columns,
    masked_rows,
    number,
    rows_like,
    weighted_mean,
)


def jrc_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 0.5,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """Joint optimisation of ranking and calibration, the weighted mean over rows.

        loss = sum_i w_i (α calibration_i + (1 - α) ranking_i) / sum_i w_i
        calibration_i = -log(e^f_i[y_i] / (e^f_i[0] + e^f_i[1]))
        ranking_i     = -log(e^f_i[y_i] / sum_j w_j e^f_j[y_i])

    The second term is `jrc_ranking_loss`. The click probability is σ(f[1] - f[0]), and
    the first term is `bce_loss` of that difference.

    Args:
        logits: f[B, 2], f: of no click and of a click.
        labels: f, int or bool [B], y in [0, 1]; between them, costs are mixed.
        alpha: α in [0, 1], the calibration's share; may be traced.
        segments: int[B], the contexts, such as searches; one by default.
        where, weights, axis_name: see `pwiser_jax.losses`.

    Returns:
        f[]; 0 if all rows are masked.

    Raises:
        AssertionError: a wrong shape or type.
        ValueError: concrete labels or α outside [0, 1]; traced ones give NaN.

    Reference:
        Sheng et al., Joint Optimization of Ranking and Calibration with
        Contextualized Hybrid Model, KDD 2023: https://arxiv.org/abs/2208.06164

    >>> import jax.numpy as jnp
    >>> logits, labels = jnp.array([[0.0, 1.0], [1.0, 0.0]]), jnp.array([1, 0])
    >>> loss = jrc_loss(logits, labels)
    >>> print(f"{loss:.4f}")  # every softmax is of 1 against 0: log(1 + e^-1)
    0.3133
    """
    columns = float_columns("logits", logits, "two logits", count=2)
    share = number("alpha", alpha, columns[0].dtype, 0, 1)
    rows = {"where": where, "weights": weights, "axis_name": axis_name}
    calibration = bce_loss(columns[1] - columns[0], labels, **rows)
    ranking = _ranking(columns, labels, segments=segments, **rows)
    return share * calibration + (1 - share) * ranking


def jrc_ranking_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """JRC's ranking term: a softmax over the rows of a context, for each label.

        loss = sum_i w_i ranking_i / sum_i w_i
        ranking_i = -log(e^f_i[y_i] / sum_j w_j e^f_j[y_i])

    with j over the rows of i's context, i itself and rows of the same label included:
    the paper's equations, with weights.

    O(B log B) time, O(B) memory. With `axis_name` all rows are gathered on every
    device (two logits, label, weight and segment of each): a context may be spread
    over devices.

    Args:
        logits, labels, where, weights, segments, axis_name: see `jrc_loss`.

    Returns:
        f[]; 0 if all rows are masked.

    Raises:
        AssertionError, ValueError: as `jrc_loss`.

    >>> import jax.numpy as jnp
    >>> logits, labels = jnp.array([[0.0, 2.0], [0.0, 0.0]]), jnp.array([1, 0])
    >>> loss = jrc_ranking_loss(logits, labels)
    >>> print(f"{loss:.4f}")  # mean of log(1 + e^-2) and log 2
    0.4100
    """
    return _ranking(
        float_columns("logits", logits, "two logits", count=2),
        labels,
        where=where,
        weights=weights,
        segments=segments,
        axis_name=axis_name,
    )


def _ranking(
    columns: Sequence[Array],
    labels: ArrayLike,
    *,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    segments: ArrayLike | None,
    axis_name: AxisName | None,
) -> Array:
    y, bad = click_labels(columns[0], "labels", labels, where, weights, soft=True)
    rows = [masked_rows(column, where, weights, bad) for column in columns]
    y = jnp.where(rows[0].weights != 0, y.astype(columns[0].dtype), 0)

    def gathered(array: Array) -> Array:
        if axis_name is None:
            return array
        return jax.lax.all_gather(array, axis_name, tiled=True)

    y, row_weights = gathered(y), gathered(rows[0].weights)
    contexts, count = jnp.zeros(y.shape, int), 1
    if segments is not None:
        group = gathered(rows_like(columns[0], "segments", segments, int))
        count = len(y)
        contexts = jnp.unique(group, return_inverse=True, size=count)[1]
    costs = [
        _contrast(gathered(column.values), row_weights, contexts, count)
        for column in rows
    ]
    total = jnp.sum(row_weights * (y * costs[1] + (1 - y) * costs[0]))
    ranking = weighted_mean(total, jnp.sum(row_weights))
    ranking += rows[0].poison + rows[1].poison
    if axis_name is not None:
        # Equal on all devices, or NaN on those with an invalid row; and shard_map must
        # see that the result does not vary.
        ranking = jax.lax.pmean(ranking, axis_name)
    return ranking


def _contrast(f: Array, weights: Array, contexts: Array, count: int) -> Array:
    """log sum_j w_j e^(f_j - f_i) for each row i, j over the rows of its context."""
    unmasked = weights != 0
    members = jnp.where(unmasked, jax.lax.stop_gradient(f), -jnp.inf)
    top = jax.ops.segment_max(members, contexts, count)
    # A context whose rows are all masked has no maximum.
    top = jnp.where(jnp.isfinite(top), top, 0)[contexts]
    terms = weights * jnp.exp(jnp.where(unmasked, f - top, 0))
    total = jax.ops.segment_sum(terms, contexts, count)[contexts]
    # Differences first: top + log(total) would round to the size of the logits.
    return jnp.where(unmasked, top - f + jnp.log(jnp.where(unmasked, total, 1)), 0)
