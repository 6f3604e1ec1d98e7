"""RankNet: of two rows the one with the higher label should score higher."""

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.losses.pairs.options import check_choice
from pwiser_jax.losses.pairs.tiles import tile_sums
from pwiser_jax.losses.pointwise import bce_loss
from pwiser_jax.losses.positives import over_positives
from pwiser_jax.losses.rows import (
    AxisName,
    counted_rows,
    float_rows,
    label_rows,
    number,
    rows_like,
    weighted_mean,
)


class Rows(NamedTuple):
    """One side of the pairs."""

    scores: Array  # f[N]
    labels: Array  # f or int [N]
    weights: Array  # f[N], 0 in rows that do not count
    segments: Array | None  # int[N]


def ranknet_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    normalize: Literal["pairs", "none"] = "pairs",
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """RankNet, the pairwise logistic loss over all pairs with unequal labels.

        loss = sum of w_i w_j log(1 + e^-(s_i - s_j)) over pairs with y_i > y_j,
               divided by the sum of their w_i w_j

    There is no closed form, so pairs are summed in tiles: O(B H) time and O(B) memory,
    H the rows above the lowest label. Options: see `pwiser_jax.losses`. With
    `axis_name` those H rows (score, label, weight, segment) are gathered on every
    device, packed where they are few; each device handles its own rows' pairs.

    Args:
        scores: f[B], logits as a rule: the scale is in the loss.
        labels: f, int or bool [B], any numbers; NaN gives NaN.
        normalize: "pairs": divided by the weights of the pairs; "none": a plain sum.
        where: bool[B], rows that count.
        weights: f[B].
        segments: int[B]; numerator and denominator are sums over segments.
        axis_name: mapped axis over whose devices the rows are spread.

    Returns:
        f[]; 0 where there is no pair.

    Raises:
        AssertionError: a wrong shape or type; the message names the argument.
        ValueError: an unknown option; the message names the argument.

    Reference:
        Burges et al., Learning to Rank using Gradient Descent, ICML 2005:
        https://doi.org/10.1145/1102351.1102363

    >>> import jax.numpy as jnp
    >>> loss = ranknet_loss(jnp.array([2.0, 1.0, 1.0]), jnp.array([0.5, 0.0, 0.0]))
    >>> print(f"{loss:.4f}")  # two pairs, log(1 + e^-1) each
    0.3133
    """
    check_choice("normalize", normalize, ("pairs", "none"))
    s = float_rows("scores", scores)
    y = jax.lax.stop_gradient(label_rows(s, "labels", labels))
    y = y.astype(int) if y.dtype == bool else y
    counted = counted_rows(s, where, weights, bad=jnp.isnan(y.astype(s.dtype)))
    group = None if segments is None else rows_like(s, "segments", segments, int)
    lower = Rows(counted.values, y, counted.weights, group)
    above = y > _lowest(lower, axis_name)
    costs, pair_weights = over_positives(
        lower._replace(weights=jnp.where(above, counted.weights, 0)),
        lambda higher: tile_sums(lambda tile: _pair_row_sums(tile, lower), higher),
        axis_name,
    )
    # Devices meet here and in `over_positives`: see `ladder_terms`.
    sums = jnp.sum(costs) + counted.poison, jnp.sum(pair_weights)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    return sums[0] if normalize == "none" else weighted_mean(*sums)


def bce_ranknet_loss(
    logits: ArrayLike,
    labels: ArrayLike,
    *,
    alpha: ArrayLike = 0.5,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """Cross-entropy and RankNet on the same logits, "Combined-Pair".

        loss = α bce_loss + (1 - α) ranknet_loss

    Arguments, options, cost and errors are theirs, with labels y in [0, 1]; α in
    [0, 1] may be traced. Without a pair the second term is 0.

    Reference:
        Lin et al., Understanding the Ranking Loss for Recommendation with Sparse User
        Feedback, KDD 2024: https://arxiv.org/abs/2403.14144

    >>> import jax.numpy as jnp
    >>> loss = bce_ranknet_loss(jnp.array([1.0, -1.0]), jnp.array([1, 0]), alpha=0.9)
    >>> print(f"{loss:.4f}")  # 0.9 log(1 + e^-1) + 0.1 log(1 + e^-2)
    0.2946
    """
    rows = {"where": where, "weights": weights, "axis_name": axis_name}
    pointwise = bce_loss(logits, labels, **rows)
    share = number("alpha", alpha, pointwise.dtype)
    pairwise = ranknet_loss(logits, labels, segments=segments, **rows)
    return share * pointwise + (1 - share) * pairwise


def _lowest(rows: Rows, axis_name: AxisName | None) -> Array:
    """The lowest label of all devices' rows that count: it is above none."""
    y = rows.labels
    top = jnp.inf if jnp.issubdtype(y.dtype, jnp.floating) else jnp.iinfo(y.dtype).max
    lowest = jnp.min(jnp.where(rows.weights != 0, y, top), initial=top)
    return lowest if axis_name is None else jax.lax.pmin(lowest, axis_name)


@jax.checkpoint
def _pair_row_sums(higher: Rows, lower: Rows) -> tuple[Array, Array]:
    """For each lower row the sums of costs and of weights over the higher ones."""
    pairs = higher.labels[None, :] > lower.labels[:, None]
    if higher.segments is not None and lower.segments is not None:
        pairs &= higher.segments[None, :] == lower.segments[:, None]
    weights = higher.weights[None, :] * lower.weights[:, None]
    weights = jnp.where(pairs, weights, 0)
    active = weights != 0
    # Twice `where`: see `pairs.broadcast`.
    difference = higher.scores[None, :] - lower.scores[:, None]
    costs = jax.nn.softplus(jnp.where(active, -difference, 0))
    costs = jnp.where(active, costs, 0)
    return jnp.sum(weights * costs, axis=1), jnp.sum(weights, axis=1)
