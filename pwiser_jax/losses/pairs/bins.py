"""Sums by bin that lose nothing, however many rows fall into one bin."""

import jax.numpy as jnp
from jax import Array


def binned_sums(values: Array, bins: Array, length: int) -> Array:
    """sums[b] = sum of values[j] over rows j with bins[j] = b: f[N, C] -> f[length, C].

    A float32 scatter adds one row after another: a million equal rows in one bin come
    out a percent off. Here each value is cut into integer limbs, relative to the
    column's largest value, so short that no sum of N of them overflows: integers add
    exactly, and in any order, so the result is the same on every run and device.

    The error of a sum is at most 2^-20 (float32) of the column's largest value, plus a
    rounding. A value that is not finite makes its column NaN.
    """
    rows = values.shape[0]
    bits = 30 - rows.bit_length()
    precise = jnp.finfo(values.dtype).nmant - 3 + rows.bit_length()
    limbs = -(-precise // bits)
    largest = jnp.max(jnp.abs(values), axis=0, initial=0, keepdims=True)
    exponent = jnp.frexp(largest)[1]
    rest = jnp.ldexp(values, -exponent)
    parts = []
    for _ in range(limbs):
        rest = rest * 2**bits
        part = jnp.round(rest)
        rest = rest - part
        parts.append(part.astype(jnp.int32))
    sums = jnp.zeros((length, *values.shape[1:], limbs), jnp.int32)
    sums = sums.at[bins].add(jnp.stack(parts, -1), mode="promise_in_bounds")
    total = jnp.zeros((), values.dtype)
    for limb in reversed(range(limbs)):
        total = (total + sums[..., limb].astype(values.dtype)) / 2**bits
    return jnp.ldexp(total, exponent) + 0 * largest
