"""Argument checks, row masks and weighted means that all losses share."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer
from jax.typing import ArrayLike, DTypeLike

from pwiser_jax.losses.pairs.bins import scaled

AxisName = str | tuple[str, ...]

KINDS = {float: jnp.floating, int: jnp.integer, bool: jnp.bool_}


class MaskedRows(NamedTuple):
    """The rows of a loss, safe to compute with.

    Attributes:
        values: f[B], 0 in masked rows and in rows with an invalid value.
        weights: f[B], 0 in masked rows; constants to differentiation.
        poison: f[]: 0, or NaN with a NaN gradient if a row that is not masked is
            invalid.
    """

    values: Array
    weights: Array
    poison: Array


class PairRows(NamedTuple):
    """The rows of a pair loss, safe to compute with.

    Weights are divided by powers of two, so that their products stay in the range of
    floats: those of a pair by 2^pair_unit. That changes no bit of a mean.

    Attributes:
        scores: f[B], 0 in masked rows and in rows with an invalid value.
        weights: f[B], 0 in masked rows: of the lower row of a pair.
        higher_weights: f[B]: of the higher row, its weight times its pair value.
        segments: int[B].
        poison: f[]: 0, or NaN with a NaN gradient if a row that is not masked is
            invalid.
        row_unit, pair_unit: int[], binary exponents; 0 where nothing is divided.
        has_pair_values: whether pair values are among the weights.
    """

    scores: Array
    weights: Array
    higher_weights: Array
    segments: Array | None
    poison: Array
    row_unit: Array | int
    pair_unit: Array | int
    has_pair_values: bool


def float_rows(name: str, values: ArrayLike) -> Array:
    """Checks f[B], and widens half precision: losses compute in at least float32."""
    array = jnp.asarray(values)
    check_array(f"{name}: expected one float a row", array, (None,), float)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def float_columns(
    name: str, values: ArrayLike, columns: str, count: int | None = None
) -> list[Array]:
    """Checks f[B, K], K = count or at least 2 `columns`, and returns its K columns."""
    array = jnp.asarray(values)
    size = max((2, *array.shape[1:])) if count is None else count
    check_array(f"{name}: expected {columns} a row", array, (None, size), float)
    return [float_rows(name, array[:, k]) for k in range(array.shape[1])]


def number(
    name: str, value: ArrayLike, dtype: DTypeLike, low: float, high: float = np.inf
) -> Array:
    """Checks that an option is one finite number from low to high.

    A concrete number that is not is a ValueError, a traced one becomes NaN. NaN stays
    NaN.
    """
    result = jnp.asarray(value, dtype)
    check_array(f"{name}: expected a number", result, (), float)
    outside = (result < low) | (result > high) | jnp.isinf(result)
    if isinstance(outside, Tracer):
        return jnp.where(outside, jnp.nan, result)
    if outside:
        limits = f"{low:g} to {high:g}" if np.isfinite(high) else f"{low:g} or more"
        raise ValueError(f"{name}: expected a number, {limits}, not {value}")
    return result


def rows_like(values: Array, name: str, array: ArrayLike, kind: type) -> Array:
    """Checks that an array has one entry of a kind (bool, int, float) a value."""
    result = jnp.asarray(array)
    message = f"{name}: expected one {kind.__name__} a row"
    check_array(message, result, values.shape, kind)
    if kind is int and isinstance(array, np.ndarray):
        _check_fits(name, array, result.dtype)
    return result


def label_rows(values: Array, name: str, labels: ArrayLike) -> Array:
    """Checks that there is a float, int or bool label for each value."""
    kinds = {"b": bool, "i": int, "u": int}
    kind = kinds.get(jnp.asarray(labels).dtype.kind, float)
    return rows_like(values, name, labels, kind)


def click_labels(
    values: Array,
    name: str,
    labels: ArrayLike,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    *,
    soft: bool = False,
) -> tuple[Array, Array]:
    """Labels 0 or 1, or soft ones in [0, 1], and the mask of those that are neither.

    Raises:
        ValueError: a concrete label of a row that is not masked is neither. NaN is
            left to the mask, as all traced labels are.
    """
    result = label_rows(values, name, labels)
    if result.dtype == bool:
        return result, jnp.zeros(result.shape, bool)
    expected = "a number from 0 to 1" if soft else "0 or 1"
    valid = (lambda y: (y >= 0) & (y <= 1)) if soft else (lambda y: (y == 0) | (y == 1))
    check_values(name, labels, lambda y: valid(y) | (y != y), expected, where, weights)
    return result, ~valid(result)


def check_values(
    name: str,
    values: ArrayLike,
    valid: Callable[[np.ndarray], np.ndarray],
    expected: str,
    where: ArrayLike | None = None,
    weights: ArrayLike | None = None,
) -> None:
    """Raises a ValueError for an invalid value in a row that is not masked.

    Nothing is checked where an array is traced: a compiled program cannot raise, and
    gives NaN instead.
    """
    unmasked = concrete_rows(values, where, weights)
    if unmasked is None:
        return
    array = np.asarray(values)
    invalid = unmasked & ~valid(array)
    if invalid.any():
        row = int(np.argmax(invalid))
        raise ValueError(f"{name}: expected {expected}, not {array[row]} (row {row})")


def concrete_rows(
    values: ArrayLike, where: ArrayLike | None = None, weights: ArrayLike | None = None
) -> np.ndarray | None:
    """bool[B], the rows that are not masked; None if an array's values are unknown."""
    for array in (values, where, weights):
        if isinstance(array, Tracer):
            return None
        if isinstance(array, Array) and not array.is_fully_addressable:
            return None
    rows = np.ones(np.shape(values), bool)
    for mask in (where, weights):
        # A mask of another shape is an error of its own.
        if mask is not None and np.shape(mask) == rows.shape:
            rows &= np.asarray(mask) != 0
    return rows


