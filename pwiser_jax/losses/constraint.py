"""The order of a funnel's probabilities, as a penalty."""

from itertools import pairwise

import jax
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.losses.rows import (
    AxisName,
    counted_rows,
    float_columns,
    mean_over_rows,
)


def label_constraint_loss(
    probabilities: ArrayLike,
    *,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    axis_name: AxisName | None = None,
) -> Array:
    """AITM's calibrator: a later step cannot be more probable than an earlier one.

        loss = sum_i w_i sum_k max(0, p_i,k+1 - p_i,k) / sum_i w_i

    It needs no labels, and takes the place of no other loss: AITM adds it to the
    cross-entropies of the tasks. Options: see `pwiser_jax.losses`.

    Args:
        probabilities: f[B, K], of a row's K >= 2 steps in their order, such as CTR and
            CTCVR. (CVR, which is given a click, has no place among them.)
        where: bool[B], rows that count.
        weights: f[B].
        axis_name: mapped axis over whose devices the rows are spread.

    Returns:
        f[]; 0 where no row counts.

    Raises:
        AssertionError: a wrong shape or type; the message names the argument.

    Reference:
        Xi et al., Modeling the Sequential Dependence among Audience Multi-step
        Conversions, KDD 2021: https://arxiv.org/abs/2105.08489

    >>> import jax.numpy as jnp
    >>> loss = label_constraint_loss(jnp.array([[0.3, 0.1], [0.2, 0.6]]))
    >>> print(f"{loss:.4f}")  # (0 + 0.4) / 2
    0.2000
    """
    steps = float_columns("probabilities", probabilities, "two or more probabilities")
    # relu's gradient at 0 is 0, so that equal probabilities are left alone.
    rises = [
        counted_rows(later - earlier, where, weights)
        for earlier, later in pairwise(steps)
    ]
    means = [
        mean_over_rows(jax.nn.relu(rows.values), rows, axis_name) for rows in rises
    ]
    return sum(means[1:], start=means[0])
