"""Batches in memory: a seeded order of rows for training, file order for evaluation.

Every batch has the same shape: the last one is padded with rows of zeros, masked out.
A position in training is one integer, the step, counted over all epochs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pwiser_jax.data.prepared import Rows


class Batch(NamedTuple):
    """B rows of a split.

    Args:
        inputs: {"categorical": int32[B, F], "numerical": float32[B, M]}.
        labels: int8[B, L].
        mask: bool[B], False for padding.
        rows: uint32[B], the place in the batch.
        place: int64[B], the row's place in the split, -1 for padding.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    mask: np.ndarray
    rows: np.ndarray
    place: np.ndarray


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Batches that hold each row once; the last may be partly padding."""
    if rows < 1 or batch_size < 1:
        raise ValueError(
            f"rows is {rows} and batch_size {batch_size}; expected 1 or more of each"
        )
    return -(-rows // batch_size)


def epoch_batches(
    rows: Rows, batch_size: int, *, seed: int, epoch: int, start_step: int = 0
) -> Iterator[Batch]:
    """The batches of an epoch, each row once, in an order of (seed, epoch) alone.

    Args:
        rows: the split.
        batch_size: rows of every batch, the padded last one included.
        seed: of the run; runs with one seed see the same batches.
        epoch: another epoch has another order.
        start_step: batches to leave out at the start, to go on after an interruption.
    """
    steps = steps_per_epoch(len(rows), batch_size)
    if not 0 <= start_step <= steps:
        raise ValueError(f"start_step is {start_step}; expected 0 to {steps}")
    order = np.random.default_rng([seed, epoch]).permutation(len(rows))
    return _batches(rows, order, batch_size, start_step)


def sequential_batches(rows: Rows, batch_size: int) -> Iterator[Batch]:
    """The batches of a split in its own order."""
    steps_per_epoch(len(rows), batch_size)
    return _batches(rows, np.arange(len(rows)), batch_size, 0)


def _batches(
    rows: Rows, order: np.ndarray, batch_size: int, start_step: int
) -> Iterator[Batch]:
    for start in range(start_step * batch_size, len(order), batch_size):
        yield gather(rows, order[start : start + batch_size], batch_size)


def gather(rows: Rows, index: np.ndarray, batch_size: int) -> Batch:
    """The rows of an index, padded to batch_size."""
    missing = batch_size - len(index)
    return Batch(
        inputs={
            "categorical": _padded(rows.categorical[index], missing),
            "numerical": _padded(rows.numerical[index], missing),
        },
        labels=_padded(rows.labels[index], missing),
        mask=np.arange(batch_size) < len(index),
        rows=np.arange(batch_size, dtype=np.uint32),
        place=np.pad(index.astype(np.int64), (0, missing), constant_values=-1),
    )


def _padded(values: np.ndarray, missing: int) -> np.ndarray:
    return np.pad(values, ((0, missing), (0, 0))) if missing else values
