"""Vocabularies of fields whose values are integers."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from pwiser_jax.schema import CategoricalField, MultiValuedField

MISSING = -1
MERGE_AT = 4_000_000
MOST_PLACES = 1 << 25
"""The longest array over a range of ids."""

SCHEMA = {"id": pl.Int32, "count": pl.Int64}


class IdCounts:
    """Counts ids: int32, 0 or more, or MISSING.

    Counts in an array over the range of ids, or in a table if it would be too long.
    """

    def __init__(self) -> None:
        self._low = 0
        self._dense = np.zeros(0, np.int64)
        self._sparse: list[pl.DataFrame] = []

    def add(self, ids: np.ndarray, times: np.ndarray | None = None) -> None:
        """Counts ids int32[N], each once or int64[N] times."""
        present = ids != MISSING
        ids = ids[present]
        if not len(ids):
            return
        times = None if times is None else times[present]
        low, high = int(ids.min()), int(ids.max())
        if len(self._dense):
            low = min(low, self._low)
            high = max(high, self._low + len(self._dense) - 1)
        if high - low > MOST_PLACES:
            self._add_sparse(ids, times)
            return
        if low < self._low or high >= self._low + len(self._dense):
            grown = np.zeros(high - low + 1, np.int64)
            start = self._low - low if len(self._dense) else 0
            grown[start : start + len(self._dense)] = self._dense
            self._low, self._dense = low, grown
        np.add.at(self._dense, ids - self._low, 1 if times is None else times)

    def _add_sparse(self, ids: np.ndarray, times: np.ndarray | None) -> None:
        columns = {"id": ids, "count": np.ones_like(ids) if times is None else times}
        part = pl.DataFrame(columns, schema=SCHEMA, strict=False)
        self._sparse.append(part.group_by("id").agg(pl.col("count").sum()))
        if sum(part.height for part in self._sparse[1:]) > MERGE_AT:
            whole = pl.concat(self._sparse)
            self._sparse = [whole.group_by("id").agg(pl.col("count").sum())]

    def table(self) -> tuple[np.ndarray, np.ndarray]:
        """int32[V] ids in ascending order, int64[V] their counts."""
        place = np.flatnonzero(self._dense)
        ids, counts = (place + self._low).astype(np.int32), self._dense[place]
        if self._sparse:
            dense = pl.DataFrame({"id": ids, "count": counts}, schema=SCHEMA)
            whole = pl.concat([dense, *self._sparse]).group_by("id")
            merged = whole.agg(pl.col("count").sum()).sort("id")
            ids, counts = merged["id"].to_numpy(), merged["count"].to_numpy()
        return ids[counts > 0], counts[counts > 0]


@dataclass(frozen=True)
class IdTable:
    """The ids of a field in train: frequent ids, which are kept, and rare ids.

    Args:
        kept: int32, ascending; the k-th has the encoded id k.
        rare: int32, ascending.
    """

    kept: np.ndarray
    rare: np.ndarray

    @classmethod
    def of(cls, counts: IdCounts, min_count: int) -> "IdTable":
        """Keeps ids that occur `min_count` times or more."""
        ids, times = counts.table()
        often = times >= min_count
        return cls(ids[often], ids[~often])

    @classmethod
    def load(cls, values: pl.Series, size: int) -> "IdTable":
        """The table whose `values` these are, `size` of them kept."""
        ids = values.cast(pl.Int32).to_numpy()
        return cls(ids[:size], ids[size:])

    @property
    def values(self) -> pl.Series:
        """Kept ids, then rare ones, as text: as `vocabulary` stores them."""
        return pl.Series(np.concatenate([self.kept, self.rare])).cast(pl.String)

    def encoder(self, field: CategoricalField | MultiValuedField) -> "IdEncoder":
        return IdEncoder(self, field)


class IdEncoder:
    """Encodes raw ids, by an array over their range or by binary search."""

    def __init__(
        self, table: IdTable, field: CategoricalField | MultiValuedField
    ) -> None:
        self._field = field
        known = np.concatenate([table.kept, table.rare])
        ids = np.full(len(known), field.rare, np.int32)
        ids[: field.size] = np.arange(field.size)
        self._low = int(known.min()) if len(known) else 0
        span = int(known.max()) - self._low + 1 if len(known) else 0
        self._dense = span <= MOST_PLACES
        if self._dense:
            # One entry before the first id and one after the last, for ids out of
            # range.
            self._ids = np.full(span + 2, field.unseen, np.int32)
            self._ids[known - (self._low - 1)] = ids
        else:
            order = np.argsort(known)
            self._known, self._ids = known[order], ids[order]

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """int32[N] from int32[N]."""
        if self._dense:
            encoded = self._ids.take(raw - np.int64(self._low - 1), mode="clip")
        else:
            place = np.minimum(np.searchsorted(self._known, raw), len(self._known) - 1)
            same = self._known[place] == raw
            encoded = np.where(same, self._ids[place], np.int32(self._field.unseen))
        return np.where(raw == MISSING, np.int32(self._field.missing), encoded)
