"""Encodes raw rows: vocabularies, fill values and scales, fitted on train.

`Encoder.fit` sees train only. `Encoder.transform` encodes any rows with the same
columns, in their order. `Encoder.load` restores the encoder of a prepared folder, so
that `predict` encodes raw rows as training saw them, and `Encoder.extend` adds the new
values of newer rows to it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl

from pwiser_jax.data.prepared import vocabulary
from pwiser_jax.data.prepared.manifest import read_manifest
from pwiser_jax.data.prepared.moments import moments
from pwiser_jax.data.prepared.vocabulary import Hashed, Vocabularies
from pwiser_jax.data.raw import canonical, columns
from pwiser_jax.data.raw.canonical import Kinds
from pwiser_jax.data.raw.columns import Reading, Source
from pwiser_jax.data.raw.flat import FlatSpec
from pwiser_jax.data.raw.hashing import group_hash
from pwiser_jax.data.raw.labels import truth
from pwiser_jax.data.raw.ragged import Ragged
from pwiser_jax.schema import (
    GROUP,
    LIST_WEIGHTS,
    ROW_WEIGHT,
    TIME,
    CategoricalField,
    MultiValuedField,
    NumericalField,
    Schema,
)

VALUES = "\0value of "  # no column of a file can have these names
LISTS = "\0lists of "
LIST_TYPE = pl.Struct({"ids": pl.List(pl.Int32), "weights": pl.List(pl.Float32)})
MOST_WEIGHT = 1e30  # of a row: a batch's sums of weights times costs fit into float32


class EncodedPart(NamedTuple):
    """Encoded features, their raw rows, and the name of the rows in messages."""

    features: pl.LazyFrame
    raw: pl.LazyFrame
    name: str


class EncodedRows(NamedTuple):
    """Parts in order, and the one table of the fields that their rows share."""

    parts: Iterable[EncodedPart]
    common: pl.DataFrame | None = None


@dataclass(frozen=True)
class Encoder:
    """Maps raw columns to prepared columns.

    Args:
        spec: the raw columns.
        schema: the prepared columns.
        values: field -> its values with ids 0 .. size - 1, in this order, then its rare
            values; fields of `spec.sizes` have none.
        fill: numerical field -> the raw value that replaces a missing one.
        hashed: fields of `spec.buckets` whose vocabularies exceeded the budget.
    """

    spec: FlatSpec
    schema: Schema
    values: Mapping[str, pl.Series]
    fill: Mapping[str, float]
    hashed: Mapping[str, Hashed] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        train: pl.LazyFrame,
        spec: FlatSpec,
        source: Source = "train",
        budget: int | None = None,
    ) -> "Encoder":
        """Fits vocabularies, fills and scales; a UserError names a bad value.

        With a budget of bytes, the vocabularies beyond it are hashed.
        """
        kinds = find_kinds(train, spec, source).kinds
        spec = replace(spec, kinds={**kinds, **spec.kinds})
        readings, lists, (fitted, hashed) = _fitted(train, spec, source, budget)
        buckets = {name: each.ids for name, each in hashed.items()}
        spec = replace(spec, buckets={**spec.buckets, **buckets})
        sizes = {name: kept for name, (_, kept) in fitted.items()}
        sizes |= {**spec.sizes, **spec.buckets}
        widths = _longest(train, lists)
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
            multi_valued=tuple(
                MultiValuedField(
                    name, sizes[name], min(column.max_values, widths[name]), column.pool
                )
                for name, column in spec.multi_valued.items()
            ),
        )
        values = {name: ordered for name, (ordered, _) in fitted.items()}
        fill = {name: stats[name].mean for name in spec.numerical}
        return cls(spec, schema, values, fill, hashed)

    def extend(self, train: pl.LazyFrame, source: Source = "train") -> "Encoder":
        """This encoder with ids for the further values of newer rows.

        Ids, fills and scales stay. A value without an id that these rows have as often
        as the minimum count says gets the next id of its field; counts of earlier rows
        are not known. Multi-valued fields become as wide as the longest list.
        """
        _, lists, (fitted, _) = _fitted(train, self.spec, source)
        fields = {field.name: field for field in self.schema.embedded}
        grown = {
            name: vocabulary.extended(self.values[name], fields[name].size, *newer)
            for name, newer in fitted.items()
        }
        sizes = {name: field.size for name, field in fields.items()}
        sizes |= {name: size for name, (_, size) in grown.items()}
        longest, columns = _longest(train, lists), self.spec.multi_valued
        schema = replace(
            self.schema,
            categorical=tuple(
                replace(field, size=sizes[field.name])
                for field in self.schema.categorical
            ),
            multi_valued=tuple(
                replace(
                    field,
                    size=sizes[field.name],
                    width=max(
                        field.width,
                        min(columns[field.name].max_values, longest[field.name]),
                    ),
                )
                for field in self.schema.multi_valued
            ),
        )
        values = {name: ordered for name, (ordered, _) in grown.items()}
        return replace(self, schema=schema, values=values)

    def moved(self, train: pl.LazyFrame) -> dict[str, float]:
        """How far the means of newer rows are from the encoder's, in its scales."""
        readings = features(train, self.spec, "train")
        stats = moments(train, {n: readings[n].value for n in self.spec.numerical})
        return {
            field.name: (stats[field.name].mean - self.fill[field.name]) / field.scale
            for field in self.schema.numerical
            if stats[field.name].count
        }

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
            with_labels: False encodes only the features, for prediction; no other
                column is read.
            first_row: without a group column each row is a group, and its number is
                the group's; the first row has this one.
            source: names the rows in errors.

        Raises:
            UserError: a column is missing or holds an invalid value.
        """
        spec, schema = self.spec, self.schema
        readings = features(frame, spec, source)
        lists = list_features(frame, spec, source)
        dtypes = frame.collect_schema()
        others: dict[str, Reading] = {}
        if with_labels:
            needed = (spec.group, spec.time, spec.weight, *spec.extra)
            needed = (*needed, *spec.labels.values())
            columns.require(frame, needed, source)
            others = side_columns(spec, dtypes)
        scaled = {f.name: _overflow(f, readings[f.name]) for f in schema.numerical}
        checked = (*(readings | scaled).values(), *lists.values(), *others.values())
        columns.refuse_bad(frame, checked, source)

        # `encode` names a value several times, and would compute it as often.
        values = {VALUES + f.name: readings[f.name].value for f in schema.categorical}
        values |= {
            LISTS + f.name: self._lists(f, lists[f.name].value)
            for f in schema.multi_valued
        }
        frame = frame.with_columns(value.alias(name) for name, value in values.items())
        prepared = [
            *(self._ids(f, pl.col(VALUES + f.name)) for f in schema.categorical),
            *(self._scaled(f, readings[f.name].value) for f in schema.numerical),
        ]
        prepared += [
            pl.col(LISTS + field.name).struct.field(part).alias(field.name + end)
            for field in schema.multi_valued
            for part, end in (("ids", ""), ("weights", LIST_WEIGHTS))
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

    def encode(self, raw: pl.LazyFrame, source: Source) -> EncodedPart:
        """The features of raw rows, for prediction."""
        features = self.transform(raw, with_labels=False, source=source)
        return EncodedPart(features, raw, str(source))

    @cached_property
    def _enums(self) -> dict[str, pl.Enum]:
        """Kept: Polars hashes the values of an Enum when it first meets it."""
        return {name: pl.Enum(values) for name, values in self.values.items()}

    def _ids(self, field: CategoricalField, value: pl.Expr) -> pl.Expr:
        if field.name in self.spec.sizes:
            return vocabulary.encode_own_ids(field, value).alias(field.name)
        return self._encoded(field, value).alias(field.name)

    def _encoded(
        self, field: CategoricalField | MultiValuedField, value: pl.Expr
    ) -> pl.Expr:
        if field.name in self.spec.buckets:
            return vocabulary.encode_buckets(field, value)
        return vocabulary.encode(field, value, self._enums[field.name])

    def _lists(self, field: MultiValuedField, value: pl.Expr) -> pl.Expr:
        """Lists of texts as a struct of ids and weights; equal values add up."""

        def encoded(lists: pl.Series) -> pl.Series:
            counts = lists.list.len().fill_null(0).cast(pl.Int64)
            texts = lists.filter(counts > 0).explode().rename("text").to_frame()
            ids = texts.select(self._encoded(field, pl.col("text"))).to_series()
            ones = np.ones(len(ids), np.float32)
            ragged = Ragged(counts.to_numpy(), ids.to_numpy(), ones).merged()
            columns = zip(("ids", "weights"), ragged.lists(), strict=True)
            return pl.DataFrame(dict(columns)).to_struct(lists.name)

        kept = value.list.head(field.width)
        return kept.map_batches(encoded, return_dtype=LIST_TYPE, is_elementwise=True)

    def _scaled(self, field: NumericalField, value: pl.Expr) -> pl.Expr:
        filled = value.fill_null(self.fill[field.name])
        scaled = (filled - field.mean) / field.scale
        return scaled.cast(pl.Float32).alias(field.name)

    def save(self, folder: Path) -> None:
        """Writes vocabulary.parquet; the manifest holds schema, spec and fills."""
        vocabulary.write_vocabularies(folder, self.schema.embedded, self.values)

    @classmethod
    def load(cls, folder: Path) -> "Encoder":
        """The encoder of a prepared folder."""
        manifest = read_manifest(folder)
        spec, schema = manifest.spec, manifest.schema
        known = {*spec.sizes, *spec.buckets}
        fields = [f for f in schema.embedded if f.name not in known]
        values = vocabulary.read_vocabularies(
            folder, fields, manifest.vocabulary_sha256
        )
        return cls(spec, schema, values, manifest.fill)


def _fitted(
    train: pl.LazyFrame, spec: FlatSpec, source: Source, budget: int | None = None
) -> tuple[dict[str, Reading], dict[str, Reading], Vocabularies]:
    """The readings of all features, those of lists apart, and the vocabularies."""
    readings = features(train, spec, source)
    lists = list_features(train, spec, source)
    columns.refuse_bad(train, (*readings.values(), *lists.values()), source)
    texts = {n: readings[n].value for n in spec.categorical if n not in spec.sizes}
    texts |= {name: reading.value for name, reading in lists.items()}
    for name in spec.buckets:
        texts.pop(name, None)
    least = {n: spec.min_counts.get(n, spec.min_count) for n in texts}
    fitted = vocabulary.fit_vocabularies(train, texts, least, lists, budget)
    return readings, lists, fitted


def features(frame: pl.LazyFrame, spec: FlatSpec, source: Source) -> dict[str, Reading]:
    """How each feature column is read; raises a UserError if one is missing."""
    dtypes = columns.require(frame, (*spec.categorical, *spec.numerical), source)
    readings = {}
    for name in spec.categorical:
        if name in spec.sizes:
            readings[name] = columns.whole_number(name, dtypes[name])
        else:
            kind = spec.kinds.get(name)
            readings[name] = columns.category(name, dtypes[name], kind)
    for name in spec.numerical:
        kind = spec.kinds.get(name)
        readings[name] = columns.number(name, dtypes[name], kind)
    return readings


def _overflow(field: NumericalField, reading: Reading) -> Reading:
    """A reading that refuses values that are infinite in float32 after scaling."""
    column, value, bad, expected = reading
    scaled = ((value - field.mean) / field.scale).abs() > columns.FLOAT32_MAX
    refused = scaled.fill_null(False)
    if bad is not None:
        refused = refused | bad.fill_null(False)
    limits = f"{expected} that float32 holds as (x - {field.mean:g}) / {field.scale:g}"
    return Reading(column, value, refused, limits)


def list_features(
    frame: pl.LazyFrame, spec: FlatSpec, source: Source
) -> dict[str, Reading]:
    """How each multi-valued column is read, as lists of canonical texts."""
    dtypes = columns.require(frame, spec.multi_valued, source)
    return {
        name: columns.categories(
            name, dtypes[name], spec.kinds.get(name), column.separator
        )
        for name, column in spec.multi_valued.items()
    }


def find_kinds(frame: pl.LazyFrame, spec: FlatSpec, source: Source) -> Kinds:
    """The kinds of the columns of a table that `spec.kinds` does not have.

    Numerical columns have one only where they hold booleans.
    """
    dtypes = columns.require(frame, (*spec.features, spec.group), source)
    names = (*spec.categorical, *spec.numerical, *([spec.group] if spec.group else ()))
    values = {n: pl.col(n) for n in names if n not in {*spec.sizes, *spec.kinds}}
    for name, column in spec.multi_valued.items():
        if name not in spec.kinds:
            value, _ = columns.lists(name, dtypes[name], column.separator)
            values[name] = value.explode()
    kinds, mixed = canonical.kinds_of(frame, values)
    numbers = {*spec.numerical} - {*spec.categorical, spec.group}
    return Kinds(
        {n: k for n, k in kinds.items() if n not in numbers or k == "boolean"},
        [name for name in mixed if name not in numbers],
    )


def _longest(frame: pl.LazyFrame, lists: Mapping[str, Reading]) -> dict[str, int]:
    """The length of each multi-valued column's longest list, at least 1."""
    if not lists:
        return {}
    longest = (r.value.list.len().max().alias(name) for name, r in lists.items())
    row = frame.select(longest).collect(engine="streaming").row(0, named=True)
    return {name: max(length or 0, 1) for name, length in row.items()}


