"""Parquet files by their exact path, and frames in pieces of a fixed size."""

from collections.abc import Iterable, Iterator
from pathlib import Path

import polars as pl


def scan_parquet(paths: Path | list[Path]) -> pl.LazyFrame:
    """The rows of one or several Parquet files.

    A path is a path: Polars would read `x[1].parquet` as a pattern, and a folder called
    `day=1` as a column.
    """
    return pl.scan_parquet(paths, glob=False, hive_partitioning=False)


def frames_of(frame: pl.LazyFrame, size: int) -> Iterator[pl.DataFrame]:
    """All rows in order, in frames of `size` rows; the last frame may be smaller."""
    batches = frame.collect_batches(chunk_size=size, maintain_order=True)
    yield from resized(batches, size)


def resized(frames: Iterable[pl.DataFrame], size: int) -> Iterator[pl.DataFrame]:
    """The same rows in frames of `size` rows; the last frame may be smaller."""
    waiting: list[pl.DataFrame] = []
    count = 0
    for part in frames:
        while count + part.height >= size:
            head = part[: size - count]
            part = part[size - count :]
            yield pl.concat([*waiting, head], rechunk=True)
            waiting, count = [], 0
        if part.height:
            waiting.append(part)
            count += part.height
    if waiting:
        yield pl.concat(waiting, rechunk=True)
