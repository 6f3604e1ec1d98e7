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
from pwiser_jax.data.batches import epoch_order, steps_per_epoch
from pwiser_jax.data.prefetch import prefetched
from pwiser_jax.data.prepared import Prepared
from pwiser_jax.data.rows import Rows
from pwiser_jax.data.schema import Schema
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import mean_auc
from pwiser_jax.training import objective as objectives
from pwiser_jax.training import processes, protocol
from pwiser_jax.training.checkpoint import BackgroundSaves, Checkpoints
from pwiser_jax.training.inference import new_state, predict_logits, state_template
from pwiser_jax.training.metrics import TIMING, MetricsWriter
from pwiser_jax.training.observe import is_observation, numbers
from pwiser_jax.training.parallel import (
    largest,
    replicated,
    train_program,
)
from pwiser_jax.training.progress import Reporter
from pwiser_jax.training.run import RESULT, open_run, write_json
from pwiser_jax.training.signals import Interrupted, StopSignals
from pwiser_jax.training.source import Source, source
from pwiser_jax.training.step import Batch, Hyper, TrainState
from pwiser_jax.training.stopwatch import Stopwatch
from pwiser_jax.training.trace import Trace

# Steps in one call of the program, where the configuration leaves it open: as many as
# take about so long, so that signals and the bar are looked at in time, and at most so
# many. On 2 CPU cores eight steps in a call take 0.9 of the time of single calls where
# a step takes 6 ms, and the same where it takes 1 s.
CALL_SECONDS = 0.5
MOST_STEPS = 8