def side_columns(spec: FlatSpec, dtypes: pl.Schema) -> dict[str, Reading]:
    """Prepared name -> reading of the columns beside features and labels."""
    readings = {}
    if spec.group:
        readings[GROUP] = columns.group_key(
            spec.group, dtypes[spec.group], spec.kinds.get(spec.group)
        )
    if spec.time:
        readings[TIME] = columns.time_stamp(spec.time, dtypes[spec.time])
    if spec.weight:
        readings[ROW_WEIGHT] = _row_weight(spec.weight, dtypes[spec.weight])
    return readings | {name: columns.number(name, dtypes[name]) for name in spec.extra}


def _row_weight(name: str, dtype: pl.DataType) -> Reading:
    _, value, bad, _ = columns.number(name, dtype)
    refused = value.is_null() | (value < 0) | (value > MOST_WEIGHT)
    if bad is not None:
        refused = refused | bad.fill_null(False)
    expected = f"a weight from 0 to {MOST_WEIGHT:g} in every row"
    return Reading(name, value.cast(pl.Float32), refused, expected)


def _hashed(value: pl.Expr) -> pl.Expr:
    def hashed(values: pl.Series) -> pl.Series:
        return pl.Series(values.name, group_hash(values).view(np.int64))

    return value.map_batches(hashed, return_dtype=pl.Int64, is_elementwise=True)
