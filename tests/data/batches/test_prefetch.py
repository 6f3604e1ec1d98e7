"""Prefetching: the same items, the same errors, and a thread that ends."""

import threading
import time
from collections.abc import Iterator

import pytest

from pwiser_jax.data.batches.prefetch import prefetched


def threads() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name == "prefetch"]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("depth", [1, 2, 5])
def test_items_come_in_order(count: int, depth: int):
    with prefetched(iter(range(count)), depth) as items:
        assert list(items) == list(range(count))
    assert not threads()


def test_only_so_many_are_made_ahead():
    made = []

    def items() -> Iterator[int]:
        for k in range(100):
            made.append(k)
            yield k

    with prefetched(items(), 3) as ahead:
        next(ahead)
        time.sleep(0.2)
        # One taken, three waiting, one in the thread's hand.
        assert len(made) <= 5
    assert not threads()


def test_an_error_comes_where_its_item_would():
    def items() -> Iterator[int]:
        yield from (1, 2)
        raise OSError("the disk is gone")

    found = []
    with prefetched(items()) as ahead, pytest.raises(OSError, match="disk is gone"):  # noqa: PT012
        for item in ahead:
            found.append(item)
    assert found == [1, 2]
    assert not threads()


def test_leaving_in_the_middle_ends_the_thread():
    with pytest.raises(KeyboardInterrupt), prefetched(iter(range(9))) as ahead:  # noqa: PT012
        next(ahead)
        raise KeyboardInterrupt
    assert not threads()
