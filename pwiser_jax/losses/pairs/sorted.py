"""Hinge sums in O((N + P) log P) time and O(N + P) memory, exactly.

Sort the positives' scores t. A row of the others, with score s and margin m, is active
against a prefix of them, t_1 .. t_k: a binary search gives k. With V_k = sum_{i<=k} w_i
and the gaps g_k = t_k - t_(k-1) between neighbours,

    A_k = sum_{i<=k} w_i (t_k - t_i)   = A_(k-1) + V_(k-1) g_k
    Q_k = sum_{i<=k} w_i (t_k - t_i)^2 = Q_(k-1) + 2 g_k A_(k-1) + V_(k-1) g_k^2

and d = m - (t_k - s), the row's sum over its active pairs, of x_i = d + t_k - t_i, is

    hinge          A_k + V_k d
    squared hinge  Q_k + 2 d A_k + V_k d^2

Everything is a sum of terms of one sign, so nothing cancels; prefix sums of t and t^2
would lose all digits where margins are almost satisfied. The gradients of the positives
are the same recurrence from the other end, over the rows binned by k.

With segments the sort is by segment first, and prefixes start anew in each: all sums,
gaps and limbs are of one segment, so a large score costs other segments no digits.
"""

from functools import partial
from typing import NamedTuple, NoReturn

import jax
import jax.numpy as jnp
from jax import Array

from pwiser_jax.losses.pairs.bins import binned_sums
from pwiser_jax.losses.pairs.dense import Others, Positives
from pwiser_jax.losses.pairs.options import PairOptions, active_pairs, excess
from pwiser_jax.losses.pairs.search import at, search


def pair_row_sums(
    positives: Positives, others: Others, options: PairOptions
) -> tuple[Array, Array]:
    """The pair sums of each other row, for the hinges; see `pwiser_jax.losses.pairs`.

    Reverse mode only: forward mode is jax's TypeError for a custom_vjp, and second
    derivatives are a NotImplementedError.
    """
    if positives.scores.shape[0] == 0:
        nothing = jnp.zeros_like(others.scores)
        return nothing, nothing
    return _row_sums(positives, others, options)


class _Ranked(NamedTuple):
    """Positives in ascending order of (segment, score)."""

    place: Array  # int[P]: where each positive's score first appears in the order
    scores: Array  # f[P], ascending in a segment; masked rows last, infinite
    segments: Array | None  # int[P], ascending
    starts: Array | None  # bool[P]: the first of its segment
    gaps: Array  # f[P]: to the one before; 0 for the first of a segment
    weights: Array  # f[P]: of all equal scores at the first of them, 0 at the others


class _Residuals(NamedTuple):
    """Saved by the forward pass for the backward pass."""

    place: Array  # int[P]
    gaps: Array  # f[P]
    starts: Array | None  # bool[P]
    positive_weights: Array  # f[P]
    last: Array  # int[N]: k; 0 where no pair is active
    least: Array  # f[N]: d, the excess of the last active pair
    weights: Array  # f[N]
    slopes: Array  # f[N]: derivative of the row's sum by its score


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _row_sums(
    positives: Positives, others: Others, options: PairOptions
) -> tuple[Array, Array]:
    return _forward(positives, others, options)[0]


def _forward(
    positives: Positives, others: Others, options: PairOptions
) -> tuple[tuple[Array, Array], _Residuals]:
    ranked = _rank(positives)
    count = len(ranked.scores)
    assert others.margins is not None, "a hinge has a margin"
    margins = others.margins
    first, end = _range(ranked, others)

    def is_active(i: Array) -> Array:
        difference = at(ranked.scores, i) - others.scores
        return active_pairs(difference, margins, options)

    last = search(is_active, first, end, count)
    any_active = last > first
    last = jnp.where(any_active, last, 0)
    # One gather for all columns: rows (t_k, V_k, A_k, Q_k), zeros for k = 0.
    v = _prefix_sums(ranked.weights, ranked.starts)
    a_terms = _product(_before(v), ranked.gaps)
    a = _prefix_sums(a_terms, ranked.starts)
    columns = [ranked.scores, v, a]
    if options.surrogate == "squared_hinge":
        q_terms = _product(2 * _before(a) + a_terms, ranked.gaps)
        columns.append(_prefix_sums(q_terms, ranked.starts))
    table = jnp.pad(jnp.stack(columns, axis=1), ((1, 0), (0, 0)))
    t, v_k, a_k, *q_k = jnp.unstack(at(table, last), axis=1)
    d = jnp.where(any_active, excess(t, others.scores, margins), 0)
    linear = a_k + v_k * d
    if options.surrogate == "hinge":
        sums, slopes = linear, v_k
    else:
        sums, slopes = q_k[0] + 2 * d * a_k + v_k * jnp.square(d), 2 * linear
    w = others.weights
    # 0 times an overflow would be NaN.
    sums, slopes = (jnp.where(w == 0, 0, w * x) for x in (sums, slopes))
    pair_weights = w * jnp.where(end > first, at(jnp.pad(v, (1, 0)), end), 0)
    kept = _Residuals(
        place=ranked.place,
        gaps=ranked.gaps,
        starts=ranked.starts,
        positive_weights=positives.weights,
        last=last,
        least=d,
        weights=w,
        slopes=slopes,
    )
    return (sums, pair_weights), _once_differentiable(kept)


