"""Progress of a study on a cluster: messages of its parts, and a line of them all."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

NOTE = 1.0  # seconds between two messages of a part


class Messages:
    """The reporter of a part: tells the board now and then how far it is."""

    def __init__(self, number: int, epochs: int, board: Any) -> None:
        self._number, self._epochs, self._board = number, epochs, board
        self._told, self._epoch, self._of = 0.0, 0, 1
        self._step = 0

    def epoch(self, epoch: int, steps: int, done: int) -> None:
        self._epoch, self._of, self._step = epoch, steps, done

    def steps(self, count: int, loss: float, rows_per_second: float) -> None:
        self._step += count
        if time.monotonic() - self._told > NOTE:
            self._told = time.monotonic()
            done = (self._epoch + self._step / self._of) / self._epochs
            self._board.note.remote(self._number, done, rows_per_second)

    def line(self, text: str) -> None:
        pass


class Board:
    """How far each part is, and its rows/s: an actor beside the command."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[float, float]] = {}

    def note(self, number: int, done: float, rows_per_second: float) -> None:
        self._parts[number] = done, rows_per_second

    def read(self) -> dict[int, tuple[float, float]]:
        return self._parts


class Line(Progress):
    """One line for the study: runs done, running and failed, rows/s, time left."""

    def __init__(self, runs: int, parts: Sequence[Sequence[Path]]) -> None:
        console = Console(stderr=True, highlight=False)
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._count, self._parts = runs, parts
        self._over = runs - sum(map(len, parts))
        self._bar = self.add_task("starting", total=runs, completed=self._over)
        self._shown = ""

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def show(
        self, pending: Any, progress: Mapping[int, tuple[float, float]], failed: int
    ) -> None:
        """Shows the state of the parts; on a file a line each time it changes."""
        pending = list(pending)
        size = [len(part) for part in self._parts]
        open_runs = sum(size[number] for number in pending)
        running = [number for number in pending if number in progress]
        rows = sum(progress[number][1] for number in running)
        counts = (
            f"{self._count - open_runs - failed} of {self._count} runs done, "
            f"{sum(size[n] for n in running)} running, {failed} failed"
        )
        share = sum(size[number] * min(progress[number][0], 1.0) for number in running)
        done = self._count - open_runs + share
        speed = f", {rows:,.0f} rows/s" if rows else ""
        self.update(self._bar, description=counts + speed, completed=done)
        if counts != self._shown and not self.console.is_terminal:
            self.say(counts)
        self._shown = counts
