"""A trace of a few steps, for TensorBoard's profiler or Perfetto."""

from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

# Steps skipped, for compilation and caches, and steps traced.
WARM_UP, TRACED = 5, 10


class Trace:
    """Within the context, `at` begins a trace after `WARM_UP` steps and ends it.

    Args:
        folder: folder of the trace; None: nothing is traced.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        self._running = False
        self._done = 0

    def at(self, steps: int, state: Any) -> None:
        """Call it after `steps` more steps were dispatched, with their `state`."""
        self._done += steps
        if self._folder is None or self._done < WARM_UP:
            return
        if not self._running:
            jax.block_until_ready(state)
            jax.profiler.start_trace(str(self._folder))
            self._running = True
        elif self._done >= WARM_UP + TRACED:
            jax.block_until_ready(state)
            self._stop()

    def _stop(self) -> None:
        jax.profiler.stop_trace()
        self._running, self._folder = False, None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._running:
            self._stop()
