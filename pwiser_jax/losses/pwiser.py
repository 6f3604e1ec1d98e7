"""PWiseR: conversions should score above clicks, and above exposures without one."""

from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.losses.bank import ConversionBank
from pwiser_jax.losses.ladder import ladder_loss
from pwiser_jax.losses.pairs import Pairs
from pwiser_jax.losses.pairs.options import Gate, Normalize, Surrogate
from pwiser_jax.losses.rows import AxisName, float_rows, label_rows


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
    axis_name: AxisName | None = None,
    bank: ConversionBank | None = None,
) -> Array:
    """PWiseR, the pairwise ranking loss of multi-task recommenders.

        loss = mean over C x K of phi(m1 - (s_c - s_k))
             + mean over C x Z of phi(m2 - (s_c - s_z))

    over the batch's conversions C, click-only rows K and rows without a click Z (a
    conversion without a click is in C only). It is `ladder_loss` with two labels.
    Options shared by all losses: see `pwiser_jax.losses`.

    Args:
        scores: f[B], one task's: probabilities in the paper, which the default margins
            suit; for logits 0.5 and 1.0 are a start.
        clicks: f, int or bool [B], 1 for a click, else 0.
        conversions: f, int or bool [B], 1 for a conversion, else 0.
        margins: (m1, m2), may be traced; None leaves that term out.
        surrogate: phi. "squared_hinge" max(0, x)^2, the paper's; "hinge" max(0, x);
            "logistic" log(1 + e^x).
        gate: "margin": a pair costs something where s_c - s < m, continuous;
            "literal": where s_c - s < -m, as the paper was reported, with a jump that
            the gradient ignores; for "squared_hinge" only.
        normalize: "pairs": each term is divided by the weights of its pairs;
            "negatives": by the weights of K, and of Z; "none": plain sums.
        pairs: how pairs are summed, all forms equal to float rounding.
            "broadcast": an array of all pairs, the definition; "blocked": tiles of
            it, in little memory; "sorted": O(B log B) time and O(B) memory, for the
            hinges, reverse mode only (forward mode and second derivatives are
            errors); "auto": the fastest for the surrogate, the batch size and the
            backend.
        where: bool[B], rows that count.
        weights: f[B].
        segments: int[B]; numerators and denominators are sums over segments.
        axis_name: mapped axis over whose devices the rows are spread: pairs are
            formed over all of them.
        bank: scores of earlier conversions, see `conversion_bank`: further rows of C,
            constants; not with segments.

    Returns:
        f[]; a term without a pair is 0 with gradient 0.

    Raises:
        AssertionError: a wrong shape or type; the message names the argument.
        ValueError: an unknown option, or no term; the message names the argument.

    Reference:
        PWiseR: https://arxiv.org/abs/2406.02163

    >>> import jax.numpy as jnp
    >>> scores = jnp.array([0.30, 0.25, 0.20])
    >>> clicks, conversions = jnp.array([1, 1, 0]), jnp.array([1, 0, 0])
    >>> loss = pwiser_loss(scores, clicks, conversions)
    >>> print(f"{loss:.4f}")  # (0.1 - 0.05)^2 + (0.2 - 0.1)^2
    0.0125
    """
    s = float_rows("scores", scores)
    clicked = label_rows(s, "clicks", clicks)
    converted = label_rows(s, "conversions", conversions)
    for labels in (clicked, converted):
        if jnp.issubdtype(labels.dtype, jnp.floating):
            # NaN > 0 is false: a missing label must not pass for a 0.
            s = jnp.where(jnp.isnan(labels), jnp.nan, s)
    return ladder_loss(
        s,
        jnp.where(converted > 0, 2, jnp.where(clicked > 0, 1, 0)),
        _terms(margins),
        surrogate=surrogate,
        gate=gate,
        normalize=normalize,
        pairs=pairs,
        where=where,
        weights=weights,
        segments=segments,
        axis_name=axis_name,
        bank=bank,
    )


def _terms(
    margins: Sequence[ArrayLike | None] | Array,
) -> dict[tuple[int, int], ArrayLike]:
    """The ladder's terms: conversion over click, conversion over no click."""
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
