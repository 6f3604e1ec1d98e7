"""The order `groups`: batches of whole groups, so that they hold pairs in a group.

A group's rows may lie anywhere in the split. An in-memory index (8 bytes per row and 24
per group) lists the rows of each group; the rows stay mapped, and are read by group
instead of in blocks. This order needs more disk reads than the order `rows` if groups
are scattered over a file larger than memory.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np


@dataclass(frozen=True)
class Packing:
    """How the groups of a split fill batches of B rows.

    The number of batches must not depend on the epoch. So the sizes of the groups that
    share a batch are drawn once, for all epochs and seeds; each epoch then shuffles the
    groups of one size among their places, and the batches.

    Args:
        starts, sizes: int64[P], the pieces: where each begins in the index, and its
            rows. A piece is a group, or at most B rows of a larger group.
        slots: int64[P], the pieces in ascending order of size; `slots[k]` is the place
            in the sequence of all batches that the k-th smallest piece takes.
        bounds: int64[S + 1], batch b takes the places bounds[b] .. bounds[b + 1] - 1.
        cut_groups: number of groups with more than B rows.
    """

    starts: np.ndarray
    sizes: np.ndarray
    slots: np.ndarray
    bounds: np.ndarray
    cut_groups: int

    @property
    def steps(self) -> int:
        return len(self.bounds) - 1

    def batches(self, seed: int, epoch: int) -> Iterator[np.ndarray]:
        """Yields the pieces of each batch of an epoch, int64 indices."""
        random = np.random.default_rng((seed, epoch))
        shuffled = random.permutation(len(self.sizes))
        by_size = shuffled[np.argsort(self.sizes[shuffled], kind="stable")]
        dealt = np.empty_like(by_size)
        dealt[self.slots] = by_size
        for batch in random.permutation(self.steps):
            yield dealt[self.bounds[batch] : self.bounds[batch + 1]]


class GroupIndex:
    """The rows of a split by group.

    Args:
        group: int64[N], the group of each row.
    """

    def __init__(self, group: np.ndarray) -> None:
        self._group = group
        self._packings: dict[int, Packing] = {}

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Rows by group, in file order within one, and where each group begins."""
        rows = np.argsort(self._group, kind="stable")
        group = self._group[rows]
        return rows, np.flatnonzero(np.r_[True, group[1:] != group[:-1]])

    @cached_property
    def codes(self) -> np.ndarray:
        """int32[N]: 0, 1, ... in ascending order of `group`."""
        rows, starts = self._sorted
        codes = np.empty(len(rows), np.int32)
        codes[rows] = np.repeat(
            np.arange(len(starts), dtype=np.int32), np.diff(starts, append=len(rows))
        )
        return codes

    def packing(self, batch_size: int) -> Packing:
        if batch_size not in self._packings:
            self._packings[batch_size] = self._pack(batch_size)
        return self._packings[batch_size]

    def _pack(self, batch_size: int) -> Packing:
        rows, starts = self._sorted
        sizes = np.diff(starts, append=len(rows))
        pieces = -(-sizes // batch_size)
        # The k-th piece of a group begins k batches after it.
        k = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts = np.repeat(starts, pieces) + k * batch_size
        sizes_of = np.minimum(np.repeat(sizes, pieces) - k * batch_size, batch_size)

        drawn = sizes_of[np.random.default_rng(0).permutation(len(sizes_of))]
        ends, bounds = np.cumsum(drawn), [0]
        while bounds[-1] < len(drawn):
            before = ends[bounds[-1] - 1] if bounds[-1] else 0
            bounds.append(int(np.searchsorted(ends, before + batch_size, "right")))
        return Packing(
            starts,
            sizes_of,
            np.argsort(drawn, kind="stable"),
            np.array(bounds),
            int(np.count_nonzero(pieces > 1)),
        )

    def batches(
        self, batch_size: int, *, seed: int, epoch: int, start_step: int = 0
    ) -> Iterator[np.ndarray]:
        """int64[<= B]: the rows of each batch of an epoch."""
        rows, _ = self._sorted
        packing = self.packing(batch_size)
        for step, pieces in enumerate(packing.batches(seed, epoch)):
            if step < start_step:
                continue
            starts, sizes = packing.starts[pieces], packing.sizes[pieces]
            before = np.repeat(np.cumsum(sizes) - sizes, sizes)
            yield rows[np.repeat(starts, sizes) + np.arange(sizes.sum()) - before]
