"""Counts the pairs of a ladder loss, and its active pairs."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.losses.bank import ConversionBank
from pwiser_jax.losses.ladder import Term, term_margins
from pwiser_jax.losses.pairs import PairOptions
from pwiser_jax.losses.pairs.options import Gate, Surrogate, active_pairs
from pwiser_jax.losses.pairs.search import at, search
from pwiser_jax.losses.rows import AxisName, float_rows, masked_rows, rows_like


def ladder_pairs(
    scores: ArrayLike,
    levels: ArrayLike,
    margins: Mapping[Term, ArrayLike],
    *,
    surrogate: Surrogate = "squared_hinge",
    gate: Gate = "margin",
    where: ArrayLike | None = None,
    axis_name: AxisName | None = None,
    bank: ConversionBank | None = None,
) -> dict[Term, tuple[Array, Array]]:
    """The pairs of each term of `ladder_loss`, and the active ones among them.

        pairs  = |{(i, j): level_i = hi, level_j = lo}|
        active = |{(i, j) of these: s_i - s_j < m_hi,lo}|

    Arguments and the active pairs are those of `ladder_loss`, with the difference
    rounded as there; weights do not matter. The rows of hi are sorted, and a binary
    search counts the active ones of each row of lo: O(B log B) time, O(B) memory.

    Returns:
        (pairs, active) by term, f[] each, over all devices. They are counted in
        integers: exact below 2^24 (float64: 2^53), rounded to float precision above,
        for batches of up to 2^24 rows.

    Raises:
        AssertionError, ValueError: as `ladder_loss`.

    >>> import jax.numpy as jnp
    >>> scores, levels = jnp.array([0.9, 0.7, 0.1]), jnp.array([1, 0, 0])
    >>> print(*ladder_pairs(scores, levels, {(1, 0): 0.5})[1, 0])
    2.0 1.0
    """
    options = PairOptions(surrogate, gate)
    s = jax.lax.stop_gradient(float_rows("scores", scores))
    level = rows_like(s, "levels", levels, int)
    terms = term_margins(margins, s.dtype)
    top = max(hi for hi, _ in terms)
    rows = masked_rows(s, where, None)
    unmasked = rows.weights != 0
    result: dict[Term, tuple[Array, Array]] = {}
    for high in dict.fromkeys(hi for hi, _ in terms):
        # Rows of other levels are sorted last.
        upper = jnp.where(unmasked & (level == high), rows.values, jnp.inf)
        if axis_name is not None:
            upper = jax.lax.all_gather(upper, axis_name, tiled=True)
        if bank is not None and high == top:
            past = jnp.where(bank.weights != 0, bank.scores.astype(s.dtype), jnp.inf)
            upper = jnp.concatenate([upper, past])
        ranked = jnp.sort(upper)
        count = jnp.sum(jnp.isfinite(ranked), dtype=jnp.int32)
        for low, margin in ((lo, m) for (hi, lo), m in terms.items() if hi == high):
            active = _active(ranked, count, rows.values, margin, options)
            member = unmasked & (level == low)
            of_row = jnp.where(member, jnp.stack([0 * active + count, active]), 0)
            pairs, active_ones = _sums(of_row, s.dtype, axis_name)
            result[high, low] = pairs, active_ones
    return result


def _active(
    ranked: Array, count: Array, scores: Array, margin: Array, options: PairOptions
) -> Array:
    """int32[B]: how many of the first `count` ranked scores each row is active with."""

    def is_active(i: Array) -> Array:
        return active_pairs(at(ranked, i) - scores, margin, options)

    # Zeros that vary over the devices that the rows vary over, as shard_map requires.
    start = (0 * scores).astype(jnp.int32)
    return search(is_active, start, count, len(ranked))


def _sums(counts: Array, dtype: jnp.dtype, axis_name: AxisName | None) -> Array:
    """Sums of int32[K, B] over rows and devices: f[K].

    Counts are added in three limbs: 32 bits alone would wrap at 131,072 rows.
    """
    limbs = jnp.stack([counts & 0xFF, counts >> 8 & 0xFF, counts >> 16])
    sums = jnp.sum(limbs.astype(jnp.uint32), axis=2, dtype=jnp.uint32)
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    low, middle, high = sums.astype(dtype)
    return high * 2**16 + (middle * 2**8 + low)
