"""The raw files of Ali-CCP as blocks of arrays: common features and skeleton rows.

A block is parsed on its own, so blocks are parsed by several threads; nothing here
knows of vocabularies or splits.
"""

import re
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from pwiser_jax.data.archives import Source
from pwiser_jax.data.hashing import GOLDEN, mix
from pwiser_jax.data.id_tables import MISSING
from pwiser_jax.data.lines import (
    Column,
    blocks,
    find_bad,
    in_order,
    keep_freed_memory,
    with_unix_ends,
)
from pwiser_jax.data.ragged import Ragged
from pwiser_jax.data.triples import Names, OddBlock, Triples, check, parse
from pwiser_jax.errors import UserError

USER_SINGLE = ("101", "121", "122", "124", "125", "126", "127", "128", "129")
USER_LISTS = ("109_14", "110_14", "127_14", "150_14")
ITEM_SINGLE: tuple[str, ...] = (
    "205",
    "206",
    "207",
    "216",
    "508",
    "509",
    "702",
    "853",
    "301",
)
ITEM_LISTS = ("210",)
WEIGHTED = ("508", "509", "702", "853")
"""Single-valued fields whose value is a number: ln(1 + count), and a fraction."""

INDEX = Column(
    "common_feature_index",
    re.compile(rb"[0-9a-f]{16}"),
    "16 hexadecimal digits in lower case",
)
NUMBER = Column("feature_num", re.compile(rb"[0-9]{1,16}"), "a whole number")
LABEL = re.compile(rb"[01]")
COMMON_COLUMNS = (INDEX, NUMBER)
SKELETON_COLUMNS = (
    Column("sample_id", re.compile(rb"[0-9]{1,16}"), "a whole number"),
    Column("click", LABEL, "0 or 1"),
    Column("conversion", LABEL, "0 or 1"),
    INDEX,
    NUMBER,
)


@dataclass(frozen=True)
class Features:
    """The features of L lines.

    Args:
        single: int32[S, L] raw ids of the single-valued fields, MISSING without one.
        weight: float32[S, L], 0 without one.
        lists: multi-valued field -> its heaviest values.
        content: uint64[L], equal for lines with the same features in any order.
        repeated: single-valued fields that had a further value in their line.
        unknown: triples of fields that are not known.
    """

    single: np.ndarray
    weight: np.ndarray
    lists: dict[str, Ragged]
    content: np.ndarray
    repeated: int
    unknown: int

    def __len__(self) -> int:
        return len(self.content)


@dataclass(frozen=True)
class CommonLines:
    """Lines of a common_features file.

    Args:
        index: uint64[L], the common feature index.
        features: of each line.
    """

    index: np.ndarray
    features: Features

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class SkeletonRows:
    """Lines of a sample_skeleton file.

    Args:
        index: uint64[L], the common feature index.
        click: int8[L].
        conversion: int8[L].
        features: of each row's own.
        content: uint64[L], equal for rows that differ in their sample id alone.
    """

    index: np.ndarray
    click: np.ndarray
    conversion: np.ndarray
    features: Features
    content: np.ndarray

    def __len__(self) -> int:
        return len(self.index)


class _Sized(Protocol):
    def __len__(self) -> int: ...


Block = TypeVar("Block", bound=_Sized)


