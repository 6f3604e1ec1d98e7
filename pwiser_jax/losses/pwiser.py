"""PWiseR: conversions should score above clicks, and above exposures without one."""

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.losses.bank import ConversionBank
from pwiser_jax.losses.ladder import is_higher, term_margins, term_mean, term_sums
from pwiser_jax.losses.pairs import PairOptions, Pairs
from pwiser_jax.losses.pairs.options import Gate, Normalize, Surrogate
from pwiser_jax.losses.rows import (
    AxisName,
    click_labels,
    concrete_rows,
    float_rows,
    pair_rows,
)


def pwiser_loss(
    scores: ArrayLike,
    clicks: ArrayLike,
    conversions: ArrayLike,
    *,
    margins: Sequence[ArrayLike | None] | Array = (0.1, 0.2),
    surrogate: Surrogate = "squared_hinge",
    gate: Gate = "margin",
    normalize: Normalize = "pairs",
    pairs: Pairs = "auto",
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    pair_values: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    bank: ConversionBank | None = None,
) -> Array:
    """PWiseR, the pairwise ranking loss of multi-task recommenders.

        loss = mean over C x K of phi(m1 - (s_c - s_k))
             + mean over C x Z of phi(m2 - (s_c - s_z))

    over the batch's conversions C, click-only rows K and rows without a click Z (a
    conversion without a click is in C only). It is `ladder_loss` with two labels.

    Args:
        scores: f[B] of one task: probabilities in the paper, which the default margins
            suit; for logits 0.5 and 1.0 are a start.
        clicks: f, int or bool [B], 0 or 1.
        conversions: f, int or bool [B], 0 or 1.
        margins: (m1, m2) in the unit of the scores, may be traced; None leaves that
            term out.
        surrogate: phi. "squared_hinge" max(0, x)^2, the paper's; "hinge" max(0, x);
            "logistic" log(1 + e^x).
        gate: "margin": pairs with s_c - s < m are active, continuous; "literal": pairs
            with s_c - s < -m, as the paper was reported, with a jump that the gradient
            ignores; for "squared_hinge" only.
        normalize: "pairs": each term is divided by the weights of its pairs;
            "negatives": by the weights of K, and of Z; "none": plain sums.
        pairs: how pairs are summed; all forms are equal to float rounding.
            "broadcast": an array of all pairs, the definition; "blocked": tiles of
            it, in little memory; "sorted": O(B log B) time and O(B) memory, for the
            hinges, reverse mode only (forward mode and second derivatives are
            errors); "auto": the fastest for the surrogate, the batch size and the
            backend.
        where, weights, segments, axis_name: see `pwiser_jax.losses`.
        pair_values: f[B], at least 0, such as order values: a further factor of a
            pair's weight, that of its higher row (the conversion) alone. Other rows'
            values are not read.
        bank: scores of earlier conversions, see `conversion_bank`: further rows of C,
            constants of weight 1; not with segments or pair values.

    Returns:
        f[]; a term without a pair is 0 with gradient 0.

    Raises:
        AssertionError: a wrong shape or type.
        ValueError: an unknown option, or no term; concrete labels other than 0 and 1,
            or more conversions than clicks. Traced labels other than 0 and 1 give NaN.

    Reference:
        PWiseR: https://arxiv.org/abs/2406.02163

    >>> import jax.numpy as jnp
    >>> scores = jnp.array([0.30, 0.25, 0.20])
    >>> clicks, conversions = jnp.array([1, 1, 0]), jnp.array([1, 0, 0])
    >>> loss = pwiser_loss(scores, clicks, conversions)
    >>> print(f"{loss:.4f}")  # (0.1 - 0.05)^2 + (0.2 - 0.1)^2
    0.0125
    """
    options = PairOptions(surrogate, gate, normalize, pairs)
    s = float_rows("scores", scores)
    clicked, bad_click = click_labels(s, "clicks", clicks, where, weights)
    converted, bad_conversion = click_labels(
        s, "conversions", conversions, where, weights
    )
    _check_order(clicks, conversions, where, weights)
    terms = term_margins(_margins(margins), s.dtype)
    level = jnp.where(converted > 0, 2, jnp.where(clicked > 0, 1, 0))
    rows = pair_rows(
        s,
        where,
        weights,
        segments,
        pair_values,
        axis_name,
        higher=is_higher(level, terms),
        bad=bad_click | bad_conversion,
    )
    sums = term_sums(rows, level, terms, options, axis_name, bank)
    total = jnp.zeros((), s.dtype)
    for term in terms:
        total += term_mean(rows, options, *sums[term])
    return total


def _check_order(
    clicks: ArrayLike,
    conversions: ArrayLike,
    where: ArrayLike | None,
    weights: ArrayLike | None,
) -> None:
    """Raises a ValueError for concrete labels with more conversions than clicks."""
    unmasked = concrete_rows(clicks, where, weights)
    if unmasked is None or concrete_rows(conversions) is None:
        return
    counts = [
        int(np.sum(unmasked & (np.asarray(x) > 0))) for x in (clicks, conversions)
    ]
    if counts[1] > counts[0]:
        raise ValueError(
            f"conversions: {counts[1]} conversions and {counts[0]} clicks; are clicks "
            "and conversions swapped?"
        )


def _margins(
    margins: Sequence[ArrayLike | None] | Array,
) -> dict[tuple[int, int], ArrayLike]:
    """Margins by term: conversion over click, conversion over no click."""
    try:
        over_click, over_no_click = margins
    except (TypeError, ValueError):
        raise ValueError(
            "margins: expected two numbers (m1, m2), one may be None"
        ) from None
    terms = {(2, 1): over_click, (2, 0): over_no_click}
    present = {term: margin for term, margin in terms.items() if margin is not None}
    if not present:
        raise ValueError("margins: both are None, there is no term left")
    return present
