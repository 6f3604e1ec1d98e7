"""Batches: each row once, an order of seed and epoch alone, padding at the end."""

import numpy as np
import pytest

from pwiser_jax.data.batches import (
    Batch,
    epoch_batches,
    sequential_batches,
    steps_per_epoch,
)
from pwiser_jax.data.rows import Rows


def make_rows(count: int) -> Rows:
    """Every value of a row tells which row it is of."""
    at = np.arange(count)
    return Rows(
        inputs={
            "categorical": np.stack([at, at + 1], 1).astype(np.int32),
            "numerical": np.stack([at, at / 2, -at], 1).astype(np.float32),
        },
        labels=np.stack([at % 2, at % 4 == 1], 1).astype(np.int8),
        group=at,
    )


def check(batch: Batch, rows: Rows, batch_size: int) -> None:
    shapes = {key: value.shape for key, value in batch.inputs.items()}
    assert shapes == {"categorical": (batch_size, 2), "numerical": (batch_size, 3)}
    assert batch.inputs["categorical"].dtype == np.int32
    assert batch.inputs["numerical"].dtype == np.float32
    assert batch.labels.dtype == np.int8
    assert batch.mask.dtype == bool
    assert batch.rows.dtype == np.uint32
    np.testing.assert_array_equal(batch.rows, np.arange(batch_size))
    np.testing.assert_array_equal(batch.mask, batch.place >= 0)
    real = batch.place[batch.mask]
    for name, values in batch.inputs.items():
        np.testing.assert_array_equal(values[batch.mask], getattr(rows, name)[real])
        assert not values[~batch.mask].any()
    np.testing.assert_array_equal(batch.labels[batch.mask], rows.labels[real])
    assert not batch.labels[~batch.mask].any()


@pytest.mark.parametrize(("count", "batch_size"), [(10, 5), (11, 5), (3, 8), (1, 1)])
def test_an_epoch_holds_each_row_once(count: int, batch_size: int):
    rows = make_rows(count)
    batches = list(epoch_batches(rows, batch_size, seed=1, epoch=2))
    assert len(batches) == steps_per_epoch(count, batch_size)
    for batch in batches:
        check(batch, rows, batch_size)
    places = np.concatenate([batch.place[batch.mask] for batch in batches])
    assert sorted(places) == list(range(count))
    # Only the end is padded.
    assert all(batch.mask.all() for batch in batches[:-1])
    assert batches[-1].mask.sum() == count - batch_size * (len(batches) - 1)


def order(seed: int, epoch: int, batch_size: int = 7, start_step: int = 0):
    batches = epoch_batches(
        make_rows(100), batch_size, seed=seed, epoch=epoch, start_step=start_step
    )
    return [batch.place.tolist() for batch in batches]


def test_the_order_is_that_of_seed_and_epoch():
    assert order(1, 2) == order(1, 2)
    others = [order(1, 3), order(2, 2), order(2, 1)]
    assert all(order(1, 2) != other for other in others)
    flat = [np.concatenate(order(1, 2, size)).tolist() for size in (5, 10, 50)]
    assert flat[0] == flat[1] == flat[2]


@pytest.mark.parametrize("step", [0, 1, 7, 14, 15])
def test_an_epoch_goes_on_from_any_step(step: int):
    assert order(3, 0, start_step=step) == order(3, 0)[step:]


def test_evaluation_keeps_the_order_of_rows():
    rows = make_rows(23)
    batches = list(sequential_batches(rows, 10))
    for batch in batches:
        check(batch, rows, 10)
    assert [batch.place.tolist() for batch in batches] == [
        list(range(10)),
        list(range(10, 20)),
        [20, 21, 22, *[-1] * 7],
    ]


def test_rows_without_labels():
    rows = make_rows(3)
    bare = Rows(rows.inputs, np.empty((3, 0), np.int8), rows.group)
    (batch,) = sequential_batches(bare, 4)
    assert batch.labels.shape == (4, 0)


def test_bad_sizes_and_steps_are_refused_at_once():
    rows = make_rows(10)
    with pytest.raises(ValueError, match="batch_size 0"):
        sequential_batches(rows, 0)
    with pytest.raises(ValueError, match="rows is 0"):
        epoch_batches(make_rows(0), 5, seed=0, epoch=0)
    for step in (-1, 3):
        with pytest.raises(ValueError, match="expected 0 to 2"):
            epoch_batches(rows, 5, seed=0, epoch=0, start_step=step)
