"""The training loop, from top to bottom."""

import json
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pwiser_jax.config import Config
from pwiser_jax.data.batches.batches import Batch, epoch_order, steps_per_epoch
from pwiser_jax.data.batches.prefetch import prefetched
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.errors import UserError
from pwiser_jax.host import prepare_host
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices import processes
from pwiser_jax.training.devices.programs import (
    largest,
    replicated,
    shard,
    train_program,
    unshard,
)
from pwiser_jax.training.devices.several import MOST_STEPS, pace
from pwiser_jax.training.devices.signals import Interrupted, StopSignals
from pwiser_jax.training.devices.source import Source, source
from pwiser_jax.training.inference import (
    new_state,
    predict_logits,
    state_template,
    table_rows,
)
from pwiser_jax.training.run import protocol
from pwiser_jax.training.run import record as records
from pwiser_jax.training.run.checkpoint import BackgroundSaves, Checkpoints
from pwiser_jax.training.run.folder import RESULT, open_run, write_json
from pwiser_jax.training.run.metrics import MetricsWriter
from pwiser_jax.training.run.progress import Reporter
from pwiser_jax.training.run.record import Progress, Record
from pwiser_jax.training.run.stopwatch import Stopwatch
from pwiser_jax.training.run.trace import Trace
from pwiser_jax.training.step import Hyper, TrainState, step_spec
from pwiser_jax.training.step import hyper as step_numbers


def train(
    config: Config,
    output: Path,
    reporter: Reporter,
    *,
    stop_after: int | None = None,
    profile: bool = False,
) -> dict[str, Any]:
    """Trains a run, or goes on with it, and returns its result.

    Args:
        config: the configuration; `data.path` is a prepared folder.
        output: the run's folder; a run that stands there already is gone on with.
        reporter: hears of steps and epochs.
        stop_after: ends this call after so many steps of its own, with a checkpoint.
        profile: writes a trace of a few steps into the folder `profile` of the run.
    Returns:
        The tree of result.json.
    Raises:
        UserError: the data, the configuration or the folder do not fit, or the loss is
            not finite.
        Interrupted: stopped by a signal or `stop_after`, after saving.
    """
    # 1. Data, objective, folder.
    prepare_host()
    if not config.data.path:
        raise UserError("data.path is needed: a folder that `pwiser prepare` wrote")
    prepared = Prepared(Path(config.data.path))
    schema = prepared.schema
    objective, weights = objectives.build(
        config.loss, schema.labels, config.model.cvr_space
    )
    if config.data.batch_size % processes.count():
        raise UserError(
            f"data.batch_size {config.data.batch_size} cannot be shared evenly by "
            f"{processes.count()} processes"
        )
    if processes.first():
        open_run(output, config, Path(config.data.path))
    finished = processes.from_first(_result(output))
    if finished is not None:
        reporter.line(f"{output} is finished already")
        return finished
    train_rows, valid_rows = protocol.rows_of(config.protocol, prepared)
    for text in (*protocol.lines(config), *objectives.notes(config.loss, objective)):
        reporter.line(text)
    epoch_steps = steps_per_epoch(
        train_rows,
        config.data.batch_size,
        min_conversions=config.data.min_conversions,
    )

    # 2. State: from the last checkpoint, or from the seed.
    last, best = Checkpoints(output, "last"), Checkpoints(output, "best")
    found = last.restore(state_template(config, schema), reporter.line)
    if found is None:
        state = processes.state_from_first(new_state(config, schema))
        progress = Progress()
    else:
        state, progress = found[0], Progress(**found[1])
        reporter.line(f"going on from the checkpoint at step {progress.step}")
    metrics = MetricsWriter(output, progress.step)
    saves = BackgroundSaves(progress.step)

    # 3. Epochs.
    trace = Trace(output / "profile" if profile and processes.first() else None)
    state = shard(state, config.optimizer.shard_tables)
    watch = Stopwatch()
    record = Record(config, schema, metrics, progress, watch)
    loop = _Loop(record, reporter, watch, last, best, saves, trace, state)
    program = train_program(step_spec(config, schema, objective))
    total_steps = config.train.epochs * epoch_steps
    hyper = replicated(step_numbers(config, weights, total_steps))
    made = source(train_rows, config.data.rows_from)
    budget = None if stop_after is None else progress.step + stop_after
    try:
        with StopSignals() as signals, trace:
            while not progress.stopped:
                loop.train_epoch(
                    program, hyper, train_rows, made, epoch_steps, signals, budget
                )
                loop.end_epoch(valid_rows)
            saves.wait()
    finally:
        metrics.close()
        saves.close()
        last.close()
        best.close()

    # 4. Result.
    result = records.result(config, progress)
    if processes.first():
        write_json(output / RESULT, result)
    return result


def _result(output: Path) -> dict[str, Any] | None:
    """The tree of a finished run's result.json."""
    path = output / RESULT
    return json.loads(path.read_text()) if path.exists() else None


