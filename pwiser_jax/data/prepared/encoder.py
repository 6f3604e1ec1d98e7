"""Encodes raw rows: vocabularies, fill values and scales, fitted on train.

`Encoder.fit` sees train only. `Encoder.transform` encodes any rows with the same
columns, in their order. `Encoder.load` restores the encoder of a prepared folder, so
that `predict` encodes raw rows as training saw them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pwiser_jax.data.prepared import vocabulary
from pwiser_jax.data.prepared.manifest import read_manifest
from pwiser_jax.data.prepared.moments import moments
from pwiser_jax.data.raw import columns
from pwiser_jax.data.raw.columns import Reading, Source
from pwiser_jax.data.raw.flat import FlatSpec
from pwiser_jax.data.raw.hashing import group_hash
from pwiser_jax.data.raw.labels import truth
from pwiser_jax.schema import (
    GROUP,
    ROW_WEIGHT,
    TIME,
    CategoricalField,
    NumericalField,
    Schema,
)


@dataclass(frozen=True)
class Encoder:
    """Maps raw columns to prepared ones.

    Args:
        spec: the raw columns.
        schema: the prepared columns.
        values: field -> the values with ids 0 .. size - 1 in this order, then the rare
            ones; fields of `spec.sizes` have none.
        fill: numerical field -> the raw value that replaces a missing one.
    """

    spec: FlatSpec
    schema: Schema
    values: Mapping[str, pl.Series]
    fill: Mapping[str, float]

    @classmethod
    def fit(
        cls, train: pl.LazyFrame, spec: FlatSpec, source: Source = "train"
    ) -> "Encoder":
        """Fits vocabularies, fills and scales; a UserError names a bad value."""
        readings = features(train, spec, source)
        columns.refuse_bad(train, readings.values(), source)
        texts = {n: readings[n].value for n in spec.categorical if n not in spec.sizes}
        fitted = vocabulary.fit_vocabularies(train, texts, spec.min_count)
        sizes = {name: kept for name, (_, kept) in fitted.items()} | dict(spec.sizes)
        stats = moments(train, {n: readings[n].value for n in spec.numerical})
        numerical = (
            NumericalField(n, stats[n].mean, stats[n].scale)
            if spec.standardize
            else NumericalField(n)
            for n in spec.numerical
        )
        schema = Schema(
            categorical=tuple(CategoricalField(n, sizes[n]) for n in spec.categorical),
            numerical=tuple(numerical),
            labels=tuple(spec.labels),
            extra=spec.extra,
            weight=spec.weight is not None,
        )
        values = {name: ordered for name, (ordered, _) in fitted.items()}
        return cls(spec, schema, values, {n: stats[n].mean for n in spec.numerical})

    def transform(
        self,
        frame: pl.LazyFrame,
        with_labels: bool = True,
        *,
        first_row: int = 0,
        source: Source = "the table",
    ) -> pl.LazyFrame:
        """The prepared columns as a lazy frame, rows in their order.

        Args:
            frame: raw rows; columns that the spec does not name are ignored.
            with_labels: False encodes the features alone, for prediction; no other
                column is needed or read.
            first_row: without a group column each row is a group, and its number is
                the group's; the first row has this one.
            source: names the rows in errors.

        Raises:
            UserError: a column is missing, or holds a value that it cannot hold.
        """
        spec, schema = self.spec, self.schema
        readings = features(frame, spec, source)
        dtypes = frame.collect_schema()
        others: dict[str, Reading] = {}
        if with_labels:
            needed = (spec.group, spec.time, spec.weight, *spec.extra)
            needed = (*needed, *spec.labels.values())
            columns.require(frame, needed, source)
            others = side_columns(spec, dtypes)
        scaled = {f.name: _overflow(f, readings[f.name]) for f in schema.numerical}
        checked = (*(readings | scaled).values(), *others.values())
        columns.refuse_bad(frame, checked, source)

        prepared = [
            *(self._ids(f, readings[f.name].value) for f in schema.categorical),
            *(self._scaled(f, readings[f.name].value) for f in schema.numerical),
        ]
        if with_labels:
            prepared += [
                truth(column, dtypes[column]).alias(name)
                for name, column in spec.labels.items()
            ]
        if GROUP not in others:
            frame = frame.with_row_index(columns.ROW, first_row)
            prepared.append(pl.col(columns.ROW).cast(pl.Int64).alias(GROUP))
        prepared += [
            (_hashed(read.value) if name == GROUP else read.value).alias(name)
            for name, read in others.items()
        ]
        return frame.select(prepared)

    def _ids(self, field: CategoricalField, value: pl.Expr) -> pl.Expr:
        if field.name in self.spec.sizes:
            return vocabulary.encode_own_ids(field, value).alias(field.name)
        values = self.values[field.name]
        return vocabulary.encode(field, value, values).alias(field.name)

    def _scaled(self, field: NumericalField, value: pl.Expr) -> pl.Expr:
        filled = value.fill_null(self.fill[field.name])
        scaled = (filled - field.mean) / field.scale
        return scaled.cast(pl.Float32).alias(field.name)

    def save(self, folder: Path) -> None:
        """Writes vocabulary.parquet; the manifest holds schema, spec and fills."""
        vocabulary.write_vocabularies(folder, self.schema.categorical, self.values)

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """The encoder of a prepared folder."""
        manifest = read_manifest(folder)
        spec, schema = manifest.spec, manifest.schema
        fields = [f for f in schema.categorical if f.name not in spec.sizes]
        values = vocabulary.read_vocabularies(
            folder, fields, manifest.vocabulary_sha256
        )
        return cls(spec, schema, values, manifest.fill)


def features(frame: pl.LazyFrame, spec: FlatSpec, source: Source) -> dict[str, Reading]:
    """How each feature column is read; raises a UserError where one is missing."""
    dtypes = columns.require(frame, (*spec.categorical, *spec.numerical), source)
    readings = {}
    for name in spec.categorical:
        read = columns.whole_number if name in spec.sizes else columns.category
        readings[name] = read(name, dtypes[name])
    for name in spec.numerical:
        readings[name] = columns.number(name, dtypes[name])
    return readings


def _overflow(field: NumericalField, reading: Reading) -> Reading:
    """The reading with values refused that are infinite in float32 once scaled."""
    column, value, bad, expected = reading
    scaled = ((value - field.mean) / field.scale).abs() > columns.FLOAT32_MAX
    refused = scaled.fill_null(False)
    if bad is not None:
        refused = refused | bad.fill_null(False)
    limits = f"{expected} that float32 holds as (x - {field.mean:g}) / {field.scale:g}"
    return Reading(column, value, refused, limits)


def side_columns(spec: FlatSpec, dtypes: pl.Schema) -> dict[str, Reading]:
    """Prepared name -> reading of the columns beside features and labels."""
    readings = {}
    if spec.group:
        readings[GROUP] = columns.group_key(spec.group, dtypes[spec.group])
    if spec.time:
        readings[TIME] = columns.time_stamp(spec.time, dtypes[spec.time])
    if spec.weight:
        readings[ROW_WEIGHT] = _row_weight(spec.weight, dtypes[spec.weight])
    return readings | {name: columns.number(name, dtypes[name]) for name in spec.extra}


def _row_weight(name: str, dtype: pl.DataType) -> Reading:
    _, value, bad, _ = columns.number(name, dtype)
    refused = value.is_null() | (value < 0)
    if bad is not None:
        refused = refused | bad.fill_null(False)
    expected = "a finite weight of at least 0 in every row"
    return Reading(name, value.cast(pl.Float32), refused, expected)


def _hashed(value: pl.Expr) -> pl.Expr:
    def hashed(values: pl.Series) -> pl.Series:
        return pl.Series(values.name, group_hash(values).view(np.int64))

    return value.map_batches(hashed, return_dtype=pl.Int64, is_elementwise=True)
