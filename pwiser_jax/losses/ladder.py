"""The ladder loss: rows of a higher level should score higher."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike, DTypeLike

from pwiser_jax.losses.bank import ConversionBank, bank_positives
from pwiser_jax.losses.pairs import Others, PairOptions, Pairs, Positives
from pwiser_jax.losses.pairs.bins import scaled
from pwiser_jax.losses.pairs.options import Gate, Normalize, Surrogate
from pwiser_jax.losses.positives import pair_row_sums
from pwiser_jax.losses.rows import (
    AxisName,
    PairRows,
    check_array,
    check_values,
    float_rows,
    pair_rows,
    rows_like,
    weighted_mean,
)

Term = tuple[int, int]  # (higher level, lower level)
Sums = dict[Term, tuple[Array, Array]]


def ladder_loss(
    scores: ArrayLike,
    levels: ArrayLike,
    margins: Mapping[Term, ArrayLike],
    *,
    surrogate: Surrogate = "squared_hinge",
    gate: Gate = "margin",
    normalize: Normalize = "pairs",
    pairs: Pairs = "auto",
    term_weights: Mapping[Term, ArrayLike] | None = None,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
    segments: ArrayLike | None = None,
    pair_values: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    bank: ConversionBank | None = None,
) -> Array:
    """Pairwise ranking by levels 0..L, such as exposure, click, cart, order.

        loss = sum over terms (hi, lo) of
               v_hi,lo  mean over rows i of level hi, j of level lo of
                        phi(m_hi,lo - (s_i - s_j))

    Args:
        scores: f[B], probabilities or logits: margins are in the same unit.
        levels: int[B], 0..L; the level of each row.
        margins: a margin for each term (hi, lo) with hi > lo; may be traced. L is the
            highest hi.
        surrogate, gate, normalize, pairs: see `pwiser_loss`; "negatives" divides by
            the weights of the lower level's rows.
        term_weights: v by term, 1 for terms that it lacks; may be traced.
        where, weights, segments, axis_name: see `pwiser_jax.losses`.
        pair_values, bank: see `pwiser_loss`. The bank's rows are of level L.

    Returns:
        f[]; a term without a pair is 0 with gradient 0.

    Raises:
        AssertionError: a wrong shape or type.
        ValueError: an unknown option; no term, or one with hi <= lo; a bank together
            with segments or pair values; a concrete level out of range. Traced levels
            out of range give NaN.

    >>> import jax.numpy as jnp
    >>> scores, levels = jnp.array([0.9, 0.7, 0.5]), jnp.array([3, 2, 0])
    >>> loss = ladder_loss(scores, levels, {(3, 2): 0.5, (2, 0): 0.5, (3, 1): 0.5})
    >>> print(f"{loss:.4f}")  # (0.5 - 0.2)^2 + (0.5 - 0.2)^2; no row has level 1
    0.1800
    """
    options = PairOptions(surrogate, gate, normalize, pairs)
    rows, level, terms = _checked(
        scores, levels, margins, where, weights, segments, pair_values, axis_name
    )
    factors = term_factors(term_weights, terms, rows.scores.dtype)
    sums = term_sums(rows, level, terms, options, axis_name, bank)
    total = jnp.zeros((), rows.scores.dtype)
    for term, factor in factors.items():
        total += factor * term_mean(rows, options, *sums[term])
    return total


def ladder_terms(
    scores: ArrayLike,
    levels: ArrayLike,
    margins: Mapping[Term, ArrayLike],
    *,
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
) -> Sums:
    """The numerator and denominator of each term of `ladder_loss`, for logs or sums.

    Arguments and errors are those of `ladder_loss`.

    Returns:
        (f[], f[]) by term: sums over all devices. The denominator is the sum of pair
        weights, or of the lower level's weights, or 1, as `normalize` says.

    >>> import jax.numpy as jnp
    >>> scores, levels = jnp.array([0.9, 0.7, 0.6]), jnp.array([1, 0, 0])
    >>> terms = ladder_terms(scores, levels, {(1, 0): 0.5})
    >>> print(*(f"{x:.2f}" for x in terms[1, 0]))  # 0.3^2 + 0.2^2, two pairs
    0.13 2.00
    """
    options = PairOptions(surrogate, gate, normalize, pairs)
    rows, level, terms = _checked(
        scores, levels, margins, where, weights, segments, pair_values, axis_name
    )
    sums = term_sums(rows, level, terms, options, axis_name, bank)
    unit = _denominator_unit(rows, options)
    return {
        term: (scaled(numerator, rows.pair_unit), scaled(denominator, unit))
        for term, (numerator, denominator) in sums.items()
    }


def term_sums(
    rows: PairRows,
    level: Array,
    terms: Mapping[Term, Array],
    options: PairOptions,
    axis_name: AxisName | None,
    bank: ConversionBank | None,
) -> Sums:
    """The numerator and denominator of each term, in the units of the rows' weights.

    Terms of one higher level share one pass over its pairs.
    """
    top = max(hi for hi, _ in terms)
    past, bank_poison = bank_positives(bank, rows)
    poison = rows.poison + bank_poison
    sums: Sums = {}
    for high in dict.fromkeys(hi for hi, _ in terms):
        lower = {lo: level == lo for hi, lo in terms if hi == high}
        margins = weights = jnp.zeros_like(rows.scores)
        for lo, mask in lower.items():
            margins = jnp.where(mask, terms[high, lo], margins)
            weights = jnp.where(mask, rows.weights, weights)
        positive_weights = jnp.where(level == high, rows.higher_weights, 0)
        costs, pair_weights = pair_row_sums(
            Positives(rows.scores, positive_weights, rows.segments),
            Others(rows.scores, weights, rows.segments, margins),
            options,
            axis_name,
            past if high == top else None,
        )
        divisors = pair_weights if options.normalize == "pairs" else weights
        for lo, mask in lower.items():
            bad_margin = jnp.where(jnp.isfinite(terms[high, lo]), 0, jnp.nan)
            sums[high, lo] = (
                poison + bad_margin + jnp.sum(jnp.where(mask, costs, 0)),
                jnp.sum(jnp.where(mask, divisors, 0)),
            )
    # Collectives are the first and the last step only (see `pair_row_sums`): between
    # differentiated sums they would multiply gradients by the number of devices.
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    if options.normalize == "none":
        sums = {
            term: (total, jnp.ones_like(total)) for term, (total, _) in sums.items()
        }
    return sums


def term_mean(
    rows: PairRows, options: PairOptions, numerator: Array, denominator: Array
) -> Array:
    """The mean of a term, in the unit of the surrogate."""
    unit = rows.pair_unit - _denominator_unit(rows, options)
    mean = weighted_mean(numerator, denominator)
    return mean if options.normalize == "pairs" else scaled(mean, unit)


def _denominator_unit(rows: PairRows, options: PairOptions) -> Array | int:
    units = {"pairs": rows.pair_unit, "negatives": rows.row_unit, "none": 0}
    return units[options.normalize]


def _checked(
    scores: ArrayLike,
    levels: ArrayLike,
    margins: Mapping[Term, ArrayLike],
    where: ArrayLike | None,
    weights: ArrayLike | None,
    segments: ArrayLike | None,
    pair_values: ArrayLike | None,
    axis_name: AxisName | None,
) -> tuple[PairRows, Array, dict[Term, Array]]:
    """The rows, their levels and the margin of each term."""
    s = float_rows("scores", scores)
    level = rows_like(s, "levels", levels, int)
    terms = term_margins(margins, s.dtype)
    top = max(hi for hi, _ in terms)
    check_values(
        "levels",
        levels,
        lambda level: (level >= 0) & (level <= top),
        f"0 to {top}",
        where,
        weights,
    )
    rows = pair_rows(
        s,
        where,
        weights,
        segments,
        pair_values,
        axis_name,
        higher=is_higher(level, terms),
        bad=(level < 0) | (level > top),
    )
    return rows, level, terms


def is_higher(level: Array, terms: Mapping[Term, object]) -> Array:
    """bool[B]: rows whose level is the higher one of a term."""
    return jnp.any(jnp.stack([level == hi for hi, _ in terms]), axis=0)


def term_margins(
    margins: Mapping[Term, ArrayLike], dtype: DTypeLike
) -> dict[Term, Array]:
    """Margins by term, checked; the set of terms is static."""
    if not isinstance(margins, Mapping):
        raise TypeError("margins: expected a mapping {(hi, lo): margin}")
    if not margins:
        raise ValueError("margins: there is no term")
    for hi, lo in margins:
        if not 0 <= lo < hi:
            raise ValueError(
                f"margins: term {(hi, lo)} is not a level over a lower one"
            )
    return _numbers("margins", margins, dtype)


def term_factors(
    weights: Mapping[Term, ArrayLike] | None,
    terms: Mapping[Term, object],
    dtype: DTypeLike,
) -> dict[Term, Array]:
    """The factor of each term, 1 by default."""
    weights = {} if weights is None else weights
    if not isinstance(weights, Mapping):
        raise TypeError("term_weights: expected a mapping {(hi, lo): weight}")
    if unknown := sorted(set(weights) - set(terms)):
        raise ValueError(f"term_weights: margins have no terms {unknown}")
    factors = {term: weights.get(term, 1) for term in terms}
    return _numbers("term_weights", factors, dtype)


def _numbers(
    name: str, values: Mapping[Term, ArrayLike], dtype: DTypeLike
) -> dict[Term, Array]:
    numbers = {term: jnp.asarray(value, dtype) for term, value in values.items()}
    for number in numbers.values():
        check_array(f"{name}: expected a number for each term", number, (), float)
    return numbers
