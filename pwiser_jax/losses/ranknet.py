"""RankNet: a row with a higher label should score higher."""

from dataclasses import replace
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.losses.pairs import Others, PairOptions, Pairs, Positives, form_name
from pwiser_jax.losses.pairs.bins import scaled
from pwiser_jax.losses.pairs.options import Surrogate, check_choice
from pwiser_jax.losses.pointwise import bce_loss
from pwiser_jax.losses.positives import pair_row_sums
from pwiser_jax.losses.rows import (
    AxisName,
    check_values,
    concrete_rows,
    float_rows,
    label_rows,
    number,
    pair_rows,
    row_weights,
    weighted_mean,
)

# Concrete integer labels below this are summed level by level.
MOST_LEVELS = 8


def ranknet_loss(
    scores: ArrayLike,
    labels: ArrayLike,
    *,
    surrogate: Surrogate = "logistic",
    margin: ArrayLike = 1.0,
    normalize: Literal["pairs", "none"] = "pairs",
    pairs: Pairs = "auto",
    levels: int | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    pair_values: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """RankNet, a pairwise loss over all pairs with unequal labels.

        loss = sum of w_i w_j phi(s_i - s_j) over pairs with y_i > y_j,
               divided by the sum of their w_i w_j

    with phi(d) = log(1 + e^-d), RankNet's, or a hinge of m - d. Logistic pairs have no
    closed form and are summed in tiles: O(B H) time and O(B) memory, H being the rows
    above the lowest label. Hinges of labels with few levels take O(B log B).

    With `axis_name` the H rows (score, label, weight, segment) are gathered on every
    device, packed where they are few; each device sums the pairs of its rows.

    Args:
        scores: f[B], usually logits: the loss is not scale-free.
        labels: f, int or bool [B], any numbers; NaN gives NaN.
        surrogate: "logistic", "hinge" max(0, m - d) or "squared_hinge" max(0, m - d)^2.
        margin: m of the hinges, in the unit of the scores; may be traced. The logistic
            surrogate has none.
        normalize: "pairs": divided by the weights of the pairs; "none": a plain sum.
        pairs: as in `pwiser_loss`. "sorted" needs labels of few levels.
        levels: static; labels are then integers from 0 to levels - 1. Known without it
            for bool labels and for small concrete integers.
        where, weights, segments, axis_name: see `pwiser_jax.losses`.
        pair_values: see `pwiser_loss`.

    Returns:
        f[]; 0 without a pair.

    Raises:
        AssertionError: a wrong shape or type.
        ValueError: an unknown option; concrete labels beyond `levels`, where traced
            ones give NaN.

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
    count = _level_count(y, labels, levels, where, weights)
    y = y.astype(int) if y.dtype == bool else y
    bad = jnp.isnan(y.astype(s.dtype))
    if levels is not None:
        bad |= (y < 0) | (y >= levels)
    above = y > _lowest(y, row_weights(s, where, weights), axis_name)
    rows = pair_rows(
        s, where, weights, segments, pair_values, axis_name, higher=above, bad=bad
    )
    poison, margins = rows.poison, None
    if surrogate != "logistic":
        m = number("margin", margin, s.dtype, -np.inf)
        poison += jnp.where(jnp.isnan(m), jnp.nan, 0)
        margins = jnp.full_like(s, m)
    options = _options(surrogate, normalize, pairs, count, len(s))

    def row_sums(higher: Array, lower: Array | None) -> tuple[Array, Array]:
        """Over pairs of the two masks; without the second, over all unequal labels."""
        of_higher = jnp.where(higher, rows.higher_weights, 0)
        of_lower = rows.weights if lower is None else jnp.where(lower, rows.weights, 0)
        by_label = y if lower is None else None
        return pair_row_sums(
            Positives(rows.scores, of_higher, rows.segments, by_label),
            Others(rows.scores, of_lower, rows.segments, margins, by_label),
            options,
            axis_name,
        )

    if options.pairs == "sorted":
        parts = [row_sums(y == high, y < high) for high in range(1, count or 1)]
    else:
        parts = [row_sums(above, None)]
    costs, pair_weights = (sum(arrays) for arrays in zip(*parts, strict=True))
    # Collectives here and in `pair_row_sums`: see `term_sums`.
    sums = jnp.sum(costs) + poison, jnp.sum(pair_weights)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    return (
        scaled(sums[0], rows.pair_unit) if normalize == "none" else weighted_mean(*sums)
    )


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

    Args:
        logits: f[B].
        labels: f, int or bool [B], y in [0, 1].
        alpha: α in [0, 1]; may be traced.
        where, weights, segments, axis_name: see `pwiser_jax.losses`.

    Returns:
        f[]; without a pair the second term is 0.

    Raises:
        AssertionError: a wrong shape or type.
        ValueError: concrete labels or α outside [0, 1]; traced ones give NaN.

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
    share = number("alpha", alpha, pointwise.dtype, 0, 1)
    pairwise = ranknet_loss(logits, labels, segments=segments, **rows)
    return share * pointwise + (1 - share) * pairwise


def _level_count(
    y: Array,
    labels: ArrayLike,
    levels: int | None,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> int | None:
    """Number of levels of the labels 0, 1, ...; None if it is not known."""
    if levels is None and y.dtype == bool:
        return 2
    if levels is not None:
        if y.dtype != bool and not jnp.issubdtype(y.dtype, jnp.integer):
            raise ValueError(f"levels: labels must be integers, not {y.dtype}")
        check_values(
            "labels",
            labels,
            lambda y: (y >= 0) & (y < levels),
            f"an integer from 0 to {levels - 1}",
            where,
            weights,
        )
        return levels
    unmasked = concrete_rows(labels)
    if (
        unmasked is None
        or not unmasked.size
        or not jnp.issubdtype(y.dtype, jnp.integer)
    ):
        return None
    array = np.asarray(labels)
    few = array.min() >= 0 and array.max() < MOST_LEVELS
    return int(array.max()) + 1 if few else None


def _options(
    surrogate: Surrogate,
    normalize: Literal["pairs", "none"],
    pairs: Pairs,
    count: int | None,
    rows: int,
) -> PairOptions:
    """The options, with the `pairs` form for labels of `count` levels."""
    options = PairOptions(surrogate, "margin", normalize, pairs)
    if pairs == "auto":
        tiled = surrogate == "logistic" or count is None
        return replace(options, pairs="blocked" if tiled else form_name(options, rows))
    if pairs == "sorted" and count is None:
        raise ValueError(
            "pairs: 'sorted' needs labels of few levels: bool, or integers with "
            "`levels`"
        )
    return options


def _lowest(labels: Array, weights: Array, axis_name: AxisName | None) -> Array:
    """The lowest label of all devices' rows that are not masked."""
    floating = jnp.issubdtype(labels.dtype, jnp.floating)
    top = jnp.inf if floating else jnp.iinfo(labels.dtype).max
    lowest = jnp.min(jnp.where(weights != 0, labels, top), initial=top)
    return lowest if axis_name is None else jax.lax.pmin(lowest, axis_name)
