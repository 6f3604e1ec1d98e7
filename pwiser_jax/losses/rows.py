"""Which rows count, and what a bad value in one of them does: shared by every loss."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.typing import ArrayLike, DTypeLike

AxisName = str | tuple[str, ...]


class CountedRows(NamedTuple):
    """Values that are safe to compute with, and what they hide.

    Attributes:
        values: f[B], 0 in rows that do not count and in rows with a bad value.
        weights: f[B], 0 in rows that do not count; constants to differentiation.
        poison: f[]: 0, or NaN with a NaN gradient where a row that counts is bad.
    """

    values: Array
    weights: Array
    poison: Array


def float_rows(name: str, values: ArrayLike) -> Array:
    """Checks f[B], and widens half precision: losses compute in at least float32."""
    array = jnp.asarray(values)
    message = f"{name}: expected one floating point number a row"
    chex.assert_rank(array, 1, custom_message=message)
    chex.assert_type(array, float, custom_message=message)
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def float_columns(
    name: str, values: ArrayLike, columns: str, count: int | None = None
) -> list[Array]:
    """Checks f[B, K], K = count or at least 2 `columns`, and gives its K columns."""
    array = jnp.asarray(values)
    message = f"{name}: expected {columns} a row"
    chex.assert_shape(array, (None, count), custom_message=message)
    chex.assert_axis_dimension_gteq(array, 1, 2, custom_message=message)
    return [float_rows(name, array[:, k]) for k in range(array.shape[1])]


def number(name: str, value: ArrayLike, dtype: DTypeLike) -> Array:
    """Checks that an option, which may be traced, is one number."""
    result = jnp.asarray(value, dtype)
    chex.assert_rank(result, 0, custom_message=f"{name}: expected a number")
    return result


def rows_like(values: Array, name: str, array: ArrayLike, kind: type) -> Array:
    """Checks that an array has one entry of a kind (bool, int, float) a value."""
    result = jnp.asarray(array)
    message = f"{name}: expected one {kind.__name__} a row"
    chex.assert_shape(result, values.shape, custom_message=message)
    chex.assert_type(result, kind, custom_message=message)
    if kind is int and isinstance(array, np.ndarray):
        _check_fits(name, array, result.dtype)
    return result


def _check_fits(name: str, array: np.ndarray, dtype: np.dtype) -> None:
    """Without 64-bit types jax cuts wide integers short, which would merge segments."""
    if not np.array_equal(array, array.astype(dtype)):
        raise ValueError(f"{name}: a number does not fit in {dtype}")


def label_rows(values: Array, name: str, labels: ArrayLike) -> Array:
    """Checks that there is a float, int or bool label for each value."""
    kinds = {"b": bool, "i": int, "u": int}
    kind = kinds.get(jnp.asarray(labels).dtype.kind, float)
    return rows_like(values, name, labels, kind)


def counted_rows(
    values: Array,
    where: ArrayLike | None,
    weights: ArrayLike | None,
    bad: Array | bool = False,
) -> CountedRows:
    """Separates rows that count from those that do not, and bad ones from good.

    A row counts where `where` holds and its weight is not 0. One that counts is bad
    where its value or its weight is not finite, or where `bad` says so.
    """
    if weights is None:
        row_weights = jnp.ones_like(values)
    else:
        row_weights = rows_like(values, "weights", weights, float)
        row_weights = jax.lax.stop_gradient(row_weights).astype(values.dtype)
    if where is not None:
        mask = rows_like(values, "where", where, bool)
        row_weights = jnp.where(mask, row_weights, 0)
    counts = row_weights != 0
    counted = jnp.where(counts, values, 0)
    bad = counts & (bad | ~jnp.isfinite(counted) | ~jnp.isfinite(row_weights))
    return CountedRows(
        values=jnp.where(bad, 0, counted),
        weights=row_weights,
        poison=jnp.sum(jnp.where(bad, jnp.nan, 0) * counted),
    )


def weighted_mean(numerator: Array, denominator: Array) -> Array:
    """numerator / denominator; 0 with gradient 0 where there is nothing to average."""
    return numerator / jnp.where(denominator == 0, 1, denominator)


def mean_over_rows(
    costs: Array, rows: CountedRows, axis_name: AxisName | None
) -> Array:
    """The weighted mean of the costs of all devices' rows that count."""
    sums = jnp.sum(rows.weights * costs) + rows.poison, jnp.sum(rows.weights)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    return weighted_mean(*sums)