class RawReader:
    """Reads the raw files, by threads of a pool.

    Args:
        pool: whose threads parse.
        with_lists: read the multi-valued fields too.
        width: values of a multi-valued field that are kept, the heaviest ones.
        strict: refuse fields that are not known.
    """

    def __init__(
        self, pool: Executor, *, with_lists: bool, width: int, strict: bool
    ) -> None:
        keep_freed_memory()
        self._pool, self.width, self._strict = pool, width, strict
        self.user_lists = USER_LISTS if with_lists else ()
        self.item_lists = ITEM_LISTS if with_lists else ()
        self._user = Names((*USER_SINGLE, *USER_LISTS), USER_SINGLE + self.user_lists)
        self._item = Names((*ITEM_SINGLE, *ITEM_LISTS), ITEM_SINGLE + self.item_lists)

    def common(self, source: Source) -> Iterator[tuple[int, CommonLines]]:
        """Blocks of a common_features file, each with its first line, from 1."""
        return self._read(source, self._common, COMMON_COLUMNS, self._user)

    def skeleton(self, source: Source) -> Iterator[tuple[int, SkeletonRows]]:
        """Blocks of a sample_skeleton file, each with its first line, from 1."""
        return self._read(source, self._skeleton, SKELETON_COLUMNS, self._item)

    def _read(
        self,
        source: Source,
        read: Callable[[Triples], Block],
        columns: tuple[Column, ...],
        names: Names,
    ) -> Iterator[tuple[int, Block]]:
        line = 1
        work = partial(_parsed, read=read, columns=columns, names=names)
        for found in in_order(self._pool, work, blocks(source)):
            if isinstance(found, _Bad):
                at, reason = find_bad(found.text, columns, names) or (0, "unreadable")
                raise UserError(f"{source}, line {line + at}: {reason}")
            block, unknown = found
            if self._strict and unknown:
                at, name = unknown
                raise UserError(
                    f"{source}, line {line + at}: field {name!r} is not known; leave "
                    "--strict out to ignore such fields"
                )
            yield line, block
            line += len(block)

    def _common(self, triples: Triples) -> CommonLines:
        words, columns = triples.words, triples.columns
        index = words.hexadecimal(columns[:, 0], columns[:, 1] - 1)
        check(words.digits(columns[:, 1], columns[:, 2] - 1) == triples.counts)
        features = _features(triples, len(USER_SINGLE), self.user_lists, self.width)
        return CommonLines(index, features)

    def _skeleton(self, triples: Triples) -> SkeletonRows:
        words, columns = triples.words, triples.columns
        words.digits(columns[:, 0], columns[:, 1] - 1)
        click = words.binary(columns[:, 1], columns[:, 2] - 1)
        conversion = words.binary(columns[:, 2], columns[:, 3] - 1)
        index = words.hexadecimal(columns[:, 3], columns[:, 4] - 1)
        check(words.digits(columns[:, 4], columns[:, 5] - 1) == triples.counts)
        features = _features(triples, len(ITEM_SINGLE), self.item_lists, self.width)
        label = click.astype(np.uint64) + 2 * conversion.astype(np.uint64)
        content = mix(features.content ^ mix(index + label * GOLDEN))
        return SkeletonRows(index, click, conversion, features, content)


@dataclass(frozen=True)
class _Bad:
    """A block that has a bad line."""

    text: np.ndarray


def _parsed(
    text: np.ndarray,
    read: Callable[[Triples], Block],
    columns: tuple[Column, ...],
    names: Names,
) -> tuple[Block, tuple[int, str] | None] | _Bad:
    """The block, and the line and name of its first field that is not known."""
    try:
        triples = parse(text, len(columns), names)
        return read(triples), triples.first_unknown()
    except OddBlock:
        unix = with_unix_ends(text)
        if len(unix) < len(text):
            return _parsed(unix, read, columns, names)
        return _Bad(text)


def _features(
    triples: Triples, singles: int, lists: tuple[str, ...], width: int
) -> Features:
    """Fields 0 .. singles - 1 are single-valued, those of `lists` follow."""
    lines = len(triples.counts)
    one = np.flatnonzero(triples.field < singles) if lists else slice(None)
    cell = triples.field[one] * np.int64(lines) + triples.line[one]
    ids, weights = triples.id[one].astype(np.int32), triples.weight[one]
    single = np.full(lines * singles, MISSING, np.int32)
    weight = np.zeros(lines * singles, np.float32)
    single[cell] = ids
    repeated = len(cell) - int(np.count_nonzero(single != MISSING))
    if repeated:
        # Of several values the heaviest, and of these the smallest id, is set last.
        order = np.lexsort((-ids, weights, cell))
        cell, ids, weights = cell[order], ids[order], weights[order]
        single[cell] = ids
    weight[cell] = weights
    return Features(
        single.reshape(singles, lines),
        weight.reshape(singles, lines),
        {
            name: _list(triples, singles + at, width, lines)
            for at, name in enumerate(lists)
        },
        triples.content(),
        repeated,
        len(triples.unknown),
    )


def _list(triples: Triples, number: int, width: int, lines: int) -> Ragged:
    of = np.flatnonzero(triples.field == number)
    return Ragged.heaviest(
        lines, triples.line[of], triples.id[of], triples.weight[of], width
    )
