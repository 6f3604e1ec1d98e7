"""Reproducible mean and standard deviation of numerical columns.

A parallel sum of floats depends on how rows are divided among threads. Here blocks of a
fixed size are merged in order by the formula of Chan, Golub and LeVeque (1983), which
does not cancel.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import polars as pl

BLOCK = 65_536


@dataclass
class Moments:
    """Count, mean, sum of squared deviations and range of the values so far."""

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0
    low: float = math.inf
    high: float = -math.inf

    def add(self, values: np.ndarray) -> None:
        """Adds float64[N]."""
        added = len(values)
        if not added:
            return
        mean = float(values.mean())
        difference = mean - self.mean
        total = self.count + added
        self.squares += float(np.square(values - mean).sum())
        self.squares += difference**2 * self.count * added / total
        self.mean += difference * added / total
        self.count = total
        self.low = min(self.low, float(values.min()))
        self.high = max(self.high, float(values.max()))

    @property
    def scale(self) -> float:
        """The standard deviation (divided by N); 1 where all values are equal."""
        if self.low >= self.high:
            return 1.0
        return math.sqrt(self.squares / self.count) or 1.0


def moments(frame: pl.LazyFrame, columns: Mapping[str, pl.Expr]) -> dict[str, Moments]:
    """The moments of float64 columns by name, nulls left out, in one pass."""
    moments_of = {name: Moments() for name in columns}
    if columns:
        selected = frame.select(expr.alias(name) for name, expr in columns.items())
        for block in selected.collect_batches(chunk_size=BLOCK, maintain_order=True):
            for name, series in zip(columns, block, strict=True):
                moments_of[name].add(series.drop_nulls().to_numpy())
    return moments_of
