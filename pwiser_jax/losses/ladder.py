"""The ladder loss: rows that reached a higher level should score higher."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.losses.bank import ConversionBank
from pwiser_jax.losses.pairs import Others, Pairs, Positives, pair_form
from pwiser_jax.losses.pairs.options import (
    Gate,
    Normalize,
    Surrogate,
    check_pair_options,
)
from pwiser_jax.losses.positives import over_positives
from pwiser_jax.losses.rows import (
    AxisName,
    counted_rows,
    float_rows,
    rows_like,
    weighted_mean,
)
from pwiser_jax.losses.terms import (
    Term,
    check_levels,
    term_factors,
    term_margins,
)


def ladder_loss(
    scores: ArrayLike,
    levels: ArrayLike,
    margins: Mapping[Term, ArrayLike] | ArrayLike,
    *,
    surrogate: Surrogate = "squared_hinge",
    gate: Gate = "margin",
    normalize: Normalize = "pairs",
    pairs: Pairs = "auto",
    term_weights: Mapping[Term, ArrayLike] | ArrayLike | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    bank: ConversionBank | None = None,
) -> Array:
    """Pairwise ranking by levels 0..L, such as exposure, click, cart, order.

        loss = sum over terms (hi, lo) of
               v_hi,lo  mean over rows i of level hi, j of level lo of
                        phi(m_hi,lo - (s_i - s_j))

    Args:
        scores: f[B], probabilities or logits: margins are in the same unit.
        levels: int[B], 0..L; the level that a row reached.
        margins: which terms there are, and their margins. Either a mapping from
            (hi, lo) with hi > lo to a margin that may be traced, L being the highest
            hi; or a concrete (L + 1) x (L + 1) matrix, margins[hi, lo], NaN for no
            term.
        term_weights: v, may be traced: a mapping from (hi, lo), 1 for terms that it
            lacks, or a matrix [hi, lo]. 1 by default.
        surrogate, gate, normalize, pairs: see `pwiser_loss`; "negatives" divides by
            the weights of the lower level's rows.
        where, weights, segments, axis_name: see `pwiser_jax.losses`.
        bank: scores of earlier rows of level L, see `conversion_bank`: they take part
            in every term of L as constants.

    Returns:
        f[]; a term without a pair is 0 with gradient 0.

    Raises:
        AssertionError: a wrong shape or type; the message names the argument.
        ValueError: an unknown option; no term, or one with hi <= lo; a bank together
            with segments; a level out of range in a row that counts. Levels that are
            traced give NaN instead.

    >>> import jax.numpy as jnp
    >>> scores, levels = jnp.array([0.9, 0.7, 0.5]), jnp.array([3, 2, 0])
    >>> loss = ladder_loss(scores, levels, {(3, 2): 0.5, (2, 0): 0.5, (3, 1): 0.5})
    >>> print(f"{loss:.4f}")  # (0.5 - 0.2)^2 + (0.5 - 0.2)^2; no row has level 1
    0.1800
    """
    terms = ladder_terms(
        scores,
        levels,
        margins,
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
    dtype = next(iter(terms.values()))[0].dtype
    factors = term_factors(term_weights, terms, dtype)
    return sum(
        (factors[term] * weighted_mean(*sums) for term, sums in terms.items()),
        start=jnp.zeros((), dtype),
    )


def ladder_terms(
    scores: ArrayLike,
    levels: ArrayLike,
    margins: Mapping[Term, ArrayLike] | ArrayLike,
    *,
    surrogate: Surrogate = "squared_hinge",
    gate: Gate = "margin",
    normalize: Normalize = "pairs",
    pairs: Pairs = "auto",
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    bank: ConversionBank | None = None,
) -> dict[Term, tuple[Array, Array]]:
    """The numerator and denominator of each term of `ladder_loss`, to log or to add up.

    Arguments and errors are those of `ladder_loss`. The denominator is the sum of pair
    weights, or of the lower level's weights, or 1, as `normalize` says; both are sums
    over all devices.

    >>> import jax.numpy as jnp
    >>> scores, levels = jnp.array([0.9, 0.7, 0.6]), jnp.array([1, 0, 0])
    >>> terms = ladder_terms(scores, levels, {(1, 0): 0.5})
    >>> print(*(f"{x:.2f}" for x in terms[1, 0]))  # 0.3^2 + 0.2^2, two pairs
    0.13 2.00
    """
    check_pair_options(surrogate, gate, normalize)
    s = float_rows("scores", scores)
    level = rows_like(s, "levels", levels, int)
    margin, top = term_margins(margins, s.dtype)
    outside = (level < 0) | (level > top)
    rows = counted_rows(s, where, weights, bad=outside)
    check_levels(outside & (rows.weights != 0), top)
    group = None if segments is None else rows_like(s, "segments", segments, int)

    if bank is not None and group is not None:
        raise ValueError("bank: its conversions have no segments; choose one of both")
    form = pair_form(pairs, surrogate, s.shape[0])
    numerators: dict[Term, Array] = {}
    denominators: dict[Term, Array] = {}
    for high in dict.fromkeys(hi for hi, _ in margin):
        below = {lo: m for (hi, lo), m in margin.items() if hi == high}
        members = {lo: level == lo for lo in below}
        row_weights = {lo: jnp.where(members[lo], rows.weights, 0) for lo in below}
        others = Others(
            scores=rows.values,
            weights=sum(row_weights.values(), start=jnp.zeros_like(s)),
            segments=group,
            margins=sum(
                (jnp.where(members[lo], m, 0) for lo, m in below.items()),
                start=jnp.zeros_like(s),
            ),
        )
        past = bank if high == top else None
        sums, pair_weights = over_positives(
            Positives(rows.values, jnp.where(level == high, rows.weights, 0), group),
            lambda positives, others=others, past=past: form(
                _with_bank(positives, past), others, surrogate, gate
            ),
            axis_name,
        )
        for lo, m in below.items():
            term = high, lo
            poison = rows.poison + jnp.where(jnp.isfinite(m), 0, jnp.nan)
            numerators[term] = poison + jnp.sum(jnp.where(members[lo], sums, 0))
            denominators[term] = jnp.sum(
                jnp.where(members[lo], pair_weights, 0)
                if normalize == "pairs"
                else row_weights[lo]
            )
    # Devices meet here and in `over_positives` only, last and first: collectives amid
    # the differentiated sums would multiply gradients by the number of devices.
    if axis_name is not None:
        numerators, denominators = jax.lax.psum((numerators, denominators), axis_name)
    if normalize == "none":
        denominators = {term: jnp.ones_like(x) for term, x in numerators.items()}
    return {term: (numerators[term], denominators[term]) for term in margin}


def _with_bank(positives: Positives, bank: ConversionBank | None) -> Positives:
    if bank is None:
        return positives
    past = jax.lax.stop_gradient(Positives(bank.scores, bank.weights, None))
    return jax.tree.map(
        lambda now, then: jnp.concatenate([now, then.astype(now.dtype)]),
        positives,
        past,
    )
