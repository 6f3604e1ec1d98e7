"""Lists of ids and weights by row: a multi-valued field in memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Ragged:
    """N lists, one after the other.

    Args:
        counts: int64[N], the length of each list.
        ids: int32[V].
        weights: float32[V].
    """

    counts: np.ndarray
    ids: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.counts)

    @property
    def row(self) -> np.ndarray:
        """int64[V], the list that each value belongs to."""
        return np.repeat(np.arange(len(self)), self.counts)

    def __getitem__(self, index: slice | np.ndarray) -> "Ragged":
        """Some lists, by a slice or a mask."""
        if isinstance(index, slice):
            start, stop, _ = index.indices(len(self))
            first = int(self.counts[:start].sum())
            values = slice(first, first + int(self.counts[start:stop].sum()))
        else:
            values = np.repeat(index, self.counts)
        return Ragged(self.counts[index], self.ids[values], self.weights[values])

    @classmethod
    def concat(cls, parts: Sequence["Ragged"]) -> "Ragged":
        return cls(
            np.concatenate([part.counts for part in parts]),
            np.concatenate([part.ids for part in parts]),
            np.concatenate([part.weights for part in parts]),
        )

    @classmethod
    def heaviest(
        cls,
        rows: int,
        row: np.ndarray,
        ids: np.ndarray,
        weights: np.ndarray,
        width: int | None = None,
    ) -> "Ragged":
        """The lists of `rows` rows in descending weight, the smaller id first in ties.

        Args:
            rows: N.
            row: int[V], the row of each value, in any order.
            ids: int[V].
            weights: float32[V].
            width: maximum number of values kept per row; None: all.
        """
        columns = {"row": row.astype(np.int32), "id": ids.astype(np.int32)}
        values = pl.DataFrame(columns | {"weight": weights}).sort(
            "row", "weight", "id", descending=[False, True, False]
        )
        counts = np.bincount(row, minlength=rows)
        lists = cls(counts, values["id"].to_numpy(), values["weight"].to_numpy())
        if width is None or not len(counts) or counts.max() <= width:
            return lists
        first = np.cumsum(counts) - counts
        kept = np.arange(len(lists.ids)) - np.repeat(first, counts) < width
        return cls(np.minimum(counts, width), lists.ids[kept], lists.weights[kept])

    def merged(self) -> "Ragged":
        """Merges repeated ids of a list; their weights are summed."""
        row = self.row
        order = np.argsort(row << 32 | self.ids, kind="stable")
        row, ids = row[order], self.ids[order]
        new = np.ones(len(ids), bool)
        new[1:] = (ids[1:] != ids[:-1]) | (row[1:] != row[:-1])
        first = np.flatnonzero(new)
        if len(first):
            weights = np.add.reduceat(self.weights[order].astype(np.float64), first)
        else:
            weights = self.weights
        return Ragged.heaviest(
            len(self), row[first], ids[first], weights.astype(np.float32)
        )

    def lists(self) -> tuple[pl.Series, pl.Series]:
        """The ids and the weights as list columns."""
        return self._lists(self.ids), self._lists(self.weights)

    def _lists(self, values: np.ndarray) -> pl.Series:
        width = max(int(self.counts.max(initial=0)), 1)
        padded = np.zeros((len(self), width), values.dtype)
        padded[np.arange(width) < self.counts[:, None]] = values
        frame = pl.DataFrame({"padded": padded, "count": self.counts})
        lists = pl.col("padded").arr.to_list().list.head(pl.col("count"))
        return frame.select(lists).to_series()