@dataclass
class Progress:
    """The loop's own state: kept in each checkpoint, so that a resumed run is the same.

    The position in the data is the number of steps done; `epoch` counts the epochs that
    have been evaluated too.
    """

    step: int = 0
    epoch: int = 0
    best_step: int = -1
    best_epoch: int = -1
    best_auc: float = -1.0
    best_aucs: dict[str, float] = field(default_factory=dict)
    without_gain: int = 0
    stopped: str = ""
    window: dict[str, float] = field(default_factory=dict)
    window_steps: int = 0


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
    for text in protocol.lines(config):
        reporter.line(text)
    epoch_steps = steps_per_epoch(
        len(train_rows), config.data.batch_size, config.data.min_conversions
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
    state = replicated(state)
    loop = _Loop(
        config, schema, reporter, metrics, last, best, saves, trace, progress, state
    )
    program = train_program(config.model, schema, objective, config.optimizer.embedding)
    hyper = Hyper(
        seed=config.train.seed,
        learning_rate=config.optimizer.learning_rate,
        l2=config.optimizer.l2,
        # Whole numbers would be of another type, and compile another program.
        weights=jax.tree.map(float, weights),
        log_every=config.train.log_every,
    )
    hyper = replicated(hyper)
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
    result = {
        "best": {
            "epoch": progress.best_epoch,
            "step": progress.best_step,
            "mean_auc": progress.best_auc,
            "auc": progress.best_aucs,
        },
        "steps": progress.step,
        "stopped": progress.stopped,
        **protocol.label(config),
    }
    if processes.first():
        write_json(output / RESULT, result)
    return result


def _result(output: Path) -> dict[str, Any] | None:
    """The tree of a finished run's result.json."""
    path = output / RESULT
    return json.loads(path.read_text()) if path.exists() else None


@dataclass
class _Loop:
    config: Config
    schema: Schema
    reporter: Reporter
    metrics: MetricsWriter
    last: Checkpoints
    best: Checkpoints
    saves: BackgroundSaves
    trace: Trace
    progress: Progress
    state: TrainState
    _pace: int = 1
    _signal: int = 0
    _clock: float = field(default_factory=time.perf_counter)
    _stopwatch: Stopwatch = field(default_factory=Stopwatch)

    def save(self, *series: Checkpoints) -> None:
        tree = asdict(self.progress)
        self.saves.save(self.progress.step, self.state, tree, *series)

    def checkpoint(self, stop: bool) -> None:
        """Begins a checkpoint where one is due; see `TrainConfig`."""
        train, step, saves = self.config.train, self.progress.step, self.saves
        with self._stopwatch.measured("checkpoint"):
            if step - saves.finished >= train.most_steps_lost:
                saves.wait()
            due = step % train.checkpoint_interval == 0 and not saves.in_flight()
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
        progress, watch = self.progress, self._stopwatch
        end = (progress.epoch + 1) * epoch_steps
        done = progress.step + epoch_steps - end
        self.reporter.epoch(progress.epoch, epoch_steps, done)
        running: deque[tuple[int, int, Any, Any]] = deque()
        self._clock = time.perf_counter()
        ahead = self._calls(rows, made, done, end, budget)
        with prefetched(ahead) as calls, watch.running():
            for batches, count, pause in watch.waited_for(calls):
                self.state, values = program(
                    self.state, batches, np.int32(count), hyper
                )
                signal = largest(signals.received or 0)
                running.append((progress.step, count, values, signal))
                progress.step += count
                self.trace.at(count, self.state)
                # The newest call alone is not waited for. More of them in flight gain
                # nothing, and deadlock on a CPU backend of several devices.
                while len(running) > 1:
                    self._read(*running.popleft())
                # A signal is heeded when its call is read, by all processes alike.
                stop = bool(self._signal) or progress.step == budget
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

    def _read(self, done: int, count: int, metrics: Any, signal: Any) -> None:
        """Waits for a call that began after `done` steps; its metrics join the window.

        The window is written, as means since the line before, every `log_every` steps.
        """
        progress, train = self.progress, self.config.train
        self._signal = int(signal)
        read = jax.device_get(metrics)
        # The parts first: a part says more than the whole.
        names = sorted(read, key="loss".__eq__)
        losses = [name for name in names if not is_observation(name)]
        self._stopwatch.count(count, count * self.config.data.batch_size)
        for at in range(count):
            step = done + at + 1
            for name in losses:
                value = read[name][at]
                if not np.isfinite(value):
                    raise UserError(
                        f"the loss is not finite: {name} is {value} at step {step}; "
                        "the last good checkpoint stays"
                    )
                total = progress.window.get(name, 0.0)
                progress.window[name] = total + float(value)
            progress.window_steps += 1
            if step % train.log_every == 0:
                observed = {k: read[k][at] for k in names if is_observation(k)}
                self._log(step, numbers(observed))
        now = time.perf_counter()
        seconds = max(now - self._clock, 1e-9) / count
        self._clock = now
        self._pace = min(max(int(CALL_SECONDS / seconds), 1), MOST_STEPS)
        loss = float(np.mean(read["loss"][:count]))
        self.reporter.steps(count, loss, self.config.data.batch_size / seconds)

    def _log(self, step: int, observed: dict[str, Any] | None = None) -> None:
        """A line of metrics, means since the line before, and one of timings."""
        progress = self.progress
        means = {k: v / progress.window_steps for k, v in progress.window.items()}
        line = {"epoch": progress.epoch, **means, **(observed or {})}
        self.metrics.write("train", step, line)
        self.metrics.write(TIMING, step, self._stopwatch.lap())
        progress.window, progress.window_steps = {}, 0

    def end_epoch(self, valid: Rows) -> None:
        """Validation, early stopping, checkpoints."""
        progress, config = self.progress, self.config
        epoch = progress.epoch
        logits = predict_logits(config, self.schema, self.state, valid)
        for name, values in logits.items():
            if not np.all(np.isfinite(values)):
                raise UserError(
                    f"the logits of {name} are not finite after step {progress.step}; "
                    "the last good checkpoint stays"
                )
        mean, aucs = processes.from_first(
            mean_auc(logits, valid.labels, self.schema.labels, config.model.cvr_space)
        )
        if progress.window_steps:
            self._log(progress.step)
        chosen = protocol.CHOSEN[config.protocol]
        self.metrics.write(
            chosen, progress.step, {"epoch": epoch, "auc": aucs, "mean_auc": mean}
        )
        if mean > progress.best_auc:
            progress.best_auc, progress.best_aucs = mean, aucs
            progress.best_step, progress.best_epoch = progress.step, epoch
            progress.without_gain = 0
            series = (self.best, self.last)
        else:
            series = (self.last,)
            progress.without_gain += 1
        if progress.without_gain >= config.train.patience:
            progress.stopped = "early"
        elif epoch + 1 >= config.train.epochs:
            progress.stopped = "epochs"
        progress.epoch = epoch + 1
        # The best first: the loop's state in the last names it.
        self.save(*series)
        shown = "  ".join(f"{name} {value:.4f}" for name, value in aucs.items())
        mark = " *" if progress.without_gain == 0 else ""
        name = protocol.NAMES[chosen]
        self.reporter.line(f"epoch {epoch + 1}: {name} AUC {shown}{mark}")
