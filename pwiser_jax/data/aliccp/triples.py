"""Blocks of lines of triples (`line_format`) to arrays, by one compiled loop.

The loop reads the text once and releases the GIL, so threads parse in parallel. Names
and unwanted triples are compared eight bytes at a time, as 64-bit words (the first byte
lowest). A block with a bad line raises OddBlock; then `lines.find_bad` reads it line by
line to explain it.

Numba compiles at the first import and caches the machine code beside this file, or in
the user's cache folder.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from pwiser_jax.data.aliccp.line_format import (
    DIGITS,
    FLOAT32_MAX,
    ID_DIGITS,
    INT32_MAX,
    NAME,
    PAD,
    VALUE,
    Column,
    Names,
)
from pwiser_jax.data.raw.hashing import GOLDEN, mix

NEWLINE, COMMA, POINT, ITEM, ID, WEIGHT = b"\n,.\x01\x02\x03"
UNWANTED = Names.UNWANTED

DIGIT = np.full(256, 16, np.uint8)
DIGIT[np.frombuffer(DIGITS, np.uint8)] = np.arange(16)
IN_NAME = np.array([NAME.fullmatch(bytes([byte])) is not None for byte in range(256)])

ONES = np.uint64(0x0101010101010101)
TOPS = ONES << np.uint64(7)

EXACT = 15
"""A number of so many digits, and ten to this power, are exact in float64."""
POWERS = 10.0 ** np.arange(EXACT + 1)

NONE = np.uint64(2**64 - 1)
"""The key of no value: its id reads as MISSING, its weight as 0."""


class OddBlock(Exception):
    """A line of the block is malformed."""


@dataclass(frozen=True)
class Triples:
    """The L lines of a block and their T triples of wanted fields.

    Args:
        columns: uint64[C, L].
        line: int64[T], the line of a triple, ascending.
        field: uint8[T], its number among the known names.
        id: int32[T].
        weight: float32[T].
        unknown: number of triples of unknown fields.
        first_unknown: line and name of the first one.
    """

    columns: np.ndarray
    line: np.ndarray
    field: np.ndarray
    id: np.ndarray
    weight: np.ndarray
    unknown: int
    first_unknown: tuple[int, str] | None


@dataclass(frozen=True)
class Heaviest:
    """The values of largest weight of each field and line; ties by smaller id.

    Values are keys: the inverted bits of the weight above those of the id, so that
    smaller is heavier.

    Args:
        single: uint64[S, L], fields 0 .. S - 1; NONE if a line has no value.
        counts: int64[F, L], number of values kept of the other fields.
        lists: uint64[F, V], these values line by line in ascending order.
        content: uint64[L], equal for lines with the same triples in any order.
        repeated: number of values of fields 0 .. S - 1 after the first in a line.
    """

    single: np.ndarray
    counts: np.ndarray
    lists: np.ndarray
    content: np.ndarray
    repeated: int

    @staticmethod
    def values(keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int32 ids and float32 weights."""
        weights = (~(keys >> np.uint64(32))).astype(np.uint32).view(np.float32)
        return keys.astype(np.uint32).view(np.int32), weights


