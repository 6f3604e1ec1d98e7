"""A lazy frame as data frames of exactly so many rows, in order, a few at a time."""

from collections.abc import Iterator

import polars as pl


def frames_of(frame: pl.LazyFrame, size: int) -> Iterator[pl.DataFrame]:
    """All rows in order; each frame has `size` rows, the last one what is left."""
    waiting: list[pl.DataFrame] = []
    count = 0
    for part in frame.collect_batches(chunk_size=size, maintain_order=True):
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
