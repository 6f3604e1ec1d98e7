"""Lines of `field \\x02 id \\x03 value` triples, parsed a block of bytes at a time.

A line is C columns with a comma after each, the last of which is the number n of the
triples that follow, joined by `\\x01`. A block of whole lines is parsed by array
operations alone: the separators are found, the bytes beside them are loaded as 64-bit
words, and each word becomes a number by three multiplications ("SIMD within a
register": bytes are characters, the first one lowest). The arrays are right, or the
block is odd; then `lines.find_bad` reads it line by line to say what is wrong.

    field   letters, digits and underscores
    id      1 to 10 digits, at most 2^31 - 1
    value   digits or digits.digits, then e5 or e-5 or nothing; at most float32's

Triples of fields that are not wanted are counted and not looked at beyond the name.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np

from pwiser_jax.data.hashing import GOLDEN, mix

PAD = 16
"""Line ends before and after a block, so that words at its edges can be loaded."""

INT32_MAX = 2**31 - 1
FLOAT32_MAX = float(np.finfo(np.float32).max)
ID_DIGITS = 10
NAME = re.compile(rb"[0-9A-Za-z_]+")
NAME_AND_MARK = re.compile(NAME.pattern + b"\x02")
VALUE = re.compile(rb"[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?")

NEWLINE, COMMA, ITEM, ID, WEIGHT = b"\n,\x01\x02\x03"
U = np.uint64
ONES = U(0x0101010101010101)
TOPS = ONES << U(7)
ZEROS = ONES * U(ord("0"))
OVER_NINE = ONES * U(0x80 - 10)
HEX = np.full(256, 16, np.uint8)
HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16)
POWERS = U(10) ** np.arange(9, dtype=U)


class OddBlock(Exception):
    """Some line of the block is not as it should be."""


@dataclass(frozen=True)
class Triples:
    """The L lines of a block and their T triples of wanted fields.

    Args:
        words: the text.
        columns: int64[L, C + 1], the place of each column in the text, and of the
            triples: column c is text[columns[c] : columns[c + 1] - 1].
        counts: int64[L], triples of a line, wanted or not.
        line: int64[T], the line of a triple.
        field: uint8[T], its number among the known names.
        id: int64[T].
        weight: float32[T].
        unknown: int64[], places of triples whose field is not known.
    """

    words: "Words"
    columns: np.ndarray
    counts: np.ndarray
    line: np.ndarray
    field: np.ndarray
    id: np.ndarray
    weight: np.ndarray
    unknown: np.ndarray

    def content(self) -> np.ndarray:
        """uint64[L], equal for lines with the same wanted triples in any order."""
        bits = self.weight.view(np.uint32).astype(U)
        key = mix((self.id.astype(U) << U(32) | bits) + self.field * GOLDEN)
        total = np.zeros(len(key) + 1, U)
        np.cumsum(key, out=total[1:])
        stops = np.searchsorted(self.line, np.arange(len(self.counts)), side="right")
        return np.diff(total[stops], prepend=U(0))

    def first_unknown(self) -> tuple[int, str] | None:
        """Line and name of the first field that is not known."""
        if not len(self.unknown):
            return None
        place = int(self.unknown[0])
        line = int(np.searchsorted(self.columns[:, -1], place, side="right")) - 1
        name, _, _ = self.words.text[place : place + 100].tobytes().partition(b"\x02")
        return line, name.decode()


class Names:
    """The known fields, 3 to 7 characters each: a hash table without collisions.

    Args:
        known: their names; a field's number is its place here.
        wanted: those whose triples are read.
    """

    BITS = 8

    def __init__(self, known: Sequence[str], wanted: Collection[str]) -> None:
        texts = [name.encode() + b"\x02" for name in known]
        if not all(4 <= len(text) <= 8 for text in texts):
            raise ValueError(f"names of 3 to 7 characters are expected: {known}")
        codes = np.array([int.from_bytes(text, "little") for text in texts], U)
        tries = mix(np.arange(1, 100_000, dtype=U)) | U(1)
        self._factor = next(
            factor
            for factor in tries
            if len(set(self._slots(codes, factor))) == len(codes)
        )
        slots = self._slots(codes, self._factor)
        size = 1 << self.BITS
        # No word equals 1 where no byte of it is looked at: free slots never match.
        self._codes, self._masks = np.ones(size, U), np.zeros(size, U)
        self._codes[slots] = codes
        self._masks[slots] = [(1 << 8 * len(text)) - 1 for text in texts]
        self.number, self.wanted_slot = np.zeros(size, np.uint8), np.zeros(size, bool)
        self.number[slots] = np.arange(len(known))
        self.wanted_slot[slots] = [name in wanted for name in known]
        self.lengths = np.array([len(name) for name in known])
        self.wanted = frozenset(name.encode() for name in wanted)

    def _slots(self, words: np.ndarray, factor: np.uint64) -> np.ndarray:
        """The first four characters decide."""
        return ((words & U(0xFFFFFFFF)) * factor >> U(64 - self.BITS)).astype(np.intp)

    def find(self, words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """intp[N], the slot of the field that each word may begin with; bool[N], if."""
        slots = self._slots(words, self._factor)
        return slots, words & self._masks[slots] == self._codes[slots]


def parse(text: np.ndarray, columns: int, names: Names) -> Triples:
    """The triples of a block of whole lines.

    Args:
        text: uint8[N]: PAD line ends, the lines, each with its line end, PAD line ends.
        columns: C, columns before the triples; the last one is their number.
        names: the known fields.

    Raises:
        OddBlock: a line has another form.
    """
    whole = len(text) // 8 * 8
    high = np.bitwise_or.reduce(text[:whole].view(U)) & TOPS
    check(high == 0 and not np.any(text[whole:] > 127))
    check(text[-PAD - 1] == NEWLINE)
    ends, commas = _few(_marks(text, NEWLINE)), _few(_marks(text, COMMA))
    check(len(commas) == len(ends) * columns)
    begins = np.concatenate([[PAD], ends[:-1] + 1])
    starts = np.column_stack([begins, commas.reshape(-1, columns) + 1])
    features = starts[:, -1]
    check((starts[:, 1] > begins) & (features <= ends))

    # A triple begins after an ITEM, or after the last comma if the line goes on.
    filled = features < ends
    marks = _marks(text, ITEM)
    marks[features[filled] - 1] = True
    begin = np.flatnonzero(marks) + 1
    last = np.searchsorted(begin, ends, side="right")
    counts = np.diff(last, prepend=0)
    check((counts > 0) == filled)
    check(begin[(last - counts)[filled]] == features[filled])

    def end(at: np.ndarray, line: np.ndarray) -> np.ndarray:
        """Where triples of these lines end: before the next one, or with the line."""
        after = begin[np.minimum(at + 1, len(begin) - 1)] - 1
        return np.where(at + 1 == last[line], ends[line], after)

    words = Words(text)
    heads = words.after(begin)
    slots, known = names.find(heads)
    unknown = np.flatnonzero(~known)
    line = np.searchsorted(last, unknown, side="right")
    _check_names(words, heads[unknown], begin[unknown], end(unknown, line))
    wanted = names.wanted_slot[slots]
    if len(unknown):
        wanted &= known
    wanted = np.flatnonzero(wanted)
    field = names.number[slots[wanted]]
    until = np.searchsorted(wanted, last)
    line = np.repeat(np.arange(len(counts)), np.diff(until, prepend=0))
    id_begin = begin[wanted] + names.lengths[field] + 1
    ids, length = words.ids(id_begin)
    return Triples(
        words=words,
        columns=starts,
        counts=counts,
        line=line,
        field=field,
        id=ids,
        weight=words.weights(id_begin + length + 1, end(wanted, line)),
        unknown=begin[unknown],
    )


def check(good: np.ndarray | bool | np.bool) -> None:
    """Raises OddBlock unless all is good."""
    if not np.all(good):
        raise OddBlock


def _check_names(
    words: "Words", heads: np.ndarray, begin: np.ndarray, stop: np.ndarray
) -> None:
    """Unknown names must be names; few of them differ, if they are short."""
    mark, place = _first(heads, ID)
    short = (heads & ((mark << U(1)) - U(1)))[place < 8]
    texts = [word.to_bytes(8, "little") for word in set(short.tolist())]
    texts += [
        words.text[begin[at] : stop[at]].tobytes() for at in np.flatnonzero(place == 8)
    ]
    check(all(NAME_AND_MARK.match(text) for text in texts))
    check(begin + place < stop)


def _marks(text: np.ndarray, mark: int) -> np.ndarray:
    """bool[N]: where the lines of a padded text have the mark."""
    marks = text == mark
    marks[:PAD] = marks[-PAD:] = False
    return marks


def _few(marks: np.ndarray) -> np.ndarray:
    """`np.flatnonzero` of marks that are few: eight places at a time."""
    whole = len(marks) // 8 * 8  # the rest is padding
    at = np.flatnonzero(marks[:whole].view(U) != 0)
    inside = np.flatnonzero(marks[:whole].reshape(-1, 8)[at])
    return at[inside >> 3] * 8 + (inside & 7)


class Words:
    """The text as the 8 bytes at each place, the first byte lowest."""

    def __init__(self, text: np.ndarray) -> None:
        self.text = text
        self._words = np.ndarray(len(text) - 7, "<u8", buffer=text.data, strides=(1,))

    def after(self, begin: np.ndarray) -> np.ndarray:
        """uint64[N]: the 8 bytes from `begin` on."""
        return self._words[begin]

    def ids(self, begin: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """int64[N] from the digits before a WEIGHT mark, and how many these are."""
        word = self.after(begin)
        _, length = _first(word, WEIGHT)
        check(length >= 1)
        value, bad = _spelled(word, length)
        check(bad == 0)
        long = np.flatnonzero(length == 8)
        if len(long):
            word = self.after(begin[long] + 8)
            _, rest = _first(word, WEIGHT)
            check(rest <= ID_DIGITS - 8)
            low, bad = _spelled(word, rest)
            check(bad == 0)
            value[long] = value[long] * POWERS[rest] + low
            length[long] += rest
            check(value <= INT32_MAX)
        return value.view(np.int64), length

    def digits(self, begin: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """uint64[N] from the text between, 1 to 16 digits."""
        length = stop - begin
        check((length >= 1) & (length <= 16))
        value, bad = _spelled(self.after(begin), np.minimum(length, 8))
        check(bad == 0)
        long = np.flatnonzero(length > 8)
        if len(long):
            rest = length[long] - 8
            low, bad = _spelled(self.after(begin[long] + 8), rest)
            check(bad == 0)
            value[long] = value[long] * POWERS[rest] + low
        return value

    def hexadecimal(self, begin: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """uint64[N] from the text between, 16 digits in lower case."""
        check(stop - begin == 16)
        values = HEX[self.text[begin[:, None] + np.arange(16)]]
        check(values < 16)
        pairs = values[:, ::2] << 4 | values[:, 1::2]
        return pairs.view(">u8")[:, 0].astype(U)

    def binary(self, begin: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """int8[N] from the text between, 0 or 1."""
        check(stop - begin == 1)
        values = self.text[begin] - np.uint8(ord("0"))
        check(values <= 1)
        return values.view(np.int8)

    def weights(self, begin: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """float32[N] from the text between."""
        length = stop - begin
        check(length >= 1)
        short = np.minimum(length, 8)
        word = self.after(begin)
        mark, place = _first(word, ord("."))
        pointed = place < short
        # What is after the point moves one character down, onto it.
        below = mark - U(1) >> U(7)
        joined = word & below | (word >> U(8)) & ~below
        digits = np.where(pointed, joined, word)
        value, bad = _spelled(digits, short - pointed)
        after = np.where(pointed, short - place - 1, 0)
        found = (value / POWERS[after]).astype(np.float32)
        odd = (bad != 0) | (length > 8) | (place == 0) | (pointed & (after == 0))
        for at in np.flatnonzero(odd):
            found[at] = _weight(self.text[begin[at] : stop[at]].tobytes())
        return found


def _first(words: np.ndarray, byte: int) -> tuple[np.ndarray, np.ndarray]:
    """The first such byte of each word: its top bit, 0 without one; its place, or 8."""
    same = words ^ ONES * U(byte)
    # The lowest bit that is set is right; higher ones need not be.
    zero = (same - ONES) & ~same & TOPS
    mark = zero & (U(0) - zero)
    return mark, np.bitwise_count(mark - U(1)).astype(np.int64) >> 3


def _spelled(words: np.ndarray, length: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """uint64[N] from the first 0 to 8 bytes; not 0 where they are no digits."""
    empty = length == 0
    word = (words ^ ZEROS) << (64 - 8 * length + 8 * empty).astype(U)
    word = np.where(empty, U(0), word)
    bad = (word + OVER_NINE | word) & TOPS
    word = (word * U(10) + (word >> U(8))) & U(0x00FF00FF00FF00FF)
    word = (word * U(100) + (word >> U(16))) & U(0x0000FFFF0000FFFF)
    word = (word * U(10_000) + (word >> U(32))) & U(0xFFFFFFFF)
    return word, bad


def _weight(text: bytes) -> float:
    check(VALUE.fullmatch(text) is not None)
    value = float(text)
    check(value <= FLOAT32_MAX)
    return value
