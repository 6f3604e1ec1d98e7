"""The epoch order: each row once, read in blocks, and random."""

import numpy as np
import pytest

from pwiser_jax.data.batches.order import EpochOrder

SMALL = {"block": 4, "window": 8}
ROWS = 4 * 8 * 5 + 4 * 3 + 2  # five windows and some, and an incomplete block


def order(rows: int = ROWS, seed: int = 0, epoch: int = 0) -> EpochOrder:
    return EpochOrder(rows, seed=seed, epoch=epoch, **SMALL)


def rows_of(one: EpochOrder, start: int = 0) -> np.ndarray:
    """The rows of an order from a place on."""
    return np.concatenate([window.rows for window in one.windows(0)])[start:]


def places(seed: int, rows: int = ROWS) -> np.ndarray:
    """The place of each row."""
    return np.argsort(rows_of(order(rows, seed=seed)))


@pytest.mark.parametrize("rows", [1, 3, 31, 32, 63, 64, 65, 96, ROWS])
def test_each_row_comes_once(rows: int):
    assert sorted(rows_of(order(rows))) == list(range(rows))


@pytest.mark.parametrize("rows", [1, 31, 63])
def test_fewer_rows_than_two_windows_are_permuted_as_a_whole(rows: int):
    expected = np.random.default_rng([3, 5]).permutation(rows)
    np.testing.assert_array_equal(rows_of(order(rows, 3, 5)), expected)


def test_the_order_is_that_of_seed_and_epoch():
    def rows(*key: int) -> list[int]:
        return rows_of(order(ROWS, *key)).tolist()

    assert rows(1, 2) == rows(1, 2)
    assert len({tuple(rows(*key)) for key in [(1, 2), (1, 3), (2, 2), (2, 1)]}) == 4


def test_a_window_reads_whole_blocks_and_the_last_one_what_is_left():
    parts = list(order().windows(0))
    assert [len(part.rows) for part in parts] == [32, 32, 32, 32, ROWS - 4 * 32]
    for part in parts:
        lying = [np.arange(*at) for at in part.ranges]
        np.testing.assert_array_equal(
            np.sort(np.concatenate(lying)), np.sort(part.rows)
        )
    assert parts[-1].ranges[-1] == (ROWS - 2, ROWS)
    assert all(len(part.ranges) == 8 for part in parts[:-1])


def test_a_window_deals_its_blocks_in_turn():
    for part in list(order().windows(0))[:-1]:
        blocks = part.rows.reshape(4, 8) // 4
        np.testing.assert_array_equal(blocks, np.broadcast_to(blocks[:1], (4, 8)))
        assert len(set(blocks[0])) == 8


@pytest.mark.parametrize("start", [0, 5, 32, 100, 128, 150, ROWS - 1, ROWS])
def test_an_order_goes_on_from_any_place(start: int):
    one = order()
    number, offset = one.first_window(start)
    parts = [part.rows for part in one.windows(number)]
    rest = np.concatenate([*parts, []])[offset:]
    np.testing.assert_array_equal(rest, rows_of(one, start))


@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_the_rows_of_a_process_lie_in_blocks_of_its_own(processes: int):
    one = order()
    for number, part in enumerate(list(one.windows(0))[:-1]):
        for process in range(processes):
            ranges = one.ranges(number, process, processes)
            lying = np.concatenate([np.arange(*at) for at in ranges])
            np.testing.assert_array_equal(
                np.sort(lying), np.sort(part.rows[process::processes])
            )


def test_every_row_is_equally_likely_at_every_place():
    """5 sigma of the mean place, of 1,000 seeds; the cut block is always late."""
    found = np.stack([places(seed) for seed in range(1_000)])
    mean, spread = (ROWS - 1) / 2, ROWS / np.sqrt(12) / np.sqrt(1_000)
    assert np.abs(found[:, :-2].mean(0) - mean).max() < 5 * spread + 1
    assert (found[:, -2:] >= 4 * 32).all()


def test_the_variance_of_a_batch_is_the_formula_of_the_docstring():
    """A rate that drifts along the file, in windows of 8 of 64 blocks."""
    b, k, n, size = 16, 8, 64, 32
    x = np.arange(n * b) / (n * b)
    sizes = {"block": b, "window": k}
    means = []
    for seed in range(400):
        one = EpochOrder(n * b, seed=seed, epoch=0, **sizes)
        # One batch of the first window each time: batches of a window are alike.
        means.append(x[next(one.windows(0)).rows[:size]].mean())
    blocks = x.reshape(n, b)
    expected = blocks.mean(1).var(ddof=1) / k * (1 - k / n)
    expected += blocks.var(1, ddof=1).mean() / size * (1 - size / (k * b))
    # The relative standard deviation of a variance from 400 draws is .07.
    assert 0.75 < np.var(means) / expected < 1.3