def _backward(
    options: PairOptions, kept: _Residuals, cotangents: tuple[Array, Array]
) -> tuple[Positives, Others]:
    factors = cotangents[0]
    by_row = factors * kept.slopes
    # Rows binned by their last active positive k, then summed from the end: positive i
    # has the rows of all k >= i, each with x = d + (t_k - t_i).
    weights = factors * kept.weights
    size = len(kept.place)

    def from_the_end(values: Array) -> Array:
        return _suffix_sums(values, kept.starts)

    def by_last(values: Array) -> Array:
        by_bin = kept.starts is not None
        return binned_sums(values, kept.last, size + 1, by_bin=by_bin)[1:]

    by_positive = n = from_the_end(by_last(weights))
    if options.surrogate == "squared_hinge":
        steps = _product(_after(n), _after(kept.gaps))
        by_positive = 2 * from_the_end(by_last(weights * kept.least) + steps)
    by_positive = -kept.positive_weights * at(by_positive, kept.place)
    # Weights and segments are constants.
    return (
        Positives(by_positive, jnp.zeros_like(kept.positive_weights), None),
        Others(by_row, jnp.zeros_like(kept.weights), None, by_row),
    )


def _rank(positives: Positives) -> _Ranked:
    unmasked = positives.weights != 0
    # Integers sort several times faster than floats on a CPU, and faster without a
    # payload: each positive's place comes from a search afterwards.
    keys = _ascending(jnp.where(unmasked, positives.scores, jnp.inf))
    size = len(keys)
    zero = jnp.zeros_like(keys)
    if positives.segments is None:
        ordered, segments, starts, first = jnp.sort(keys), None, None, zero
        smaller = lambda i: at(ordered, i) < keys  # noqa: E731
    else:
        rows = positives.segments
        segments, ordered = jax.lax.sort((rows, keys), num_keys=2, is_stable=False)
        starts = segments != _before(segments, segments[0] - 1)
        first = search(lambda i: at(segments, i) < rows, zero, size, size)
        smaller = lambda i: (at(segments, i) == rows) & (at(ordered, i) < keys)  # noqa: E731
    place = search(smaller, first, size, size)
    scores = _from_ascending(ordered, positives.scores.dtype)
    real = jnp.isfinite(scores) if starts is None else jnp.isfinite(scores) & ~starts
    gaps = jnp.where(real, scores - _before(scores, scores[0]), 0)
    by_bin = starts is not None
    weights = binned_sums(positives.weights, place, size, by_bin=by_bin)
    return _Ranked(place, scores, segments, starts, gaps, weights)


def _range(ranked: _Ranked, others: Others) -> tuple[Array, Array]:
    """The range of each row's positives: int[N], first and end (exclusive)."""
    size = len(ranked.scores)
    zero = (0 * others.scores).astype(jnp.int32)
    if ranked.segments is None or others.segments is None:
        return zero, zero + size
    segments, rows = ranked.segments, others.segments
    first = search(lambda i: at(segments, i) < rows, zero, size, size)
    return first, search(lambda i: at(segments, i) == rows, first, size, size)


def _ascending(x: Array) -> Array:
    """Integers in the order of floats."""
    bits = jax.lax.bitcast_convert_type(x, _integers(x.dtype))
    return _flipped(bits)


def _from_ascending(keys: Array, dtype: jnp.dtype) -> Array:
    return jax.lax.bitcast_convert_type(_flipped(keys), dtype)


def _flipped(bits: Array) -> Array:
    """Negative numbers with all bits but the sign flipped; an involution."""
    return jnp.where(bits < 0, bits ^ jnp.iinfo(bits.dtype).max, bits)


def _integers(dtype: jnp.dtype) -> jnp.dtype:
    return jnp.dtype(jnp.int64 if dtype.itemsize == 8 else jnp.int32)


def _before(x: Array, first: Array | int = 0) -> Array:
    """The entry before each; `first` before the first."""
    return jnp.concatenate([jnp.full_like(x[:1], first), x[:-1]])


def _after(x: Array) -> Array:
    """The entry after each; 0 after the last."""
    return jnp.concatenate([x[1:], jnp.zeros_like(x[:1])])


def _product(x: Array, gaps: Array) -> Array:
    """x times gaps; 0 where x is 0, even if the gap is infinite."""
    return jnp.where(x == 0, 0, x * gaps)


def _prefix_sums(x: Array, starts: Array | None) -> Array:
    """Cumulative sums that restart at each start."""
    if starts is None:
        return jnp.cumsum(x)

    def join(a: tuple[Array, Array], b: tuple[Array, Array]) -> tuple[Array, Array]:
        return a[0] | b[0], jnp.where(b[0], b[1], a[1] + b[1])

    return jax.lax.associative_scan(join, (starts, x))[1]


def _suffix_sums(x: Array, starts: Array | None) -> Array:
    """Cumulative sums from the end that restart before each start."""
    if starts is None:
        return jax.lax.cumsum(x, reverse=True)
    ends = jnp.concatenate([starts[1:], jnp.ones_like(starts[:1])])
    return _prefix_sums(x[::-1], ends[::-1])[::-1]


@jax.custom_jvp
def _once_differentiable(kept: _Residuals) -> _Residuals:
    """The identity; its derivative raises."""
    return kept


@_once_differentiable.defjvp
def _refuse(primals: tuple[_Residuals], tangents: tuple[_Residuals]) -> NoReturn:
    raise NotImplementedError(
        "pairs: 'sorted' has no second derivatives; choose 'broadcast' or 'blocked'"
    )


_row_sums.defvjp(_forward, _backward)
