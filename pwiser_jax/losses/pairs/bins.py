"""Exact, order-independent sums by bin, and exact scaling by powers of two."""

import jax.numpy as jnp
import numpy as np
from jax import Array


def binned_sums(
    values: Array, bins: Array, length: int, *, by_bin: bool = False
) -> Array:
    """sums[b] = sum of values[j] over rows j with bins[j] = b: f[N] -> f[length].

    A float32 scatter adds one row after another: a million equal rows in one bin come
    out a percent off. Here each value is split into integer limbs, relative to the
    largest value, so short that no sum of N of them overflows. Integers add exactly in
    any order, so the result is the same on every run and device.

    The error of a sum is at most 2^-20 (of float64: 2^-49) of the largest value, plus a
    rounding. With `by_bin` it is relative to the largest value of the same bin: large
    values in one bin then do not affect the precision of other bins. With a value that
    is not finite, the sums (of that bin) are NaN.

    >>> print(binned_sums(jnp.array([0.5, 0.25, 2.0]), jnp.array([0, 0, 2]), 3))
    [0.75 0.   2.  ]
    """
    magnitude = max(1, (len(values) - 1).bit_length())
    bits = 31 - magnitude
    limbs = -(-(jnp.finfo(values.dtype).nmant - 3 + magnitude) // bits)
    if by_bin:
        largest = jnp.zeros(length, values.dtype).at[bins].max(jnp.abs(values))
        unit = jnp.frexp(largest)[1]
        fractions = scaled(values, -unit[bins])
    else:
        largest = jnp.max(jnp.abs(values), initial=0)
        unit = jnp.frexp(largest)[1]  # |values| < 2^unit
        fractions = scaled(values, -unit)
    total = jnp.zeros((), values.dtype)
    for limb in reversed(range(limbs)):  # from the smallest on
        finer = np.exp2(bits * (limb + 1)).astype(values.dtype)
        part = jnp.trunc(fractions * finer)
        if limb:
            # What this truncation holds beyond the coarser one: exact.
            part -= jnp.trunc(fractions * (finer / 2**bits)) * 2**bits
        sums = jnp.zeros(length, jnp.int32)
        sums = sums.at[bins].add(part.astype(jnp.int32), mode="promise_in_bounds")
        total += sums.astype(values.dtype) / finer
    return scaled(total, unit) + 0 * largest


def scaled(x: Array, exponent: Array | int) -> Array:
    """x * 2^exponent, exact; in two steps, since 2^exponent itself may overflow.

    >>> print(scaled(jnp.array(3.0), -1))
    1.5
    """
    if isinstance(exponent, int) and exponent == 0:
        return x
    one, half = jnp.ones((), x.dtype), exponent // 2
    return x * jnp.ldexp(one, half) * jnp.ldexp(one, exponent - half)
