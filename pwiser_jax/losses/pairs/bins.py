"""Sums by bin that lose nothing, however many rows fall into one bin."""

import jax.numpy as jnp
import numpy as np
from jax import Array


def binned_sums(values: Array, bins: Array, length: int) -> Array:
    """sums[b] = sum of values[j] over rows j with bins[j] = b: f[N] -> f[length].

    A float32 scatter adds one row after another: a million equal rows in one bin come
    out a percent off. Here each value is cut into integer limbs, relative to the
    largest value, so short that no sum of N of them overflows: integers add exactly,
    and in any order, so the result is the same on every run and device.

    The error of a sum is at most 2^-20 (of float64: 2^-49) of the largest value, plus a
    rounding. With a value that is not finite, all sums are NaN.
    """
    magnitude = max(1, (len(values) - 1).bit_length())
    bits = 31 - magnitude
    limbs = -(-(jnp.finfo(values.dtype).nmant - 3 + magnitude) // bits)
    largest = jnp.max(jnp.abs(values), initial=0)
    unit = jnp.frexp(largest)[1]  # |values| < 2^unit
    # By powers of 2 within the range of floats: 2^unit itself may be out of it.
    one = jnp.ones((), values.dtype)
    up, down = jnp.ldexp(one, unit // 2), jnp.ldexp(one, unit - unit // 2)
    fractions = values / up / down
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
    return total * up * down + 0 * largest
