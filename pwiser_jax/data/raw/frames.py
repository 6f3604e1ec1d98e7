"""Frames as data frames of exactly so many rows, in order, a few at a time."""

from collections.abc import Iterable, Iterator

import polars as pl


def frames_of(frame: pl.LazyFrame, size: int) -> Iterator[pl.DataFrame]:
    """All rows in order; each frame has `size` rows, the last one what is left."""
    batches = frame.collect_batches(chunk_size=size, maintain_order=True)
    yield from resized(batches, size)


def resized(frames: Iterable[pl.DataFrame], size: int) -> Iterator[pl.DataFrame]:
    """The same rows in frames of `size` rows, the last one what is left."""
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
