"""The common intermediate form of the datasets: raw rows, one an exposure, by split.

A reader (`synthetic`, `kuairand`, `aliexpress`, `table`) returns a `FlatTable`, and
`prepared.folder.write` encodes it. `predict` encodes raw rows of the same columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import polars as pl

BadLabel = Literal["error", "drop", "nest", "fill"]
SPLITS = ("train", "valid", "test")


@dataclass(frozen=True)
class FlatSpec:
    """What the columns of a flat table mean.

    Args:
        categorical: categorical columns, of any type but float with fractions.
        numerical: numerical columns; null or NaN becomes train's mean.
        labels: label name -> column of 0 and 1, lowest rung of the ladder first.
        group: column of the search, session or user; None: every row is its own.
        time: integer or date column, kept beside the rows, never a feature.
        weight: column of row weights, at least 0; None: all are 1. Never a feature.
        extra: numeric columns kept beside the rows, never features.
        sizes: categorical columns that hold ids 0 .. size - 1 already; any other
            integer there is unseen. Every other column gets a vocabulary from train.
        min_count: a value seen fewer times than this in train is rare.
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
    min_count: int = 1
    standardize: bool = True
    weight: str | None = None


@dataclass(frozen=True)
class FlatTable:
    """Rows by split with the meaning of their columns and where they came from."""

    dataset: str
    spec: FlatSpec
    splits: Mapping[str, pl.LazyFrame]
    sources: tuple[Path, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
