"""The training loop, from top to bottom."""

import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pwiser_jax.config import Config
from pwiser_jax.data.batches import epoch_batches, steps_per_epoch
from pwiser_jax.data.prefetch import prefetched
from pwiser_jax.data.prepared import Prepared
from pwiser_jax.data.rows import Rows
from pwiser_jax.data.schema import Schema
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import mean_auc
from pwiser_jax.training import objective as objectives
from pwiser_jax.training import protocol
from pwiser_jax.training.checkpoint import BackgroundSaves, Checkpoints
from pwiser_jax.training.inference import new_state, predict_logits, state_template
from pwiser_jax.training.metrics import TIMING, MetricsWriter
from pwiser_jax.training.observe import is_observation, numbers
from pwiser_jax.training.parallel import device_count, shard_batch, train_program
from pwiser_jax.training.progress import Reporter
from pwiser_jax.training.run import RESULT, open_run, write_json
from pwiser_jax.training.signals import Interrupted, StopSignals
from pwiser_jax.training.step import Batch, Hyper, TrainState
from pwiser_jax.training.stopwatch import Stopwatch
from pwiser_jax.training.trace import Trace

# Metrics are read from the devices this often: a CPU backend of several devices can
# deadlock when a loop runs ahead without ever waiting.
READ_EVERY = 8


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
    open_run(output, config, Path(config.data.path))
    if (output / RESULT).exists():
        reporter.line(f"{output} is finished already")
        return json.loads((output / RESULT).read_text())
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
        state, progress = new_state(config, schema), Progress()
    else:
        state, progress = found[0], Progress(**found[1])
        reporter.line(f"going on from the checkpoint at step {progress.step}")
    metrics = MetricsWriter(output, progress.step)
    saves = BackgroundSaves(progress.step)

    # 3. Epochs.
    trace = Trace(output / "profile" if profile else None)
    loop = _Loop(
        config, schema, reporter, metrics, last, best, saves, trace, progress, state
    )
    program = train_program(config.model, schema, objective, config.optimizer.embedding)
    hyper = Hyper(
        seed=config.train.seed,
        learning_rate=config.optimizer.learning_rate,
        l2=config.optimizer.l2,
        weights=weights,
        log_every=config.train.log_every,
    )
    budget = None if stop_after is None else progress.step + stop_after
    try:
        with StopSignals() as signals, trace:
            while not progress.stopped:
                loop.train_epoch(
                    program, hyper, train_rows, epoch_steps, signals, budget
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
    write_json(output / RESULT, result)
    return result


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
    _clock: float = field(default_factory=time.perf_counter)
    _stopwatch: Stopwatch = field(default_factory=Stopwatch)
    _observed: dict[str, Any] = field(default_factory=dict)

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
        epoch_steps: int,
        signals: StopSignals,
        budget: int | None,
    ) -> None:
        """The rest of an epoch, from the position on."""
        progress, train = self.progress, self.config.train
        epoch = progress.epoch
        done = progress.step - epoch * epoch_steps
        self.reporter.epoch(epoch, epoch_steps, done)
        size = self.config.data.batch_size
        pending: list[Any] = []
        self._clock = time.perf_counter()
        watch = self._stopwatch
        with prefetched(self._batches(rows, epoch, done)) as batches, watch.running():
            for batch in watch.waited_for(batches):
                self.state, values = program(self.state, batch, hyper)
                pending.append(values)
                progress.step += 1
                self.trace.at(1, self.state)
                log = progress.step % train.log_every == 0
                checkpoint = progress.step % train.checkpoint_interval == 0
                out_of_budget = progress.step == budget
                stop = signals.received is not None or out_of_budget
                if log or checkpoint or stop or len(pending) == READ_EVERY:
                    self._read(pending, size)
                    pending = []
                if log:
                    self._log(epoch)
                self.checkpoint(stop)
                if stop:
                    raise Interrupted(progress.step, signals.received or 0)
        self._read(pending, size)

    def _batches(self, rows: Rows, epoch: int, start_step: int) -> Iterator[Batch]:
        """The batches of an epoch from a step on, cut for the devices."""
        data, devices = self.config.data, device_count()
        batches = epoch_batches(
            rows,
            data.batch_size,
            seed=self.config.train.seed,
            epoch=epoch,
            start_step=start_step,
            min_conversions=data.min_conversions,
        )
        return (shard_batch(batch, devices) for batch in batches)

    def _read(self, pending: list[Any], batch_size: int) -> None:
        """Waits for the steps in `pending` and adds their metrics to the window."""
        if not pending:
            return
        progress = self.progress
        first = progress.step - len(pending) + 1
        for step, metrics in enumerate(jax.device_get(pending), start=first):
            values = {k: v for k, v in metrics.items() if not is_observation(k)}
            if step % self.config.train.log_every == 0:
                observed = {k: v for k, v in metrics.items() if is_observation(k)}
                self._observed = numbers(observed)
            # The parts first: a part says more than the whole.
            for name in sorted(values, key="loss".__eq__):
                value = values[name]
                if not np.isfinite(value):
                    raise UserError(
                        f"the loss is not finite: {name} is {value} at step {step}; "
                        "the last good checkpoint stays"
                    )
                total = progress.window.get(name, 0.0)
                progress.window[name] = total + float(value)
            progress.window_steps += 1
        self._stopwatch.count(len(pending), len(pending) * batch_size)
        now = time.perf_counter()
        speed = len(pending) * batch_size / max(now - self._clock, 1e-9)
        self._clock = now
        loss = progress.window["loss"] / progress.window_steps
        self.reporter.steps(len(pending), loss, speed)

    def _log(self, epoch: int) -> None:
        """A line of metrics, means since the line before, and one of timings."""
        progress = self.progress
        means = {k: v / progress.window_steps for k, v in progress.window.items()}
        line = {"epoch": epoch, **means, **self._observed}
        self.metrics.write("train", progress.step, line)
        self.metrics.write(TIMING, progress.step, self._stopwatch.lap())
        progress.window, progress.window_steps, self._observed = {}, 0, {}

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
        mean, aucs = mean_auc(
            logits, valid.labels, self.schema.labels, config.model.cvr_space
        )
        if progress.window_steps:
            self._log(epoch)
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
