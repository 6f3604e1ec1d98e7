"""Encodes raw ids of Ali-CCP: vocabularies and scales from the train rows."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from pwiser_jax.data.aliccp.common import CommonFeatures
from pwiser_jax.data.aliccp.fields import ITEM_SINGLE, USER_SINGLE, WEIGHTED
from pwiser_jax.data.aliccp.id_tables import IdCounts, IdTable
from pwiser_jax.data.aliccp.spill import Columns, array, ragged_of
from pwiser_jax.data.prepared import vocabulary
from pwiser_jax.data.prepared.folder import ROW_GROUP
from pwiser_jax.data.prepared.manifest import MARK, read_manifest
from pwiser_jax.data.prepared.moments import BLOCK, Moments
from pwiser_jax.data.raw.frames import resized, scan_parquet
from pwiser_jax.data.raw.ragged import Ragged
from pwiser_jax.schema import (
    COMMON,
    GROUP,
    LIST_WEIGHTS,
    CategoricalField,
    MultiValuedField,
    NumericalField,
    Pool,
    Schema,
)

if TYPE_CHECKING:
    from pwiser_jax.data.aliccp.raw import RawReader

LABELS = ("click", "conversion")
VALUES = {name: f"D{name}" for name in WEIGHTED}
"""Fields whose values can be numerical fields: their names as such."""


class TrainCounts:
    """Counts of ids and moments of values over train's rows."""

    def __init__(self, lines: int, lists: Sequence[str]) -> None:
        self.rows_of_line = np.zeros(lines, np.int64)
        self.single: dict[str, IdCounts] = {name: IdCounts() for name in ITEM_SINGLE}
        self.lists = {name: IdCounts() for name in lists}
        self.moments = {name: Moments() for name in VALUES.values()}

    def add(self, columns: Columns) -> None:
        line = array(columns, COMMON)
        self.rows_of_line += np.bincount(line, minlength=len(self.rows_of_line))
        for name, counts in self.single.items():
            counts.add(array(columns, name))
        for name, counts in self.lists.items():
            counts.add(ragged_of(columns, name).ids)
        for name, moments in self.moments.items():
            if name in columns:
                values = array(columns, name).astype(np.float64)
                for start in range(0, len(values), BLOCK):
                    moments.add(values[start : start + BLOCK])


class AliccpEncoder:
    """Encodes raw columns as prepared columns.

    Args:
        schema: the prepared columns.
        tables: field -> its ids in train.
    """

    def __init__(self, schema: Schema, tables: Mapping[str, IdTable]) -> None:
        self.schema, self._tables = schema, tables
        fields = (*schema.categorical, *schema.multi_valued)
        self._encoders = {f.name: tables[f.name].encoder(f) for f in fields}

    @classmethod
    def fit(
        cls,
        counts: TrainCounts,
        common: CommonFeatures,
        reader: "RawReader",
        *,
        min_count: int,
        pool: Pool,
        with_values: bool,
    ) -> "AliccpEncoder":
        """Fits the encoder; an id counts once per train row, even in shared lines."""
        id_counts = counts.single | counts.lists
        id_counts |= {name: IdCounts() for name in (*USER_SINGLE, *reader.user_lists)}
        for k, name in enumerate(USER_SINGLE):
            id_counts[name].add(common.single[k], counts.rows_of_line)
        for first, lists in common.lists():
            for name in reader.user_lists:
                ragged = ragged_of(lists, name)
                id_counts[name].add(ragged.ids, counts.rows_of_line[first + ragged.row])
        tables = {n: IdTable.of(seen, min_count) for n, seen in id_counts.items()}
        schema = Schema(
            categorical=tuple(
                CategoricalField(name, len(tables[name].kept))
                for name in (*USER_SINGLE, *ITEM_SINGLE)
            ),
            numerical=tuple(
                NumericalField(name, moments.mean, moments.scale)
                for name, moments in counts.moments.items()
            )
            if with_values
            else (),
            labels=LABELS,
            multi_valued=tuple(
                MultiValuedField(name, len(tables[name].kept), reader.width, pool)
                for name in (*reader.user_lists, *reader.item_lists)
            ),
            common=(*USER_SINGLE, *reader.user_lists),
        )
        return cls(schema, tables)

    @classmethod
    def load(cls, folder: Path) -> "AliccpEncoder":
        """The encoder of a prepared folder."""
        manifest = read_manifest(folder)
        fields = manifest.schema.embedded
        values = vocabulary.read_vocabularies(
            folder, fields, manifest.vocabulary_sha256
        )
        tables = {f.name: IdTable.load(values[f.name], f.size) for f in fields}
        return cls(manifest.schema, tables)

    def rows(self, columns: Columns, group: np.ndarray) -> pl.DataFrame:
        """The prepared columns of rows; `group` is by common line."""
        frame = {
            name: self._encoders[name](array(columns, name)) for name in ITEM_SINGLE
        }
        for field in self.schema.numerical:
            value = array(columns, field.name).astype(np.float64)
            frame[field.name] = ((value - field.mean) / field.scale).astype(np.float32)
        line = array(columns, COMMON)
        frame |= {name: array(columns, name) for name in LABELS}
        frame |= {GROUP: group[line], COMMON: line}
        lists = [f.name for f in self.schema.multi_valued if f.name in columns]
        return pl.DataFrame(frame).with_columns(self._lists(columns, lists))

    def write_common(self, common: CommonFeatures, path: Path, scratch: Path) -> None:
        """Writes the table of all common lines, in row groups of ROW_GROUP lines."""
        parts = []
        for frame in resized(self._common_frames(common), ROW_GROUP):
            parts.append(scratch / f"encoded-{len(parts):06}.parquet")
            frame.write_parquet(parts[-1], compression="lz4")
        scan_parquet(parts).sink_parquet(
            path,
            compression="zstd",
            compression_level=3,
            statistics=True,
            row_group_size=ROW_GROUP,
            maintain_order=True,
            metadata=MARK,
        )

    def _common_frames(self, common: CommonFeatures) -> Iterator[pl.DataFrame]:
        single = pl.DataFrame(
            {
                name: self._encoders[name](common.single[k])
                for k, name in enumerate(USER_SINGLE)
            }
        )
        shared = [name for name in self.schema.common if name not in USER_SINGLE]
        if not shared:
            yield single
            return
        for first, columns in common.lists():
            lists = self._lists(columns, shared)
            yield single[first : first + len(lists[0])].with_columns(lists)

    def _lists(self, columns: Columns, fields: Sequence[str]) -> list[pl.Series]:
        series = []
        for field in fields:
            raw = ragged_of(columns, field)
            ids = self._encoders[field](raw.ids)
            lists = Ragged(raw.counts, ids, raw.weights).merged().lists()
            names = (field, field + LIST_WEIGHTS)
            series += [s.alias(name) for s, name in zip(lists, names, strict=True)]
        return series

    def save(self, folder: Path) -> None:
        fields = (*self.schema.categorical, *self.schema.multi_valued)
        values = {name: table.values for name, table in self._tables.items()}
        vocabulary.write_vocabularies(folder, fields, values)
