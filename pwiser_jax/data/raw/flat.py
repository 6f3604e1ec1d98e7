"""The common format of the datasets: raw rows, one per exposure, by split.

A reader (`synthetic`, `kuairand`, `aliexpress`, `table`) returns a `FlatTable`, and
`prepared.folder.write` encodes it. `predict` encodes raw rows of the same columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

from pwiser_jax.data.raw.canonical import Kind
from pwiser_jax.data.raw.columns import Source
from pwiser_jax.schema import Pool

BadLabel = Literal["error", "drop", "nest", "fill"]
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class ListColumn:
    """A column with several categories in each row.

    Args:
        separator: between two values of a text column; None: the column holds lists.
        max_values: maximum number of values per row; the first ones are kept.
        pool: how models pool their vectors, see `schema.MultiValuedField`.
    """

    separator: str | None = None
    max_values: int = 20
    pool: Pool = "mean"


@dataclass(frozen=True)
class FlatSpec:
    """What the columns of a flat table mean.

    Args:
        categorical: categorical columns, of any type but float with fractions.
        numerical: numerical columns; null or NaN becomes train's mean.
        labels: label name -> column of 0 and 1, lowest rung of the ladder first.
        group: column of the search, session or user; None: each row is a group.
        time: integer or date column, kept beside the features, never a feature.
        weight: column of row weights, at least 0; None: all are 1. Never a feature.
        extra: numeric columns kept beside the features, never features.
        sizes: categorical columns that hold ids 0 .. size - 1 already; any other
            integer there is unseen. Every other column gets a vocabulary from train.
        multi_valued: columns that hold several categories in each row.
        min_count: a value seen fewer times than this in train is rare.
        min_counts: the same by column, where it differs.
        buckets: column -> number of ids; values of these categorical or multi-valued
            columns are hashed, without a vocabulary.
        kinds: column -> kind of its values, see `canonical`; of text columns that have
            none, the encoder looks at train.
        standardize: scale numericals by train's mean and standard deviation; False
            leaves them as they are.
    """

    categorical: tuple[str, ...]
    numerical: tuple[str, ...] = ()
    labels: Mapping[str, str] = field(
        default_factory=lambda: {"click": "click", "conversion": "conversion"}
    )
    group: str | None = None
    time: str | None = None
    extra: tuple[str, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    multi_valued: Mapping[str, ListColumn] = field(default_factory=dict)
    min_count: int = 1
    min_counts: Mapping[str, int] = field(default_factory=dict)
    buckets: Mapping[str, int] = field(default_factory=dict)
    kinds: Mapping[str, Kind] = field(default_factory=dict)
    standardize: bool = True
    weight: str | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """The columns of all features."""
        return (*self.categorical, *self.numerical, *self.multi_valued)


@dataclass(frozen=True)
class FlatTable:
    """Rows by split, the meaning of their columns, and their source files.

    Args:
        dataset: the reader's name.
        spec: the meaning of the columns.
        splits: rows by split.
        sources: the raw files.
        dropped: reason -> rows that were dropped or changed.
        options: the reader's options.
        places: split -> how its rows are named in errors; by default by the split.
    """

    dataset: str
    spec: FlatSpec
    splits: Mapping[str, pl.LazyFrame]
    sources: tuple[Path, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    places: Mapping[str, Source] = field(default_factory=dict)
