"""How many pairs a ladder loss has, and how many of them cost something."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.losses.bank import ConversionBank
from pwiser_jax.losses.pairs.options import (
    Gate,
    Surrogate,
    active_pairs,
    check_pair_options,
)
from pwiser_jax.losses.pairs.search import at, search
from pwiser_jax.losses.rows import AxisName, counted_rows, float_rows, rows_like
from pwiser_jax.losses.terms import Term, term_margins


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

    Arguments and the active pairs are those of `ladder_loss`: the difference is rounded
    as there. A row that counts counts once, whatever its weight. The rows of hi are
    sorted, and each row of lo finds its active ones by a binary search:
    O(B log B) time, O(B) memory.

    Returns:
        (pairs, active) by term, uint32[] each, over all devices: exact up to 2^32 - 1,
        which no batch of fewer than 131,072 rows exceeds.

    Raises:
        AssertionError, ValueError: as `ladder_loss`.

    >>> import jax.numpy as jnp
    >>> scores, levels = jnp.array([0.9, 0.7, 0.1]), jnp.array([1, 0, 0])
    >>> print(*ladder_pairs(scores, levels, {(1, 0): 0.5})[1, 0])
    2 1
    """
    check_pair_options(surrogate, gate, "pairs")
    s = jax.lax.stop_gradient(float_rows("scores", scores))
    level = rows_like(s, "levels", levels, int)
    margin, top = term_margins(margins, s.dtype)
    rows = counted_rows(s, where, None)
    counts = rows.weights != 0
    found: dict[Term, tuple[Array, Array]] = {}
    for high in dict.fromkeys(hi for hi, _ in margin):
        # Rows that are not of the level go behind all others.
        upper = jnp.where(counts & (level == high), rows.values, jnp.inf)
        if axis_name is not None:
            upper = jax.lax.all_gather(upper, axis_name, tiled=True)
        if bank is not None and high == top:
            past = jnp.where(bank.weights != 0, bank.scores.astype(s.dtype), jnp.inf)
            upper = jnp.concatenate([upper, past])
        ranked = jnp.sort(upper)
        count = jnp.sum(jnp.isfinite(ranked), dtype=jnp.int32)
        for low, m in ((lo, m) for (hi, lo), m in margin.items() if hi == high):
            active = _active(ranked, count, rows.values, m, surrogate, gate)
            member = counts & (level == low)
            each = jnp.stack([jnp.full_like(active, count), active])
            each = jnp.where(member[None, :], each, 0).astype(jnp.uint32)
            sums = jnp.sum(each, axis=1, dtype=jnp.uint32)
            if axis_name is not None:
                sums = jax.lax.psum(sums, axis_name)
            found[high, low] = sums[0], sums[1]
    return found


def _active(
    ranked: Array,
    count: Array,
    scores: Array,
    margin: Array,
    surrogate: Surrogate,
    gate: Gate,
) -> Array:
    """int32[B]: how many of the first `count` ranked scores each row is active with."""

    def is_active(i: Array) -> Array:
        return active_pairs(at(ranked, i) - scores, margin, surrogate, gate)

    # Zeros that vary over the devices that the rows vary over, as shard_map asks.
    start = (0 * scores).astype(jnp.int32)
    return search(is_active, start, count, len(ranked))
