"""Batches of equal shape: a seeded order for training, file order for evaluation.

The last batch is padded with zeros, and `mask` is False there. A position in training
is one integer, the step, counted over all epochs.
"""

from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal, NamedTuple

import numpy as np

from pwiser_jax.data.batches.order import BLOCK, WINDOW, EpochOrder
from pwiser_jax.data.batches.rows import Rows, take_rows
from pwiser_jax.errors import UserError

Order = Literal["rows", "groups"]

READ_AHEAD = BLOCK * WINDOW
"""Rows that are requested from the disk together, and kept in memory until used."""
MEASURED_ROWS = 1 << 20
"""Rows of an epoch that `paired_conversions` looks at."""


class Batch(NamedTuple):
    """A global batch of B rows, or one process's share of it. An epoch's last batch,
    and any batch in the order `groups`, may end with padding. The last three fields are
    None where training does not use them.

    Args:
        inputs: the models' inputs, each [B, columns]; see `rows`.
        labels: int8[B, L].
        mask: bool[B], False for padding.
        rows: uint32[B], index in the global batch.
        weights: float32[B], weight in the cross-entropies: the row's weight times the
            correction for `min_conversions`; 0 for padding.
        pair_weights: float32[B], the row's weight without that correction; None: 1.
        groups: int32[B], codes of the split's groups, the same in every process.
        values: float32[B], weight of the pairs in which the row is the higher one.
    """

    inputs: dict[str, Any]
    labels: Any
    mask: Any
    rows: Any
    weights: Any
    pair_weights: Any = None
    groups: Any = None
    values: Any = None


class Selection(NamedTuple):
    """The rows of a split in a batch, or in one process's share of it.

    Args:
        indices: int64[<= B], rows of the split; fewer than B are padded.
        rows: uint32[B], indices in the global batch.
        conversion_weight: multiplies the cross-entropy weight of conversions.
    """

    indices: np.ndarray
    rows: np.ndarray
    conversion_weight: float


