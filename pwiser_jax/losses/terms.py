"""Which terms a ladder loss has, and the numbers of each."""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

Term = tuple[int, int]  # (higher level, lower level)


def term_margins(
    margins: Mapping[Term, ArrayLike] | ArrayLike, dtype: DTypeLike
) -> tuple[dict[Term, Array], int]:
    """Margins by term, and the highest level; which terms there are is static."""
    if isinstance(margins, Mapping):
        terms = dict(margins)
        top = max((hi for hi, _ in terms), default=0)
    else:
        try:
            matrix = np.asarray(margins, float)
        except jax.errors.TracerArrayConversionError:
            raise TypeError(
                "margins: a matrix must be concrete, since its NaNs say which terms "
                "there are; traced margins go into a mapping {(hi, lo): margin}"
            ) from None
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"margins: expected a square matrix, not {matrix.shape}")
        present = zip(*np.nonzero(~np.isnan(matrix)), strict=True)
        terms = {(int(hi), int(lo)): matrix[hi, lo] for hi, lo in present}
        top = matrix.shape[0] - 1
    if not terms:
        raise ValueError("margins: there is no term")
    for hi, lo in terms:
        if not 0 <= lo < hi:
            raise ValueError(f"margins: term {(hi, lo)} is not of a level over a lower")
    return _numbers("margins", terms, dtype), top


def term_factors(
    weights: Mapping[Term, ArrayLike] | ArrayLike | None,
    terms: Mapping[Term, object],
    dtype: DTypeLike,
) -> dict[Term, Array]:
    """The factor of each term, 1 where none is given."""
    if weights is None:
        weights = {}
    if not isinstance(weights, Mapping):
        matrix = jnp.asarray(weights, dtype)
        size = max(hi for hi, _ in terms) + 1
        square = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]
        if not square or matrix.shape[0] < size:
            raise ValueError(
                "term_weights: expected a square matrix with a row for each level up "
                f"to {size - 1}, not {matrix.shape}"
            )
        weights = {term: matrix[term] for term in terms}
    if unknown := sorted(set(weights) - set(terms)):
        raise ValueError(f"term_weights: margins have no terms {unknown}")
    factors = {term: weights.get(term, 1) for term in terms}
    return _numbers("term_weights", factors, dtype)


def check_levels(outside: Array, top: int) -> None:
    """Raises a ValueError if a row that counts is off the ladder, unless traced."""
    if not isinstance(outside, Tracer) and outside.any():
        row = int(jnp.argmax(outside))
        raise ValueError(f"levels: row {row} counts and is not in 0..{top}")


def _numbers(
    name: str, values: Mapping[Term, ArrayLike], dtype: DTypeLike
) -> dict[Term, Array]:
    numbers = {term: jnp.asarray(value, dtype) for term, value in values.items()}
    message = f"{name}: expected a number for each term"
    chex.assert_rank(list(numbers.values()), 0, custom_message=message)
    return numbers