def row_weights(
    values: Array, where: ArrayLike | None, weights: ArrayLike | None
) -> Array:
    """f[B]: the rows' weights, 0 in masked rows; constants to differentiation."""
    if weights is None:
        result = jnp.ones_like(values)
    else:
        result = rows_like(values, "weights", weights, float)
        result = jax.lax.stop_gradient(result).astype(values.dtype)
        check_values("weights", weights, _not_negative, "0 or more", where)
    if where is None:
        return result
    return jnp.where(rows_like(values, "where", where, bool), result, 0)


def masked_rows(
    values: Array,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    bad: Array | bool = False,
) -> MaskedRows:
    """Separates masked from unmasked rows, and invalid from valid values.

    A row is masked where `where` is False or its weight is 0. A row that is not masked
    is invalid where its value is not finite, where its weight is negative or not
    finite, or where `bad` holds.
    """
    w = row_weights(values, where, weights)
    unmasked = w != 0
    values = jnp.where(unmasked, values, 0)
    bad = unmasked & (bad | ~jnp.isfinite(values) | ~jnp.isfinite(w) | (w < 0))
    return MaskedRows(
        values=jnp.where(bad, 0, values),
        weights=w,
        poison=jnp.sum(jnp.where(bad, jnp.nan, 0) * values),
    )


def pair_rows(
    scores: Array,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    segments: ArrayLike | None,
    pair_values: ArrayLike | None,
    axis_name: AxisName | None,
    *,
    higher: Array,
    bad: Array | bool = False,
) -> PairRows:
    """Checks and masks the rows of a pair loss.

    `higher` is the mask of rows that may be the higher one of a pair: the pair values
    of other rows are not read.
    """
    value = None
    if pair_values is not None:
        value = rows_like(scores, "pair_values", pair_values, float)
        value = jax.lax.stop_gradient(value).astype(scores.dtype)
        read = higher if where is None else higher & jnp.asarray(where)
        check_values("pair_values", value, _not_negative, "0 or more", read, weights)
        bad |= higher & ~(jnp.isfinite(value) & (value >= 0))
    rows = masked_rows(scores, where, weights, bad)
    w, row_unit = rows.weights, 0
    if weights is not None:
        w, row_unit = _in_unit(w, axis_name)
    higher_weights, pair_unit = w, 2 * row_unit
    if value is not None:
        mask = higher & (w != 0)
        value, unit = _in_unit(jnp.where(mask, value, 0), axis_name)
        higher_weights, pair_unit = w * value, pair_unit + unit
    group = None if segments is None else rows_like(scores, "segments", segments, int)
    return PairRows(
        scores=rows.values,
        weights=w,
        higher_weights=higher_weights,
        segments=group,
        poison=rows.poison,
        row_unit=row_unit,
        pair_unit=pair_unit,
        has_pair_values=value is not None,
    )


def weighted_mean(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator; 0 with gradient 0 if the denominator is 0."""
    return numerator / jnp.where(denominator == 0, 1, denominator)


def mean_over_rows(costs: Array, rows: MaskedRows, axis_name: AxisName | None) -> Array:
    """The weighted mean of the costs of all devices' rows that are not masked."""
    sums = jnp.sum(rows.weights * costs) + rows.poison, jnp.sum(rows.weights)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    return weighted_mean(*sums)


def _in_unit(weights: Array, axis_name: AxisName | None) -> tuple[Array, Array]:
    """weights / 2^unit, exact and below 1, and the unit, the same on every device."""
    largest = jnp.max(weights, initial=0)
    if axis_name is not None:
        largest = jax.lax.pmax(largest, axis_name)
    unit = jnp.frexp(largest)[1]
    return scaled(weights, -unit), unit


def check_array(
    message: str, array: Array, shape: tuple[int | None, ...], kind: type
) -> None:
    """Checks shape (None: any size) and type (bool, int or float).

    Raises:
        AssertionError: from chex, by which jax users know a wrong shape or type.
        ValueError: the same where `chex.disable_asserts()` has turned chex off.
    """
    chex.assert_shape(array, shape, custom_message=message)
    chex.assert_type(array, kind, custom_message=message)
    fits = array.ndim == len(shape) and all(
        size in (None, actual) for size, actual in zip(shape, array.shape, strict=True)
    )
    if not fits or not jnp.issubdtype(array.dtype, KINDS[kind]):
        raise ValueError(f"{message}, not {array.dtype}{list(array.shape)}")


def _check_fits(name: str, array: np.ndarray, dtype: np.dtype) -> None:
    """Without 64-bit types jax truncates wide integers, which would merge segments."""
    if not np.array_equal(array, array.astype(dtype)):
        raise ValueError(f"{name}: a number does not fit in {dtype}")


def _not_negative(values: np.ndarray) -> np.ndarray:
    """NaN passes: it gives NaN, traced or not."""
    return ~(values < 0)