def compiled(signature: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compiles a function for these types, cached on disk where possible."""

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(signature, nogil=True, cache=True)(function)
        except (OSError, RuntimeError):  # no folder for the cache
            return njit(signature, nogil=True)(function)

    return compile_


def parse(text: np.ndarray, columns: Sequence[Column], names: Names) -> Triples:
    """The triples of a block of whole lines.

    Args:
        text: uint8[N]: PAD line ends, the lines, each with its line end, PAD line ends.
        columns: columns before the triples; the last is the number of triples.
        names: the known fields.

    Raises:
        OddBlock: a line is malformed.
    """
    lines, commas, items, bits = _sizes(text[PAD:-PAD])
    if bits > 127 or text[-PAD - 1] != NEWLINE or commas != lines * len(columns):
        raise OddBlock
    most = lines + items
    values = np.empty((len(columns), lines), np.uint64)
    line, field = np.empty(most, np.int64), np.empty(most, np.uint8)
    ids, weight = np.empty(most, np.int32), np.empty(most, np.float32)
    place = np.empty(most, np.int64)
    forms = np.array([[c.base, c.shortest, c.longest] for c in columns])
    words = np.ndarray(len(text) - 7, "<u8", buffer=text.data, strides=(1,))
    count, unknown, first_line, first_place = _read(
        *(text, words, forms, names.factor, names.codes, names.masks, names.lengths),
        *(names.fields, values, line, field, ids, weight, place),
    )
    if count < 0:
        raise OddBlock
    weight = weight[:count]
    for at in np.flatnonzero(np.isnan(weight)):
        weight[at] = _weight(text, place[at])
    first_name = None
    if unknown:
        name = NAME.match(text[first_place:].data)
        first_name = first_line, name[0].decode() if name else ""
    return Triples(
        values, line[:count], field[:count], ids[:count], weight, unknown, first_name
    )


def heaviest(triples: Triples, singles: int, lists: int, width: int) -> Heaviest:
    """Selects the values of fields that are kept.

    Args:
        triples: triples of fields 0 .. singles + lists - 1.
        singles: S, number of single-valued fields.
        lists: F, number of multi-valued fields after them.
        width: number of values kept of each multi-valued field.
    """
    lines = triples.columns.shape[1]
    single = np.full((singles, lines), NONE)
    counts = np.zeros((lists, lines), np.int64)
    keys = np.empty((lists, len(triples.line)), np.uint64)
    content = np.zeros(lines, np.uint64)
    repeated = _keep(
        *(triples.line, triples.field, triples.id, triples.weight.view(np.uint32)),
        *(width, single, counts, keys, content),
    )
    return Heaviest(single, counts, keys, content, repeated)


def _weight(text: np.ndarray, place: int) -> float:
    """Parses a value that the loop cannot round correctly; OddBlock if not a number."""
    end = place
    while text[end] not in (ITEM, NEWLINE):
        end += 1
    value = text[place:end].tobytes()
    if not VALUE.fullmatch(value) or float(value) > FLOAT32_MAX:
        raise OddBlock
    return float(value)


@compiled("UniTuple(int64, 4)(Array(uint8, 1, 'C', readonly=True))")
def _sizes(text: np.ndarray) -> tuple[np.integer, ...]:
    """The numbers of lines, commas and ITEM marks, and the bits of all bytes."""
    # Narrow integers: one instruction counts more of them.
    lines = commas = items = np.uint32(0)
    bits = np.uint8(0)
    for byte in text:
        lines = np.uint32(lines + np.uint32(byte == NEWLINE))
        commas = np.uint32(commas + np.uint32(byte == COMMA))
        items = np.uint32(items + np.uint32(byte == ITEM))
        bits = np.uint8(bits | byte)
    return lines, commas, items, bits


@njit
def _is(word: np.uint64, byte: int) -> np.uint64:
    """Sets the top bit of the first such byte, and none below; 0 without one."""
    same = word ^ ONES * np.uint64(byte)
    return (same - ONES) & ~same & TOPS


@njit
def _end(words: np.ndarray, at: np.int64) -> np.int64:
    """The index of the next ITEM or NEWLINE."""
    while True:
        marks = _is(words[at], ITEM) | _is(words[at], NEWLINE)
        if marks:
            below = (marks & (~marks + np.uint64(1))) - np.uint64(1)
            return at + np.int64(((below & ONES) * ONES) >> np.uint64(56)) - 1
        at += 8


@compiled(
    "UniTuple(int64, 4)(Array(uint8, 1, 'C', readonly=True), "
    "Array(uint64, 1, 'A', readonly=True, aligned=False), int64[:, ::1], uint64, "
    "uint64[::1], uint64[::1], uint8[::1], uint8[::1], uint64[:, ::1], int64[::1], "
    "uint8[::1], int32[::1], float32[::1], int64[::1])"
)
def _read(
    text: np.ndarray,
    words: np.ndarray,
    forms: np.ndarray,
    factor: np.uint64,
    codes: np.ndarray,
    masks: np.ndarray,
    lengths: np.ndarray,
    fields: np.ndarray,
    columns: np.ndarray,
    lines: np.ndarray,
    field: np.ndarray,
    ids: np.ndarray,
    weights: np.ndarray,
    places: np.ndarray,
) -> tuple[int, int, int, int]:
    """Fills the arrays after `fields`; weights that need Python are NaN.

    Returns:
        The number of wanted triples, -1 where a line has another form; the number of
        triples of unknown fields, and the line and place of the first.
    """
    odd = -1, 0, 0, 0
    count = unknown = first_line = first_place = 0
    line, at = 0, PAD
    while at < len(text) - PAD:
        for column in range(len(forms)):
            base, shortest, longest = forms[column]
            begin, value = at, np.uint64(0)
            while text[at] != COMMA:
                digit = DIGIT[text[at]]
                if digit >= base:
                    return odd
                value = value * np.uint64(base) + digit
                at += 1
            if not shortest <= at - begin <= longest:
                return odd
            columns[column, line] = value
            at += 1
        triples = 0
        more = text[at] != NEWLINE
        while more:
            triples += 1
            plain = False
            # The first four characters, the mark among them, tell known names apart.
            slot = (words[at] << np.uint64(32)) * factor >> np.uint64(56)
            known = words[at] & masks[slot] == codes[slot]
            if known:
                at += 4
            else:
                begin = at
                while IN_NAME[text[at]]:
                    at += 1
                if at == begin or text[at] != ID:
                    return odd
                if not unknown:
                    first_line, first_place = line, begin
                unknown += 1
            if known and fields[slot] != UNWANTED:
                at += lengths[slot] - 4
                begin, id_ = at, 0
                while DIGIT[text[at]] < 10:
                    id_ = id_ * 10 + DIGIT[text[at]]
                    at += 1
                if not 1 <= at - begin <= ID_DIGITS or id_ > INT32_MAX:
                    return odd
                if text[at] != WEIGHT:
                    return odd
                at += 1
                begin, digits, point = at, np.uint64(0), -1
                while DIGIT[text[at]] < 10 or (text[at] == POINT and point < 0):
                    if text[at] == POINT:
                        point = at
                    else:
                        digits = digits * np.uint64(10) + DIGIT[text[at]]
                    at += 1
                after = at - point - 1 if point >= 0 else 0
                plain = begin < at <= begin + EXACT and point != begin
                plain &= point < 0 or after > 0
                plain &= text[at] == ITEM or text[at] == NEWLINE
                lines[count], field[count], ids[count] = line, fields[slot], id_
                weights[count] = digits / POWERS[after] if plain else np.nan
                places[count] = begin
                count += 1
            if not plain:
                at = _end(words, at)
            more = text[at] == ITEM
            at += more
        if triples != columns[-1, line]:
            return odd
        at += 1
        line += 1
    return count, unknown, first_line, first_place


_mixed = njit(mix)


@compiled(
    "int64(int64[::1], uint8[::1], int32[::1], uint32[::1], int64, uint64[:, ::1], "
    "int64[:, ::1], uint64[:, ::1], uint64[::1])"
)
def _keep(
    lines: np.ndarray,
    fields: np.ndarray,
    ids: np.ndarray,
    weights: np.ndarray,
    width: int,
    single: np.ndarray,
    counts: np.ndarray,
    lists: np.ndarray,
    content: np.ndarray,
) -> int:
    """Fills the arrays after `width`; returns the number of repeated values."""
    repeated = 0
    stops = np.zeros(len(counts), np.int64)
    for at in range(len(lines)):
        line, field, id_ = lines[at], fields[at], np.uint64(ids[at])
        weight = np.uint64(weights[at])
        content[line] += _mixed((id_ << np.uint64(32) | weight) + field * GOLDEN)
        key = (weight ^ np.uint64(0xFFFFFFFF)) << np.uint64(32) | id_
        if field < len(single):
            repeated += single[field, line] != NONE
            single[field, line] = min(single[field, line], key)
            continue
        # Sorted by insertion into the line's own values, which are the last ones.
        field -= len(single)
        keys = lists[field]
        if counts[field, line] < width:
            counts[field, line] += 1
            stops[field] += 1
        elif key >= keys[stops[field] - 1]:
            continue
        to = stops[field] - 1
        while to > stops[field] - counts[field, line] and keys[to - 1] > key:
            keys[to] = keys[to - 1]
            to -= 1
        keys[to] = key
    return repeated
