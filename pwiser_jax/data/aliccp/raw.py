"""The raw files of Ali-CCP as blocks of arrays: common features and skeleton rows.

Blocks are independent, so several threads parse them. `encode` and `prepare` handle
vocabularies and splits.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

import numpy as np

from pwiser_jax.data.aliccp.fields import (
    ITEM_LISTS,
    ITEM_SINGLE,
    USER_LISTS,
    USER_SINGLE,
)
from pwiser_jax.data.aliccp.line_format import Column, Names
from pwiser_jax.data.aliccp.lines import blocks, find_bad, in_order, with_unix_ends
from pwiser_jax.data.aliccp.triples import Heaviest, OddBlock, Triples, heaviest, parse
from pwiser_jax.data.raw.archives import Source
from pwiser_jax.data.raw.hashing import GOLDEN, mix
from pwiser_jax.data.raw.ragged import Ragged
from pwiser_jax.errors import UserError
from pwiser_jax.host import keep_freed_memory

INDEX = Column(
    "common_feature_index", 16, 16, 16, "16 hexadecimal digits in lower case"
)
NUMBER = Column("feature_num", 10, 1, 16, "a whole number")
COMMON_COLUMNS = (INDEX, NUMBER)
SKELETON_COLUMNS = (
    Column("sample_id", 10, 1, 16, "a whole number"),
    Column("click", 2, 1, 1, "0 or 1"),
    Column("conversion", 2, 1, 1, "0 or 1"),
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
        repeated: number of values of single-valued fields after the first in a line.
        unknown: number of triples of unknown fields.
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
        features: features of each line.
    """

    index: np.ndarray
    features: Features

    def __len__(self) -> int:
        return len(self.index)


@dataclass(frozen=True)
class SkeletonRows:
    """Lines of a sample_skeleton file.

    Args:
        sample: uint64[L], the sample id.
        index: uint64[L], the common feature index.
        click: int8[L].
        conversion: int8[L].
        features: features of each row.
        content: uint64[L], equal for rows that differ only in the sample id.
    """

    sample: np.ndarray
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
    """Reads the raw files.

    Args:
        pool: thread pool that parses the blocks.
        with_lists: read the multi-valued fields too.
        width: number of values of a multi-valued field that are kept, by weight.
        strict: refuse unknown fields.
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
        for parsed in in_order(self._pool, work, blocks(source)):
            if isinstance(parsed, _Bad):
                at, reason = find_bad(parsed.text, columns, names) or (0, "unreadable")
                raise UserError(f"{source}, line {line + at}: {reason}")
            block, unknown = parsed
            if self._strict and unknown:
                at, name = unknown
                raise UserError(
                    f"{source}, line {line + at}: field {name!r} is not known; leave "
                    "--strict out to ignore such fields"
                )
            yield line, block
            line += len(block)

    def _common(self, triples: Triples) -> CommonLines:
        features = _features(triples, len(USER_SINGLE), self.user_lists, self.width)
        return CommonLines(triples.columns[0], features)

    def _skeleton(self, triples: Triples) -> SkeletonRows:
        features = _features(triples, len(ITEM_SINGLE), self.item_lists, self.width)
        sample, click, conversion, index, _ = triples.columns
        label = click + np.uint64(2) * conversion
        content = mix(features.content ^ mix(index + label * GOLDEN))
        return SkeletonRows(
            sample,
            index,
            click.astype(np.int8),
            conversion.astype(np.int8),
            features,
            content,
        )


@dataclass(frozen=True)
class _Bad:
    """A block with a bad line."""

    text: np.ndarray


def _parsed(
    text: np.ndarray,
    read: Callable[[Triples], Block],
    columns: tuple[Column, ...],
    names: Names,
) -> tuple[Block, tuple[int, str] | None] | _Bad:
    """The block, and the line and name of its first unknown field."""
    try:
        triples = parse(text, columns, names)
        return read(triples), triples.first_unknown
    except OddBlock:
        unix = with_unix_ends(text)
        if len(unix) < len(text):
            return _parsed(unix, read, columns, names)
        return _Bad(text)


def _features(
    triples: Triples, singles: int, lists: tuple[str, ...], width: int
) -> Features:
    """Fields 0 .. singles - 1 are single-valued, those of `lists` follow."""
    kept = heaviest(triples, singles, len(lists), width)
    ids, weights = Heaviest.values(kept.single)
    return Features(
        ids,
        weights,
        {
            name: Ragged(counts, *Heaviest.values(keys[: counts.sum()]))
            for name, counts, keys in zip(lists, kept.counts, kept.lists, strict=True)
        },
        kept.content,
        kept.repeated,
        triples.unknown,
    )
