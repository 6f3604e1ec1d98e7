"""Vocabularies of fields whose values are numbers: how often they occur, their ids."""

from dataclasses import dataclass

import numpy as np
import polars as pl

from pwiser_jax.data.schema import CategoricalField, MultiValuedField

MISSING = -1
MERGE_AT = 4_000_000
SPARSE = 16
"""A dense table may have so many places for each value, beside a few millions."""


class IdCounts:
    """How often each id has been seen; ids are int32, 0 or more, or MISSING."""

    def __init__(self) -> None:
        self._parts: list[pl.DataFrame] = []

    def add(self, ids: np.ndarray, times: np.ndarray | None = None) -> None:
        """Takes in int32[N], each once or int64[N] times."""
        part = pl.DataFrame({"id": ids}).filter(pl.col("id") != MISSING)
        if times is None:
            self._parts.append(part.group_by("id").agg(pl.len().cast(pl.Int64)))
        else:
            part = pl.DataFrame({"id": ids, "len": times}).filter(
                (pl.col("id") != MISSING) & (pl.col("len") > 0)
            )
            self._parts.append(part.group_by("id").agg(pl.col("len").sum()))
        if sum(part.height for part in self._parts[1:]) > MERGE_AT:
            self._parts = [self.table()]

    def table(self) -> pl.DataFrame:
        """Columns id and len, ids ascending."""
        empty = pl.DataFrame(schema={"id": pl.Int32, "len": pl.Int64})
        whole = pl.concat([empty, *self._parts])
        return whole.group_by("id").agg(pl.col("len").sum()).sort("id")


@dataclass(frozen=True)
class IdTable:
    """The ids of a field in train: kept ones, and ones too rare to be kept.

    Args:
        kept: int32, ascending: the k-th has the id k.
        rare: int32, ascending.
    """

    kept: np.ndarray
    rare: np.ndarray

    @classmethod
    def of(cls, counts: IdCounts, min_count: int) -> "IdTable":
        """Kept are ids that were seen `min_count` times or more."""
        table = counts.table()
        often = table["len"] >= min_count
        return cls(
            table["id"].filter(often).to_numpy(), table["id"].filter(~often).to_numpy()
        )

    @property
    def values(self) -> pl.Series:
        """Kept ids, then rare ones, as text: as `vocabulary` stores them."""
        return pl.Series(np.concatenate([self.kept, self.rare])).cast(pl.String)

    def encoder(self, field: CategoricalField | MultiValuedField) -> "IdEncoder":
        return IdEncoder(self, field)


class IdEncoder:
    """Raw ids to a field's ids, by a table of all places between the extremes."""

    def __init__(
        self, table: IdTable, field: CategoricalField | MultiValuedField
    ) -> None:
        self._field = field
        known = np.concatenate([table.kept, table.rare])
        own = np.full(len(known), field.rare, np.int32)
        own[: field.size] = np.arange(field.size)
        self._low = int(known.min()) if len(known) else 0
        span = int(known.max()) - self._low + 1 if len(known) else 0
        self._dense = span <= SPARSE * len(known) + MERGE_AT
        if self._dense:
            self._own = np.full(span + 1, field.unseen, np.int32)
            self._own[known - self._low] = own
        else:
            order = np.argsort(known)
            self._known, self._own = known[order], own[order]

    def __call__(self, raw: np.ndarray) -> np.ndarray:
        """int32[N] from int32[N]."""
        if self._dense:
            place = raw.astype(np.int64) - self._low
            inside = (place >= 0) & (place < len(self._own))
            found = self._own[np.where(inside, place, len(self._own) - 1)]
        else:
            place = np.minimum(np.searchsorted(self._known, raw), len(self._known) - 1)
            same = self._known[place] == raw
            found = np.where(same, self._own[place], np.int32(self._field.unseen))
        return np.where(raw == MISSING, np.int32(self._field.missing), found)