def steps_per_epoch(
    rows: Rows, batch_size: int, *, min_conversions: int = 0, order: Order = "rows"
) -> int:
    """The number of batches that hold each row once.

    Raises:
        ValueError: no rows, or a batch without room for rows besides the minimum.
        UserError: `min_conversions` with the order `groups`.
    """
    free = batch_size - min_conversions
    if len(rows) < 1 or free < 1 or min_conversions < 0:
        raise ValueError(
            f"rows is {len(rows)}, batch_size {batch_size} and min_conversions "
            f"{min_conversions}; expected 1 or more rows, and a batch above them"
        )
    if order == "groups":
        if min_conversions:
            raise UserError(
                "data.min_conversions adds conversions without their groups: it needs "
                "data.order rows"
            )
        return rows.by_group.packing(batch_size).steps
    return -(-len(rows) // free)


def epoch_batches(rows: Rows, batch_size: int, **options: Any) -> Iterator[Batch]:
    """The batches of an epoch; takes the arguments of `epoch_order`."""
    selections = epoch_order(rows, batch_size, **options)
    return (gather(rows, selection) for selection in selections)


def epoch_order(
    rows: Rows,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    start_step: int = 0,
    min_conversions: int = 0,
    order: Order = "rows",
    process_index: int = 0,
    process_count: int = 1,
) -> Iterator[Selection]:
    """The rows of an epoch's batches, each row once, ordered by (seed, epoch).

    The order "rows" shuffles rows (see `order`). The order "groups" fills batches with
    whole groups (see `groups`): the last rows of a batch are padding where the next
    group does not fit, and a group of more than B rows is cut.

    With n = min_conversions, a batch holds B - n rows of that order and n further
    conversions (rows with the highest label): all C of them in a random order, then
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
        seed: seed of the run; runs with the same seed see the same batches.
        epoch: another epoch has another order.
        start_step: number of batches to skip, to resume an epoch.
        min_conversions: n; 0 leaves conversions to chance.
        order: "rows" or "groups".
        process_index: which share of each global batch: places process_index,
            process_index + process_count, ... In all but the last window such a share
            lies in blocks of its own, where process_count is a power of two up to 128.
        process_count: must divide batch_size. What a global batch holds, and where,
            does not depend on it.
    """
    steps = steps_per_epoch(
        rows, batch_size, min_conversions=min_conversions, order=order
    )
    if not 0 <= start_step <= steps:
        raise ValueError(f"start_step is {start_step}; expected 0 to {steps}")
    if batch_size % process_count or not 0 <= process_index < process_count:
        raise ValueError(
            f"process {process_index} of {process_count} has no equal share of "
            f"batch_size {batch_size}"
        )
    if min_conversions and not len(rows.conversions):
        raise ValueError("min_conversions needs rows with the highest label")
    free = batch_size - min_conversions
    if order == "groups":
        batches = _of_groups(rows, batch_size, seed, epoch, start_step)
    else:
        epoch_rows = EpochOrder(len(rows), seed=seed, epoch=epoch)
        start = start_step * free
        batches = _in_order(rows, epoch_rows, start, free, process_index, process_count)
    if min_conversions:
        count = len(rows.conversions)
        weight = count / (count + steps * min_conversions)
        further = _conversions(
            rows.conversions, (seed, epoch), start_step, min_conversions
        )
    else:
        weight, further = 1.0, None

    def selections() -> Iterator[Selection]:
        share = np.arange(process_index, batch_size, process_count, dtype=np.uint32)
        for indices in batches:
            if further is not None:
                indices = np.concatenate([indices, next(further)])
            yield Selection(indices[process_index::process_count], share, weight)

    return selections()


def sequential_batches(
    rows: Rows, batch_size: int, start: int = 0, stop: int | None = None
) -> Iterator[Batch]:
    """The batches of a split, or of its rows start .. stop - 1, in file order."""
    steps_per_epoch(rows, batch_size)
    end = len(rows) if stop is None else stop

    def batches() -> Iterator[Batch]:
        places = np.arange(batch_size, dtype=np.uint32)
        requested = start
        for first in range(start, end, batch_size):
            last = min(first + batch_size, end)
            if last > requested:
                rows.release()
                requested = max(requested + READ_AHEAD, last)
                rows.will_need(first, min(requested, end))
            yield gather(rows, Selection(np.arange(first, last), places, 1.0))

    return batches()


def paired_conversions(
    rows: Rows, batch_size: int, *, seed: int = 0, **options: Any
) -> float | None:
    """Share of conversions with a lower row of their group in the batch.

    With `loss.segments: group` the other conversions train no ranking. Measured on the
    first 2^20 rows of epoch 0, or all if there are fewer.

    Args:
        rows: the split.
        batch_size: B.
        seed: seed of the run.
        options: `order` and `min_conversions`, see `epoch_order`.

    Returns:
        The share, or None where those rows hold no conversion.
    """
    selections = epoch_order(rows, batch_size, seed=seed, epoch=0, **options)
    conversions = paired = 0
    for indices, _, _ in islice(selections, -(-MEASURED_ROWS // batch_size)):
        converted = take_rows(rows.labels, indices)[:, -1] == 1
        group = take_rows(rows.group, indices)
        conversions += int(converted.sum())
        paired += int(np.isin(group[converted], group[~converted]).sum())
    return paired / conversions if conversions else None


def _of_groups(
    rows: Rows, batch_size: int, seed: int, epoch: int, start_step: int
) -> Iterator[np.ndarray]:
    batches = rows.by_group.batches(
        batch_size, seed=seed, epoch=epoch, start_step=start_step
    )
    read = 0
    for indices in batches:
        yield indices
        read += len(indices)
        if read >= READ_AHEAD:
            rows.release()
            read = 0


def _in_order(
    rows: Rows, order: EpochOrder, start: int, size: int, process: int, processes: int
) -> Iterator[np.ndarray]:
    """Yields the rows of an order from a position on, `size` at a time."""
    first, offset = order.first_window(start)
    waiting = np.empty(0, np.int64)

    def request(number: int) -> None:
        for start, stop in order.ranges(number, process, processes):
            rows.will_need(start, stop)

    request(first)
    for number, window in enumerate(order.windows(first), first):
        if number + 1 < order.count:
            request(number + 1)
        waiting = np.concatenate([waiting, window.rows[offset:]])
        offset = 0
        while len(waiting) >= size:
            yield waiting[:size]
            waiting = waiting[size:]
        rows.release()
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
            # (seed, epoch, 0) would repeat the draw of the order.
            random = np.random.default_rng((*key, 0, 1 + pass_))
            waiting = np.concatenate([waiting, random.permutation(rows)[skipped:]])
            skipped, pass_ = 0, pass_ + 1
        yield waiting[:size]
        waiting = waiting[size:]


def gather(rows: Rows, selection: Selection) -> Batch:
    """The selected rows, padded with zeros to the batch's size."""
    indices, places, conversion_weight = selection
    missing = len(places) - len(indices)

    def column(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else _padded(take_rows(values, indices), missing)

    labels = take_rows(rows.labels, indices)
    if rows.weight is None:
        weights = np.ones(len(indices), np.float32)
    else:
        weights = take_rows(rows.weight, indices)
    if conversion_weight != 1:
        weights[labels[:, -1] == 1] *= np.float32(conversion_weight)
    return Batch(
        inputs={
            name: _padded(values, missing)
            for name, values in rows.take(indices).items()
        },
        labels=_padded(labels, missing),
        mask=np.arange(len(places)) < len(indices),
        rows=places,
        weights=_padded(weights, missing),
        pair_weights=column(rows.weight),
        groups=column(rows.group_codes),
        values=column(rows.pair_values),
    )


def _padded(values: np.ndarray, missing: int) -> np.ndarray:
    if not missing:
        return values
    return np.pad(values, ((0, missing), *((0, 0) for _ in values.shape[1:])))
