"""Measures how the wall-clock time of training steps is spent."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Literal, TypeVar, get_args

T = TypeVar("T")
Part = Literal["data", "checkpoint"]


class Stopwatch:
    """Wall-clock time of steps: waiting for data, for checkpoints, and compute.

    Compute is the remainder: dispatch is asynchronous, so the time of a step passes
    wherever the loop waits for its results.
    """

    def __init__(self) -> None:
        self._clear()
        self._since: float | None = None

    def _clear(self) -> None:
        self._seconds = dict.fromkeys(get_args(Part), 0.0)
        self._all = 0.0
        self._steps = self._rows = 0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Time counts only within the context."""
        self._since = time.perf_counter()
        try:
            yield
        finally:
            self._pass()
            self._since = None

    def _pass(self) -> None:
        if self._since is not None:
            now = time.perf_counter()
            self._all += now - self._since
            self._since = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """No time counts within the context."""
        self._pass()
        self._since = None
        try:
            yield
        finally:
            self._since = time.perf_counter()

    @contextmanager
    def measured(self, part: Part) -> Iterator[None]:
        """Adds the time within the context to the named part."""
        started = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[part] += time.perf_counter() - started

    def waited_for(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items; adds the wait for each to "data"."""
        iterator = iter(items)
        while True:
            with self.measured("data"):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def count(self, steps: int, rows: int) -> None:
        """Adds finished steps and their rows."""
        self._steps += steps
        self._rows += rows

    def lap(self) -> dict[str, float]:
        """Rows per second, and seconds per step by part, since the last call."""
        self._pass()
        parts, steps = self._seconds, max(self._steps, 1)
        numbers = {
            "rows_per_second": self._rows / max(self._all, 1e-9),
            "step_seconds": self._all / steps,
            "compute_seconds": (self._all - sum(parts.values())) / steps,
            **{f"{part}_seconds": spent / steps for part, spent in parts.items()},
        }
        self._clear()
        return numbers
