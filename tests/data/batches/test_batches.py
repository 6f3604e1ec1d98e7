"""Batches: each row once, ordered by seed and epoch, padding at the end."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from pwiser_jax.data.batches.batches import (
    Batch,
    epoch_batches,
    epoch_order,
    paired_conversions,
    sequential_batches,
    steps_per_epoch,
)
from pwiser_jax.data.batches.order import EpochOrder
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.errors import UserError


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


def place(batch: Batch) -> np.ndarray:
    """int64[B]: the row of the split at each place of a batch, -1 for padding."""
    return np.where(batch.mask, batch.inputs["categorical"][:, 0], -1).astype(np.int64)


def check(batch: Batch, rows: Rows, batch_size: int) -> None:
    shapes = {key: value.shape for key, value in batch.inputs.items()}
    assert shapes == {"categorical": (batch_size, 2), "numerical": (batch_size, 3)}
    assert batch.inputs["categorical"].dtype == np.int32
    assert batch.inputs["numerical"].dtype == np.float32
    assert batch.labels.dtype == np.int8
    assert batch.mask.dtype == bool
    assert batch.rows.dtype == np.uint32
    np.testing.assert_array_equal(batch.rows, np.arange(batch_size))
    # Padding is at the end alone.
    np.testing.assert_array_equal(np.sort(~batch.mask), ~batch.mask)
    real = place(batch)[batch.mask]
    for name, values in batch.inputs.items():
        np.testing.assert_array_equal(values[batch.mask], getattr(rows, name)[real])
        assert not values[~batch.mask].any()
    np.testing.assert_array_equal(batch.labels[batch.mask], rows.labels[real])
    assert not batch.labels[~batch.mask].any()


@pytest.mark.parametrize(("count", "batch_size"), [(10, 5), (11, 5), (3, 8), (1, 1)])
def test_an_epoch_holds_each_row_once(count: int, batch_size: int):
    rows = make_rows(count)
    batches = list(epoch_batches(rows, batch_size, seed=1, epoch=2))
    assert len(batches) == steps_per_epoch(rows, batch_size)
    for batch in batches:
        check(batch, rows, batch_size)
    places = np.concatenate([place(batch)[batch.mask] for batch in batches])
    assert sorted(places) == list(range(count))
    # Only the end is padded.
    assert all(batch.mask.all() for batch in batches[:-1])
    assert batches[-1].mask.sum() == count - batch_size * (len(batches) - 1)


def order(seed: int, epoch: int, batch_size: int = 7, start_step: int = 0):
    batches = epoch_batches(
        make_rows(100), batch_size, seed=seed, epoch=epoch, start_step=start_step
    )
    return [place(batch).tolist() for batch in batches]


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
    assert [place(batch).tolist() for batch in batches] == [
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


def batches_of(rows: Rows, **options: Any) -> list[Batch]:
    return list(epoch_batches(rows, 12, seed=3, epoch=1, **options))


@pytest.mark.parametrize("processes", [2, 3, 4])
@pytest.mark.parametrize("conversions", [0, 4])
def test_processes_share_the_batches_of_one(processes: int, conversions: int):
    rows = make_rows(100)
    whole = batches_of(rows, min_conversions=conversions)
    shares = [
        batches_of(
            rows,
            min_conversions=conversions,
            process_index=process,
            process_count=processes,
        )
        for process in range(processes)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        assert all(len(part.mask) == 12 // processes for part in parts)
        at = np.concatenate([part.rows for part in parts])
        np.testing.assert_array_equal(np.sort(at), np.arange(12))
        for name in ("mask", "labels", "weights"):
            got = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(got, getattr(batch, name)[at])
        for name, values in batch.inputs.items():
            got = np.concatenate([part.inputs[name] for part in parts])
            np.testing.assert_array_equal(got, values[at])


def test_batches_do_not_see_the_windows(monkeypatch: pytest.MonkeyPatch):
    """Batches that do not divide a window hold each row once, from any step on."""
    monkeypatch.setattr(
        EpochOrder.__init__, "__kwdefaults__", {"block": 4, "window": 4}
    )
    rows = make_rows(4 * 4 * 5 + 7)
    batches = batches_of(rows)
    places = np.concatenate([place(batch)[batch.mask] for batch in batches])
    assert sorted(places) == list(range(len(rows)))
    assert len(list(EpochOrder(len(rows), seed=3, epoch=1).windows(0))) == 5
    for step in (1, 3, 6, 7):
        again = batches_of(rows, start_step=step)
        for one, other in zip(again, batches[step:], strict=True):
            np.testing.assert_array_equal(place(one), place(other))


def test_without_a_wish_for_conversions_all_rows_weigh_the_same():
    for batch in batches_of(make_rows(100)):
        np.testing.assert_array_equal(batch.weights, batch.mask)


@pytest.mark.parametrize("wanted", [1, 3, 11])
def test_every_batch_has_the_conversions_that_are_wanted(wanted: int):
    rows = make_rows(100)  # 25 conversions
    batches = batches_of(rows, min_conversions=wanted)
    assert len(batches) == steps_per_epoch(rows, 12, min_conversions=wanted)
    shown = np.concatenate([place(batch)[batch.mask] for batch in batches])
    times = np.bincount(shown, minlength=100)
    converted = rows.labels[:, 1] == 1
    assert (times[~converted] == 1).all()
    # All conversions in turn: none is shown twice more than another.
    assert np.ptp(times[converted]) <= 1
    assert times[converted].sum() == 25 + wanted * len(batches)
    for batch in batches:
        assert (batch.labels[:, 1] == 1).sum() >= wanted
        own = np.sort(place(batch)[batch.mask])
        assert len(own) == 12 or batch is batches[-1]
        weight = np.where(batch.labels[:, 1], 25 / (25 + wanted * len(batches)), 1)
        np.testing.assert_allclose(batch.weights, weight * batch.mask, rtol=1e-6)
    again = batches_of(rows, min_conversions=wanted, start_step=len(batches) // 2)
    for one, other in zip(again, batches[len(batches) // 2 :], strict=True):
        np.testing.assert_array_equal(place(one), place(other))


def weighted_sum(rows: Rows, loss: np.ndarray, batch_size: int, **key: int) -> float:
    batches = epoch_batches(rows, batch_size, min_conversions=5, **key)
    return sum(
        float((batch.weights * loss[place(batch)])[batch.mask].sum())
        for batch in batches
    )


def test_the_weighted_sum_of_an_epoch_is_the_plain_one():
    """Exactly, where the conversions come round whole times: 5 x 20 = 4 x 25."""
    rows = make_rows(100)
    loss = np.random.default_rng(0).exponential(size=100)
    found = weighted_sum(rows, loss, batch_size=10, seed=0, epoch=0)
    np.testing.assert_allclose(found, loss.sum(), rtol=1e-6)


def test_the_weighted_sum_is_the_plain_one_on_average():
    """Else over epochs: 5 sigma of 400 of them."""
    rows = make_rows(104)
    loss = np.random.default_rng(1).exponential(size=104)
    found = np.array(
        [weighted_sum(rows, loss, 12, seed=0, epoch=epoch) for epoch in range(400)]
    )
    assert found.std() > 0
    assert abs(found.mean() - loss.sum()) < 5 * found.std() / np.sqrt(400)


def test_bad_shares_and_wishes_are_refused_at_once():
    rows = make_rows(10)
    for process, count in [(0, 5), (2, 2), (-1, 2)]:
        with pytest.raises(ValueError, match="no equal share of batch_size 12"):
            batches_of(rows, process_index=process, process_count=count)
    for wanted in (-1, 12):
        with pytest.raises(ValueError, match="min_conversions"):
            batches_of(rows, min_conversions=wanted)
    rows.labels[:, 1] = 0
    with pytest.raises(ValueError, match="highest label"):
        batches_of(rows, min_conversions=1)


def grouped_rows(count: int, groups: int, seed: int = 0) -> Rows:
    """Rows whose groups are scattered over the file."""
    rows = make_rows(count)
    group = np.random.default_rng(seed).integers(groups, size=count) * 7 - 30
    return dataclasses.replace(rows, group=group).with_pair_columns(groups=True)


GROUPS: dict[str, Any] = {"order": "groups"}


@pytest.mark.parametrize("groups", [1, 3, 17, 90])
def test_groups_stay_whole(groups: int):
    rows = grouped_rows(100, groups)
    batches = batches_of(rows, **GROUPS)
    assert len(batches) == steps_per_epoch(rows, 12, **GROUPS)
    shown = np.concatenate([place(batch)[batch.mask] for batch in batches])
    assert sorted(shown) == list(range(100))
    _, codes, sizes = np.unique(rows.group, return_inverse=True, return_counts=True)
    for batch in batches:
        real = place(batch)[batch.mask]
        np.testing.assert_array_equal(batch.groups[batch.mask], codes[real])
        here = np.bincount(codes[real], minlength=len(sizes))
        whole = (here == 0) | (here == sizes)
        # A group of more rows than a batch comes in pieces, and only such a group.
        assert (whole | (sizes > 12)).all()
    packing = rows.by_group.packing(12)
    assert packing.cut_groups == np.count_nonzero(sizes > 12)


def test_batches_are_full_but_for_the_group_that_does_not_fit():
    rows = grouped_rows(1000, 400)
    _, sizes = np.unique(rows.group, return_counts=True)
    packing = rows.by_group.packing(50)
    counts = [int(packing.sizes[pieces].sum()) for pieces in packing.batches(0, 0)]
    assert sorted(counts)[1] > 50 - sizes.max()


def test_the_order_of_groups_is_that_of_seed_and_epoch_and_resumes():
    rows = grouped_rows(200, 60)

    def shown(seed: int, epoch: int, start: int = 0) -> list[list[int]]:
        order = epoch_order(
            rows, 12, seed=seed, epoch=epoch, start_step=start, **GROUPS
        )
        return [each.indices.tolist() for each in order]

    assert shown(1, 2) == shown(1, 2)
    assert all(shown(1, 2) != shown(*key) for key in [(1, 3), (2, 2), (2, 1)])
    assert len(shown(1, 2)) == len(shown(5, 7))
    for step in (0, 1, 9):
        assert shown(1, 2, step) == shown(1, 2)[step:]


def test_groups_meet_other_groups_in_another_epoch():
    """Each pair of groups of one size shares a batch equally often, to 5 sigma."""
    rows = dataclasses.replace(make_rows(40), group=np.arange(40) // 2)
    together = np.zeros((20, 20))
    epochs = 2_000
    for epoch in range(epochs):
        for each in epoch_order(rows, 8, seed=0, epoch=epoch, **GROUPS):
            groups = np.unique(rows.group[each.indices])
            together[np.ix_(groups, groups)] += 1
    chance = 3 / 19
    pairs = together[~np.eye(20, dtype=bool)] / epochs
    assert np.abs(pairs - chance).max() < 5 * np.sqrt(chance * (1 - chance) / epochs)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_share_the_batches_of_groups(processes: int):
    rows = grouped_rows(100, 30)
    whole = batches_of(rows, **GROUPS)
    shares = [
        batches_of(rows, process_index=at, process_count=processes, **GROUPS)
        for at in range(processes)
    ]
    for batch, *parts in zip(whole, *shares, strict=True):
        at = np.concatenate([part.rows for part in parts])
        for name in ("mask", "groups", "labels"):
            got = np.concatenate([getattr(part, name) for part in parts])
            np.testing.assert_array_equal(got, getattr(batch, name)[at])


def test_min_conversions_needs_the_order_of_rows():
    with pytest.raises(UserError, match=r"it needs data\.order rows"):
        epoch_order(
            grouped_rows(20, 5), 6, seed=0, epoch=0, min_conversions=1, **GROUPS
        )


def test_the_share_of_conversions_with_a_pair_in_their_batch():
    """Groups (0, 1), (2, 3), ...: the odd rows 1, 5, 9, ... convert, 0, 4, ... not."""
    rows = dataclasses.replace(make_rows(400), group=np.arange(400) // 2)
    assert paired_conversions(rows, 10, **GROUPS) == 1
    shares = [paired_conversions(rows, 10, seed=seed) for seed in range(50)]
    # Any of the 399 other rows is as likely as another in one of the 9 places.
    assert abs(np.mean(np.array(shares, float)) - 9 / 399) < 0.01
    rows.labels[:] = 0
    assert paired_conversions(rows, 10) is None


def test_weights_and_pair_values_are_those_of_the_rows():
    count = 50
    rows = dataclasses.replace(
        make_rows(count),
        weight=np.linspace(0, 3, count, dtype=np.float32),
        extra={"price": np.linspace(1, 9, count)},
    )
    for batch in batches_of(rows):
        assert batch.groups is None
        assert batch.values is None
    asked = rows.with_pair_columns(groups=True, pair_value="price")
    for batch in batches_of(asked, min_conversions=3):
        real, at = batch.mask, place(batch)[batch.mask]
        np.testing.assert_array_equal(batch.pair_weights[real], asked.weight[at])
        np.testing.assert_array_equal(
            batch.values[real], asked.extra["price"][at].astype(np.float32)
        )
        np.testing.assert_array_equal(batch.groups[real], at)
        steps = steps_per_epoch(rows, 12, min_conversions=3)
        share = np.where(batch.labels[real, 1], 13 / (13 + 3 * steps), 1)
        np.testing.assert_allclose(
            batch.weights[real], asked.weight[at] * share, rtol=1e-6
        )
        for values in (batch.weights, batch.pair_weights, batch.values, batch.groups):
            assert not values[~real].any()


@pytest.mark.parametrize("bad", [-1.0, np.nan, np.inf, 1e39])
def test_pair_values_that_are_no_weights_are_refused(bad: float):
    rows = dataclasses.replace(make_rows(4), extra={"price": np.array([1, 2, bad, 3])})
    with pytest.raises(UserError, match=r"column 'price', row 3 of the split, is"):
        rows.with_pair_columns(pair_value="price")
    with pytest.raises(UserError, match=r"'cost' is no extra column .*price"):
        rows.with_pair_columns(pair_value="cost")
