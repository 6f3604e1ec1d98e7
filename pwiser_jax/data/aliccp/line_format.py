"""The form of lines of `field \\x02 id \\x03 value` triples, and what fields are known.

A line is C columns with a comma after each, the last of which is the number n of the
triples that follow, joined by `\\x01`.

    field   letters, digits and underscores
    id      1 to 10 digits, at most 2^31 - 1
    value   digits or digits.digits, then e5 or e-5 or nothing; at most float32's

Triples of fields that are not read are counted; only their names are parsed. `triples`
parses this format fast; `lines.find_bad` explains where a text violates it.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from pwiser_jax.data.raw.hashing import GOLDEN

PAD = 16
"""Line ends before and after a block, so that no line in it is the first or last."""

INT32_MAX = 2**31 - 1
FLOAT32_MAX = float(np.finfo(np.float32).max)
ID_DIGITS = 10
ID = re.compile(b"[0-9]{1,%d}" % ID_DIGITS)
NAME = re.compile(rb"[0-9A-Za-z_]+")
VALUE = re.compile(rb"[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?")
DIGITS = b"0123456789abcdef"


@dataclass(frozen=True)
class Column:
    """A column before the triples: a whole number, 0 or more.

    Args:
        name: for messages.
        base: base of the digits, up to 16.
        shortest: minimum number of digits.
        longest: maximum number of digits.
        expected: description of the format, for messages.
    """

    name: str
    base: int
    shortest: int
    longest: int
    expected: str

    @cached_property
    def form(self) -> re.Pattern[bytes]:
        few = b"{%d,%d}" % (self.shortest, self.longest)
        return re.compile(b"[" + DIGITS[: self.base] + b"]" + few)


class Names:
    """The known fields, 3 to 7 characters each: a hash table without collisions.

    A name's code is its characters and the mark after it as one number, the first one
    lowest; its slot is the highest byte of the first four times a factor.

    Args:
        known: names of the fields; a field's number is its index.
        wanted: names of the fields whose triples are read.

    Attributes:
        factor: uint64; of 32 bits for the first four characters as the higher half.
        codes: uint64[256], the code of the field in each slot.
        masks: uint64[256], the bits of its characters.
        lengths: uint8[256], the number of these characters, mark included.
        fields: uint8[256], its number, or UNWANTED.
    """

    UNWANTED = 255

    def __init__(self, known: Sequence[str], wanted: Collection[str]) -> None:
        texts = [name.encode() + b"\x02" for name in known]
        if not all(4 <= len(text) <= 8 for text in texts):
            raise ValueError(f"names of 3 to 7 characters are expected: {known}")
        heads = [int.from_bytes(text[:4], "little") << 32 for text in texts]
        for k in range(1, 100_000, 2):
            factor = int(GOLDEN) * k % 2**64
            slots = [head * factor % 2**64 >> 56 for head in heads]
            if len(set(slots)) == len(slots):
                break
        else:
            raise ValueError(f"names whose beginnings differ are expected: {known}")
        self.factor = np.uint64(factor)
        # No word is 1 under an empty mask: free slots never match.
        self.codes, self.masks = np.ones(256, np.uint64), np.zeros(256, np.uint64)
        self.codes[slots] = [int.from_bytes(text, "little") for text in texts]
        self.masks[slots] = [256 ** len(text) - 1 for text in texts]
        self.lengths = np.zeros(256, np.uint8)
        self.lengths[slots] = [len(text) for text in texts]
        self.fields = np.full(256, self.UNWANTED, np.uint8)
        for at, (slot, name) in enumerate(zip(slots, known, strict=True)):
            if name in wanted:
                self.fields[slot] = at
        self.wanted = frozenset(name.encode() for name in wanted)
