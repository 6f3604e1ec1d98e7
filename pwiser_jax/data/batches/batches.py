"""Batches of equal shape: a seeded order for training, file order for evaluation.

The last batch is padded with rows of zeros, masked out. A position in training is one
integer, the step, counted over all epochs.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from pwiser_jax.data.batches.order import BLOCK, WINDOW, EpochOrder
from pwiser_jax.data.batches.rows import Rows, taken

# What is asked of the disk at once and then held in memory, in file order too.
AT_ONCE = BLOCK * WINDOW


class Batch(NamedTuple):
    """Rows of a split: a global batch of B, or one process's share of it.

    Args:
        inputs: of the models, each [B, columns]; see `rows`.
        labels: int8[B, L].
        mask: bool[B], False for padding.
        rows: uint32[B], the place in the global batch.
        place: int64[B], the row's place in the split, -1 for padding.
        weights: float32[B], what the row weighs in the cross-entropy; 0 for padding.
    """

    inputs: dict[str, np.ndarray]
    labels: np.ndarray
    mask: np.ndarray
    rows: np.ndarray
    place: np.ndarray
    weights: np.ndarray


class Taken(NamedTuple):
    """Which rows a batch, or one process's share of it, is made of.

    Args:
        places: int64[<= B], in the split; fewer than B in an epoch's last batch.
        rows: uint32[B], places in the global batch.
        conversion_weight: of a conversion in the cross-entropy; other rows weigh 1.
    """

    places: np.ndarray
    rows: np.ndarray
    conversion_weight: float


def steps_per_epoch(rows: int, batch_size: int, min_conversions: int = 0) -> int:
    """Batches that hold each row once; the last may be partly padding."""
    own = batch_size - min_conversions
    if rows < 1 or own < 1 or min_conversions < 0:
        raise ValueError(
            f"rows is {rows}, batch_size {batch_size} and min_conversions "
            f"{min_conversions}; expected 1 or more rows, and a batch above them"
        )
    return -(-rows // own)


def epoch_batches(rows: Rows, batch_size: int, **order: int) -> Iterator[Batch]:
    """The batches of an epoch: the rows that `epoch_order` takes, of its arguments."""
    taken_rows = epoch_order(rows, batch_size, **order)
    return (gather(rows, each) for each in taken_rows)


def epoch_order(
    rows: Rows,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start_step: int = 0,
    min_conversions: int = 0,
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Taken]:
    """The rows of an epoch's batches, each once, in an order of (seed, epoch) alone.

    With n = min_conversions, a batch holds B - n rows of that order and n conversions
    (rows with the highest label) of their own: all C of them in a random order, then
    again in another. Over the S batches of an epoch a conversion is shown 1 + S n / C
    times on average over seeds and, within one of that, always; with the weight
    C / (C + S n) every row counts once, so that the expected weighted sum of any loss
    over an epoch is the plain sum. (A batch's weighted mean divides by its sum of
    weights, which is B - n on average and varies by about the root of the number of
    conversions that the order itself brings: at rates of .1% a bias of 1e-4 or less.)

    Weights are for the cross-entropy. Pair losses are means over the pairs of the batch
    as it is. Batch normalisation counts every shown row once, too: its statistics are
    those of a mixture in which conversions are (C + S n) / (N + S n) of the rows rather
    than C / N, at n = 8 of 2,048 rows .4% more; the running mean of a unit moves by
    that share of the distance between its means on conversions and on other rows.

    Args:
        rows: the split.
        batch_size: rows of every global batch, the padded last one included.
        seed: of the run; runs with one seed see the same batches.
        epoch: another epoch has another order.
        start_step: batches to leave out at the start, to go on after an interruption.
        min_conversions: n; 0 leaves conversions to chance.
        process_index: which share of each global batch: places process_index,
            process_index + process_count, ... In all but the last window such a share
            lies in blocks of its own, where process_count is a power of two up to 128.
        process_count: must divide batch_size. What a global batch holds, and where,
            does not depend on it.
    """
    steps = steps_per_epoch(len(rows), batch_size, min_conversions)
    if not 0 <= start_step <= steps:
        raise ValueError(f"start_step is {start_step}; expected 0 to {steps}")
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"process {process_index} of {process_count} has no equal share of "
            f"batch_size {batch_size}"
        )
    if min_conversions and not len(rows.conversions):
        raise ValueError("min_conversions needs rows with the highest label")
    own = batch_size - min_conversions
    order = EpochOrder(len(rows), seed=seed, epoch=epoch)
    indices = _ordered(rows, order, start_step * own, own, process_index, process_count)
    if min_conversions:
        count = len(rows.conversions)
        weight = count / (count + steps * min_conversions)
        more = _conversions(
            rows.conversions, (seed, epoch), start_step, min_conversions
        )
    else:
        weight, more = 1.0, None

    def taken_rows() -> Iterator[Taken]:
        share = np.arange(process_index, batch_size, process_count, dtype=np.uint32)
        for index in indices:
            if more is not None:
                index = np.concatenate([index, next(more)])
            yield Taken(index[process_index::process_count], share, weight)

    return taken_rows()


def sequential_batches(
    rows: Rows, batch_size: int, start: int = 0, stop: int | None = None
) -> Iterator[Batch]:
    """The batches of a split, or of its rows start .. stop - 1, in its own order."""
    steps_per_epoch(len(rows), batch_size)
    end = len(rows) if stop is None else stop

    def batches() -> Iterator[Batch]:
        places = np.arange(batch_size, dtype=np.uint32)
        asked = start
        for first in range(start, end, batch_size):
            last = min(first + batch_size, end)
            if last > asked:
                rows.done()
                asked = max(asked + AT_ONCE, last)
                rows.soon(first, min(asked, end))
            yield gather(rows, Taken(np.arange(first, last), places, 1.0))

    return batches()


def _ordered(
    rows: Rows, order: EpochOrder, start: int, size: int, process: int, processes: int
) -> Iterator[np.ndarray]:
    """The order from a place on, `size` rows at a time."""
    first, offset = order.first_window(start)
    waiting = np.empty(0, np.int64)

    def ask(number: int) -> None:
        for at in order.ranges(number, process, processes):
            rows.soon(*at)

    ask(first)
    for number, window in enumerate(order.windows(first), first):
        if number + 1 < order.count:
            ask(number + 1)
        waiting = np.concatenate([waiting, window.rows[offset:]])
        offset = 0
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
        rows.done()
    if len(waiting):
        yield waiting


def _conversions(
    rows: np.ndarray, key: tuple[int, int], start_step: int, size: int
) -> Iterator[np.ndarray]:
    """`size` conversions at a time, from endless permutations of all of them."""
    pass_, skipped = divmod(start_step * size, len(rows))
    waiting = np.empty(0, np.int64)
    while True:
        while len(waiting) < size:
            # (seed, epoch, 0) would be the order's own draw.
            random = np.random.default_rng((*key, 0, 1 + pass_))
            waiting = np.concatenate([waiting, random.permutation(rows)[skipped:]])
            skipped, pass_ = 0, pass_ + 1
        yield waiting[:size]
        waiting = waiting[size:]


def gather(rows: Rows, taken_rows: Taken) -> Batch:
    """The rows of an index, padded to the length of their places in the batch."""
    index, places, conversion_weight = taken_rows
    missing = len(places) - len(index)
    labels = taken(rows.labels, index)
    weights = np.ones(len(index), np.float32)
    if conversion_weight != 1:
        weights[labels[:, -1] == 1] = conversion_weight
    return Batch(
        inputs={
            name: _padded(values, missing) for name, values in rows.take(index).items()
        },
        labels=_padded(labels, missing),
        mask=np.arange(len(places)) < len(index),
        rows=places,
        place=np.pad(index.astype(np.int64), (0, missing), constant_values=-1),
        weights=_padded(weights, missing),
    )


def _padded(values: np.ndarray, missing: int) -> np.ndarray:
    if not missing:
        return values
    return np.pad(values, ((0, missing), *((0, 0) for _ in values.shape[1:])))
