"""A group of runs that train together; a solo run is a group of one."""

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from pwiser_jax.config import Config
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.errors import UserError
from pwiser_jax.schema import Schema
from pwiser_jax.training.devices.programs import largest
from pwiser_jax.training.objective import RANKINGS, Objective
from pwiser_jax.training.run.metrics import MetricsWriter
from pwiser_jax.training.run.progress import Reporter
from pwiser_jax.training.run.record import Progress, Record
from pwiser_jax.training.run.stopwatch import Stopwatch
from pwiser_jax.training.run.store import Store
from pwiser_jax.training.schedule import Schedule


class Programs(Protocol):
    """Computes a group of runs: see `devices.solo` and `devices.stacked`."""

    @property
    def schema(self) -> Schema: ...

    def initial(self) -> Any:
        """The state at step 0."""
        ...

    def template(self) -> Any:
        """The shapes and dtypes of a state as checkpoints hold it."""
        ...

    def place(self, state: Any) -> Any:
        """Puts a state of `initial` or of a checkpoint on the devices."""
        ...

    def whole(self, state: Any) -> Any:
        """Converts a state on the devices to the form that checkpoints hold."""
        ...

    def batches(self, epoch: int, start_step: int) -> Callable[[int], Any]:
        """A function from n to the next n batches of an epoch, starting at a step."""
        ...

    def train(
        self, state: Any, batches: Any, count: int, active: Sequence[int]
    ) -> tuple[Any, Any]:
        """The state after `count` steps of the active runs, and their metrics."""
        ...

    def metrics_of(self, values: Any, run: int) -> list[dict[str, np.ndarray]]:
        """Selects one run's losses and diagnostics, on the host: [k] by name."""
        ...

    def logits(
        self, state: Any, rows: Rows, active: Sequence[int]
    ) -> Callable[[int], dict[str, np.ndarray]]:
        """A function from an active run to its logits f32[N] by name."""
        ...


class Runs:
    """Configurations, records and states of runs of one shape.

    Args:
        configs: one per run, with the same batch size, epochs and schedule of logs.
        outputs: the run folders.
        objectives: one per run.
        programs: train and evaluate the runs.
        store: stores checkpoints and results.
        epoch_steps: steps of an epoch.
        valid: the rows that choose the epoch.
        reporter: receives steps, epochs and lines to show.
        logger: gets their metrics, see `run.loggers`.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        outputs: Sequence[Path],
        objectives: Sequence[Objective],
        programs: Programs,
        store: Store,
        epoch_steps: int,
        valid: Rows,
        reporter: Reporter,
        logger: str = "tensorboard",
    ) -> None:
        self.configs, self.outputs, self.objectives = configs, outputs, objectives
        self.programs, self.store, self.valid = programs, store, valid
        self.epoch_steps, self.reporter = epoch_steps, reporter
        self.logger = logger
        self.config = configs[0]
        self.states: Any = None
        self.progress: list[Progress] = []
        self.records: dict[int, Record] = {}

    @property
    def active(self) -> list[int]:
        """The runs that train: neither stopped nor failed."""
        return [
            i for i, p in enumerate(self.progress) if not p.stopped and not p.failure
        ]

    @property
    def failed(self) -> bool:
        """Whether every run has failed."""
        return all(progress.failure for progress in self.progress)

    @property
    def step(self) -> int:
        """The position in training, which all active runs share."""
        return max(progress.step for progress in self.progress)

    @property
    def epoch(self) -> int:
        return max(progress.epoch for progress in self.progress)

    def tree(self) -> dict[str, Any]:
        """The JSON tree that a checkpoint holds besides the states."""
        return {"runs": [asdict(progress) for progress in self.progress]}

    def restore(self) -> None:
        """Resumes from the last checkpoint; without one, starts from the seeds."""
        restored = self.store.restore(self.programs.template(), self.reporter.line)
        if restored is None:
            state = self.programs.initial()
            self.progress = [Progress() for _ in self.configs]
        else:
            state, tree = restored
            self.progress = [Progress(**each) for each in tree["runs"]]
            self.reporter.line(f"resuming from the checkpoint at step {self.step}")
        self.states = self.programs.place(state)
        for progress, output in zip(self.progress, self.outputs, strict=True):
            if not progress.stopped and self.store.is_finished(output):
                progress.stopped = "elsewhere"

    def open_records(self, schedule: Schedule, watch: Stopwatch) -> None:
        """Opens the metrics of the active runs. A solo run also logs timings."""
        for run in self.active:
            progress = self.progress[run]
            self.records[run] = Record(
                self.configs[run],
                self.programs.schema,
                MetricsWriter(self.outputs[run], progress.step, self.logger),
                progress,
                schedule,
                watch if len(self.configs) == 1 else None,
            )

    def close_records(self) -> None:
        for record in self.records.values():
            record.metrics.close(finished=bool(record.progress.stopped))

    def dispatch(
        self, batches: Any, count: int, signum: int | None
    ) -> tuple[float, int, Any, Any]:
        """Sends a call to the devices: (when, its steps, metrics, signal)."""
        dispatched = time.perf_counter()
        self.states, values = self.programs.train(
            self.states, batches, count, self.active
        )
        return dispatched, count, values, largest(signum or 0)

    def read(self, values: Any, count: int) -> float:
        """Waits for the metrics of a call; returns the mean loss of the active runs."""
        values, losses = jax.device_get(values), []
        for run in self.active:
            metrics, diagnostics = [
                {k: v for k, v in tree.items() if belongs(k, self.objectives[run])}
                for tree in self.programs.metrics_of(values, run)
            ]
            try:
                self.records[run].read(metrics, diagnostics, count)
                losses.append(metrics["loss"][:count].mean())
            except UserError as error:
                self._fail(run, error)
        return float(np.mean(losses)) if losses else np.nan

    def validate(self) -> list[int]:
        """Ends an epoch of the active runs; returns those that are the best so far."""
        active, better = self.active, []
        logits = self.programs.logits(self.states, self.valid, active)
        for run in active:
            try:
                if self.records[run].end_epoch(logits(run), self.valid):
                    better.append(run)
            except UserError as error:
                self._fail(run, error)
        return better

    def epoch_line(self, better: Sequence[int]) -> str:
        """A line of text with the results of the epoch."""
        if len(self.configs) == 1:
            return self.records[0].epoch_line()
        return (
            f"epoch {self.epoch}: {len(better)} runs improved, "
            f"{len(self.active)} of {len(self.configs)} still train"
        )

    def _fail(self, run: int, error: UserError) -> None:
        self.progress[run].failure = str(error)
        if len(self.configs) > 1:
            self.reporter.line(f"{self.outputs[run]}: {error}")

    def finish(self) -> None:
        """Writes the results."""
        self.store.finish(self.configs, self.outputs, self.progress, self.objectives)


def belongs(name: str, objective: Objective) -> bool:
    """Whether a metric belongs to this run, not to heads and terms of other runs."""
    kind, _, rest = name.partition("/")
    if kind not in (*RANKINGS, "lambda", "pairs", "active"):
        return True
    head, _, pair = rest.partition("/")
    rungs = objective.rungs
    terms = {f"{rungs[high]}>{rungs[low]}" for high, low in objective.terms}
    return head in objective.ranked and (not pair or pair in terms)
