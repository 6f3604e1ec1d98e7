"""Ctrl-C and SIGTERM as a wish to stop after the step in progress."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Self


class Interrupted(Exception):
    """The run was asked to stop, saved a checkpoint and stopped."""

    def __init__(self, step: int, signum: int) -> None:
        super().__init__(
            f"stopped at step {step} with a checkpoint; run the same command again "
            "to go on"
        )
        self.signum = signum


class StopSignals:
    """Within the context, the first signal is only noted, in `received`.

    A second one ends the program at once, as usual.
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, object] = {}

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.received = signum
        self._restore()

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)  # pyright: ignore[reportArgumentType]
        self._previous = {}

    def __enter__(self) -> Self:
        # Python delivers signals to the main thread only.
        if threading.current_thread() is threading.main_thread():
            for signum in (signal.SIGINT, signal.SIGTERM):
                self._previous[signum] = signal.signal(signum, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._restore()
