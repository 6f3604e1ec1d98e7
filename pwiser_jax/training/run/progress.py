"""Progress of a training run on the terminal."""

from typing import Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Reporter(Protocol):
    """Receives the steps, epochs and lines of a run."""

    def epoch(self, epoch: int, steps: int, done: int) -> None: ...

    def steps(self, count: int, loss: float, rows_per_second: float) -> None: ...

    def line(self, text: str) -> None: ...


class Silent:
    """Shows nothing."""

    def epoch(self, epoch: int, steps: int, done: int) -> None:
        pass

    def steps(self, count: int, loss: float, rows_per_second: float) -> None:
        pass

    def line(self, text: str) -> None:
        pass


class ProgressBar:
    """One bar per epoch with loss and rows/s, on stderr; only lines if no terminal."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal,
        )
        self._task = self._bar.add_task("starting", total=None, numbers="")

    def __enter__(self) -> "ProgressBar":
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def epoch(self, epoch: int, steps: int, done: int) -> None:
        self._bar.reset(
            self._task,
            description=f"epoch {epoch + 1}",
            total=steps,
            completed=done,
            numbers="",
        )

    def steps(self, count: int, loss: float, rows_per_second: float) -> None:
        numbers = f"loss {loss:.4f}  {rows_per_second:,.0f} rows/s"
        self._bar.update(self._task, advance=count, numbers=numbers)

    def line(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)
