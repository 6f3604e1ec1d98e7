"""The common features of Ali-CCP: ids in memory, multi-valued fields on disk."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pwiser_jax.data.aliccp.fields import USER_SINGLE
from pwiser_jax.data.aliccp.id_tables import MISSING
from pwiser_jax.data.aliccp.spill import Columns, Pieces, Spill, height
from pwiser_jax.data.raw.archives import Source
from pwiser_jax.data.raw.hashing import fraction, group_hash, hash_integers
from pwiser_jax.errors import UserError

if TYPE_CHECKING:
    from pwiser_jax.data.aliccp.raw import RawReader

USER = USER_SINGLE.index("101")
PIECE = 16_384
"""Lines whose multi-valued fields lie in one file."""


class CommonFeatures:
    """All common lines, those of train first, numbered from 0 in file order.

    A user is a value of field 101; several lines may belong to one user. A line without
    that field is a separate user.

    Args:
        scratch: a folder for the multi-valued fields.
        valid_fraction: share of the users held out for validation.
    """

    def __init__(self, scratch: Path, valid_fraction: float) -> None:
        self._valid_fraction = valid_fraction
        self._lists, self._waiting = Spill(scratch, "common"), Pieces(PIECE)
        self._index: list[np.ndarray] = []
        self._single: list[np.ndarray] = []
        self._count = 0
        self.lines: dict[str, int] = {}
        self.counted: Counter[str] = Counter()
        self._find: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.group = np.empty(0, np.int64)
        self.valid = np.empty(0, bool)

    def __len__(self) -> int:
        return self._count

    def read(self, half: str, reader: "RawReader", source: Source) -> None:
        """Reads the file of train or of test."""
        start = self._count
        contents = []
        for _, block in reader.common(source):
            features = block.features
            self._index.append(block.index)
            self._single.append(features.single)
            contents.append(features.content)
            if features.lists:
                for piece in self._waiting.add(features.lists):
                    self._lists.add(piece)
            self._count += len(block)
            self.counted["values_of_single_fields_beyond_one"] += features.repeated
            self.counted["features_of_unknown_fields"] += features.unknown
        for piece in self._waiting.rest():
            self._lists.add(piece)
        self._index = [np.concatenate(self._index)]
        self._single = [np.concatenate(self._single, axis=1)]
        self.lines[half] = self._count - start
        index = self._index[0][start:]
        self._find[half] = self._unique(index, np.concatenate(contents), start, source)
        self._users(start)

    def _unique(
        self, index: np.ndarray, content: np.ndarray, start: int, source: Source
    ) -> tuple[np.ndarray, np.ndarray]:
        """The distinct indices in ascending order, and the first line of each."""
        order = np.argsort(index, kind="stable")
        ordered = index[order]
        again = np.flatnonzero(ordered[1:] == ordered[:-1]) + 1
        other = again[content[order[again]] != content[order[again - 1]]]
        if len(other):
            at = other[np.argmin(order[other])]
            raise UserError(
                f"{source}, line {order[at] + 1}: common_feature_index "
                f"{ordered[at]:016x} is that of line {order[at - 1] + 1}, which has "
                "other features"
            )
        self.counted["common_lines_that_repeat"] += len(again)
        first = np.ones(len(index), bool)
        first[again] = False
        return ordered[first], (order[first] + start).astype(np.int32)

    def _users(self, start: int) -> None:
        index, user = self._index[0][start:], self.single[USER, start:]
        hashes = np.where(
            user == MISSING,
            hash_integers(index, seed=1),
            group_hash(pl.Series("101", user)),
        )
        valid = fraction(hashes) < self._valid_fraction
        self.group = np.concatenate([self.group, hashes.view(np.int64)])
        self.valid = np.concatenate([self.valid, valid])

    def find(self, half: str, index: np.ndarray) -> np.ndarray:
        """int32[N], the line of each index in that half, or MISSING."""
        known, line = self._find[half]
        # Rows of a user follow each other: only the first of a run is looked up.
        new = np.ones(len(index), bool)
        new[1:] = index[1:] != index[:-1]
        new_index = index[new]
        place = np.minimum(np.searchsorted(known, new_index), len(known) - 1)
        lines = np.where(known[place] == new_index, line[place], np.int32(MISSING))
        return lines[np.cumsum(new) - 1]

    @property
    def single(self) -> np.ndarray:
        """int32[S, lines], raw ids of the single-valued fields."""
        return self._single[0]

    def lists(self) -> Iterator[tuple[int, Columns]]:
        """The multi-valued fields of successive lines, with the first line's number."""
        first = 0
        for piece in self._lists.pieces():
            yield first, piece
            first += height(piece)