@dataclass
class _Loop:
    record: Record
    reporter: Reporter
    watch: Stopwatch
    last: Checkpoints
    best: Checkpoints
    saves: BackgroundSaves
    trace: Trace
    state: TrainState
    _pace: int = 1
    _signal: int = 0
    _clock: float = field(default_factory=time.perf_counter)

    @property
    def config(self) -> Config:
        return self.record.config

    @property
    def progress(self) -> Progress:
        return self.record.progress

    def save(self, *series: Checkpoints) -> None:
        tree = asdict(self.progress)
        state = self.state
        if self.config.optimizer.shard_tables:
            state = unshard(state, table_rows(self.config, self.record.schema))
        self.saves.save(self.progress.step, state, tree, *series)

    def checkpoint(self, stop: bool) -> None:
        """Begins a checkpoint where one is due; see `TrainConfig`."""
        train, step, saves = self.config.train, self.progress.step, self.saves
        with self.watch.measured("checkpoint"):
            if step - saves.finished >= train.most_steps_lost:
                saves.wait()
            due = step % train.checkpoint_interval == 0
            # All processes or none, for each may have a part of the state.
            due = due and not processes.from_first(saves.in_flight())
            if due or stop:
                self.save(self.last)
            if stop or step - saves.finished >= train.most_steps_lost:
                saves.wait()

    def train_epoch(
        self,
        program: Any,
        hyper: Hyper,
        rows: Rows,
        made: Source,
        epoch_steps: int,
        signals: StopSignals,
        budget: int | None,
    ) -> None:
        """The rest of an epoch, from the position on.

        While a call computes, the one before it is read and the next is made ready.
        """
        progress, watch = self.progress, self.watch
        end = (progress.epoch + 1) * epoch_steps
        done = progress.step + epoch_steps - end
        self.reporter.epoch(progress.epoch, epoch_steps, done)
        begun = progress.step
        running: deque[tuple[int, Any, Any]] = deque()
        self._clock = time.perf_counter()
        ahead = self._calls(rows, made, done, end, budget)
        with prefetched(ahead) as calls, watch.running():
            for batches, count, pause in watch.waited_for(calls):
                self.state, values = program(
                    self.state, batches, np.int32(count), hyper
                )
                signal = largest(signals.received or 0)
                running.append((count, values, signal))
                begun += count
                self.trace.at(count, self.state)
                # The newest call alone is not waited for. More of them in flight gain
                # nothing, and deadlock on a CPU backend of several devices.
                while len(running) > 1:
                    self._read(*running.popleft())
                # A signal is heeded when its call is read, by all processes alike.
                stop = bool(self._signal) or begun == budget
                if stop or pause:
                    self._read(*running.popleft())
                    self.checkpoint(stop)
                if stop:
                    raise Interrupted(progress.step, self._signal)
            while running:
                self._read(*running.popleft())

    def _calls(
        self, rows: Rows, made: Source, done: int, end: int, budget: int | None
    ) -> Iterator[tuple[Batch, int, bool]]:
        """The rest of an epoch's batches, call by call.

        Each comes with its number of steps, and whether a checkpoint begins or is
        waited for after them.

        Args:
            rows: the split.
            made: makes batches of its rows.
            done: steps of the epoch that are behind.
            end: the run's steps when the epoch is over.
            budget: the run's steps when this process stops, or None.
        """
        data, train = self.config.data, self.config.train
        order = epoch_order(
            rows,
            data.batch_size,
            seed=train.seed,
            epoch=self.progress.epoch,
            start_step=done,
            min_conversions=data.min_conversions,
            process_index=processes.index(),
            process_count=processes.count(),
        )
        step = start = self.progress.step
        every, lost = train.checkpoint_interval, train.most_steps_lost
        most = train.steps_per_call or MOST_STEPS
        # Several processes cannot each go by a clock of their own.
        paced = not train.steps_per_call and processes.count() == 1
        while step < end:
            stops = [end, step + every - step % every]
            stops += [step + every - (step - lost) % every, start + lost]
            stops += [] if budget is None else [budget]
            stop = min(stop for stop in stops if stop > step)
            count = min(self._pace if paced else most, stop - step)
            step += count
            yield made(list(islice(order, count)), most), count, step == stop

    def _read(self, count: int, metrics: Any, signal: Any) -> None:
        """Waits for a call of so many steps; its metrics go into the record."""
        self._signal = int(signal)
        read = jax.device_get(metrics)
        self.watch.count(count, count * self.config.data.batch_size)
        self.record.read(read[0], read[1], count)
        now = time.perf_counter()
        seconds = max(now - self._clock, 1e-9) / count
        self._clock = now
        self._pace = pace(seconds)
        loss = float(np.mean(read[0]["loss"][:count]))
        self.reporter.steps(count, loss, self.config.data.batch_size / seconds)

    def end_epoch(self, valid: Rows) -> None:
        """Validation, early stopping, checkpoints."""
        record = self.record
        logits = predict_logits(record.config, record.schema, self.state, valid)
        better = record.end_epoch(logits, valid)
        # The best first: the loop's state in the last names it.
        self.save(*((self.best, self.last) if better else (self.last,)))
        self.reporter.line(record.epoch_line())
