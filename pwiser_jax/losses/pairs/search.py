"""Binary searches for many rows at once, and the packing that uses them."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

WORD = 32


def at(values: Array, i: Array) -> Array:
    """values[i], with i clipped to the valid range."""
    return values.at[i].get(mode="clip")


def search(
    holds: Callable[[Array], Array], start: Array, end: Array | int, size: int
) -> Array:
    """The largest n from start to end with holds(i) for all start <= i < n.

    `holds` changes from True to False at most once; it must accept any i below size.
    """
    top = 1 << max(0, size.bit_length() - 1)

    def step(k: Array, n: Array) -> Array:
        ahead = n + jax.lax.shift_right_logical(jnp.int32(top), jnp.int32(k))
        return jnp.where((ahead <= end) & holds(ahead - 1), ahead, n)

    def steps(n: Array, *, unroll: bool) -> Array:
        return jax.lax.fori_loop(0, size.bit_length(), step, n, unroll=unroll)

    # A GPU computes all steps in one kernel, where a loop launches three for each. On a
    # CPU the loop is faster, and compiles faster.
    loop, unrolled = (partial(steps, unroll=unroll) for unroll in (False, True))
    return jax.lax.platform_dependent(start, cuda=unrolled, rocm=unrolled, default=loop)


def first_rows(mask: Array, capacity: int) -> Array:
    """Indices of the first `capacity` True entries, ascending; the rest is len(mask).

    As `jnp.nonzero(mask, size=capacity, fill_value=len(mask))`, several times faster
    where few are True: its cumulative sum is over words of 32 rows, and a search gives
    each index its word, then its bit in the word.
    """
    size = len(mask)
    words = -(-size // WORD)
    bits = jnp.pad(mask, (0, words * WORD - size)).reshape(words, WORD)
    powers = (np.uint32(1) << np.arange(WORD, dtype=np.uint32))[None, :]
    packed = jnp.sum(jnp.where(bits, powers, 0), axis=1, dtype=jnp.uint32)
    counts = _ones(packed)
    ends = jnp.cumsum(counts)
    # Zeros computed from data vary over the same devices as the data, which shard_map
    # requires of a loop's start.
    rank = jnp.arange(capacity, dtype=jnp.int32) + 0 * jnp.sum(counts)
    word = search(lambda i: at(ends, i) <= rank, 0 * rank, words, words)
    left = rank - at(ends - counts, word)
    rest = at(packed, word)
    place = WORD * word
    for width in (16, 8, 4, 2, 1):
        low = _ones(rest & np.uint32((1 << width) - 1))
        above = left >= low
        left = jnp.where(above, left - low, left)
        rest = jnp.where(above, rest >> width, rest)
        place = jnp.where(above, place + width, place)
    return jnp.where(word < words, place, size)


def _ones(words: Array) -> Array:
    return jax.lax.population_count(words).astype(jnp.int32)
