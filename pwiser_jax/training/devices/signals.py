"""Ctrl-C and SIGTERM stop a run after the current step, with a checkpoint."""

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, ClassVar, Self

SIGNALS = (signal.SIGINT, signal.SIGTERM)
STOPPING = "stopping after this step, with a checkpoint; signal again to exit at once"


class Interrupted(Exception):
    """Raised when a run stopped on request, after it saved a checkpoint."""

    def __init__(self, step: int, signum: int) -> None:
        super().__init__(
            f"stopped at step {step} with a checkpoint; run the same command again "
            "to resume"
        )
        self.step, self.signum = step, signum

    @property
    def exit_code(self) -> int:
        """128 plus the signal, as in shells: 130 for Ctrl-C, 143 for SIGTERM."""
        return 128 + (self.signum or signal.SIGINT)


class StopSignals:
    """Within the context the first signal sets `received`; a second one exits at once.

    Args:
        say: called with a line for the user at the first signal.
    """

    # The active context, and whether `answered` handles signals.
    current: ClassVar["StopSignals | None"] = None
    answered: ClassVar[bool] = False

    def __init__(self, say: Callable[[str], None]) -> None:
        self.received: int | None = None
        self.stepped = False  # set by the loop: a checkpoint would save work
        self._say = say
        self._previous: dict[int, Any] = {}

    def note(self, signum: int) -> None:
        """Records a signal and prints a line."""
        self.received = signum
        self._say(STOPPING)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        self._restore()
        self.note(signum)

    def _restore(self) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)
        self._previous = {}

    def __enter__(self) -> Self:
        StopSignals.current = self
        # Python delivers signals to the main thread only.
        main = threading.current_thread() is threading.main_thread()
        if main and not StopSignals.answered:
            for signum in SIGNALS:
                self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        StopSignals.current = None
        self._restore()


@contextmanager
def answered() -> Iterator[None]:
    """Handles signals at once, whatever the main thread does; for commands.

    Python's handlers run only when the main thread returns from compiled code, and
    compilation may take minutes. Here each signal's number is written to a socket,
    which a thread reads. Before the first step a signal exits the process; after it,
    the first signal goes to `StopSignals` and the second exits.
    """
    ours, pythons = socket.socketpair()
    pythons.setblocking(False)
    previous = {n: signal.signal(n, lambda *_: None) for n in SIGNALS}
    before = signal.set_wakeup_fd(pythons.fileno(), warn_on_full_buffer=False)
    StopSignals.answered = True
    threading.Thread(target=_answer, args=(ours,), name="signals", daemon=True).start()
    try:
        yield
    finally:
        StopSignals.answered = False
        signal.set_wakeup_fd(before)
        for signum, handler in previous.items():
            signal.signal(signum, handler)
        pythons.close()


def _answer(signals: socket.socket) -> None:
    while number := signals.recv(1):
        context = StopSignals.current
        if context is not None and context.stepped and context.received is None:
            context.note(number[0])
        elif number[0] in SIGNALS:
            # Keep the last line of the progress bar; show the cursor again.
            show = "\x1b[?25h" if sys.stderr.isatty() else ""
            print(f"{show}\npwiser: interrupted", file=sys.stderr, flush=True)
            os._exit(128 + number[0])
    signals.close()
