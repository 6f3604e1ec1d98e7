"""Metrics, early stopping and result of a run."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import numpy as np

from pwiser_jax.config import Config
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import mean_auc
from pwiser_jax.metrics import log_loss_from_logits
from pwiser_jax.schema import Schema
from pwiser_jax.tasks import trained
from pwiser_jax.training.devices import processes
from pwiser_jax.training.run import protocol
from pwiser_jax.training.run.metrics import TIMING, MetricsWriter
from pwiser_jax.training.run.stopwatch import Stopwatch
from pwiser_jax.training.schedule import Schedule

Aucs = dict[str, float | None]


@dataclass
class Progress:
    """The state of a run besides its weights.

    Each checkpoint holds it, so that a resumed run equals an uninterrupted one.

    `step` is the number of steps done, which is the position in the data; `epoch` is
    the number of epochs done and evaluated. `poor` names the heads whose validation
    loss at the best epoch is above that of a constant: (their loss, the constant's).
    """

    step: int = 0
    epoch: int = 0
    best_step: int = -1
    best_epoch: int = -1
    best_auc: float | None = None
    best_aucs: Aucs = field(default_factory=dict)
    poor: dict[str, list[float]] = field(default_factory=dict)
    without_gain: int = 0
    stopped: str = ""
    failure: str = ""
    window: dict[str, float] = field(default_factory=dict)
    window_steps: int = 0


def numbers(values: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Diagnostics as JSON types; non-finite numbers become None."""
    items = ((name, np.asarray(value).item()) for name, value in sorted(values.items()))
    return {name: value if math.isfinite(value) else None for name, value in items}


@dataclass(frozen=True)
class Best:
    """The epoch with the best validation AUC, and its AUCs.

    An AUC is None where the validation rows lack a class.
    """

    epoch: int
    step: int
    mean_auc: float | None
    auc: Aucs


@dataclass(frozen=True)
class TrainResult:
    """The result of a run.

    Args:
        best: the epoch that was chosen.
        steps: number of training steps.
        stopped: "early" or "epochs".
        protocol: None for the default one.
        note: the caution that must accompany figures of the protocol.
        other: options that differ from the protocol's.
        warning: a sentence, if the run's probabilities are useless.
    """

    best: Best
    steps: int
    stopped: str
    protocol: str | None = None
    note: str | None = None
    other: list[str] | None = None
    warning: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The tree of result.json, without None."""
        return {name: each for name, each in asdict(self).items() if each is not None}

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> Self:
        return cls(**{**tree, "best": Best(**tree["best"])})


def result(config: Config, progress: Progress) -> TrainResult:
    """The result of a run that has stopped."""
    return TrainResult(
        Best(
            epoch=progress.best_epoch,
            step=progress.best_step,
            mean_auc=progress.best_auc,
            auc=progress.best_aucs,
        ),
        steps=progress.step,
        stopped=progress.stopped,
        warning=_warning(config, progress),
        **protocol.label(config),
    )


def _warning(config: Config, progress: Progress) -> str | None:
    if not progress.poor:
        return None
    heads = ", ".join(
        f"{name} {loss:.4g} (the constant's: {constant:.4g})"
        for name, (loss, constant) in progress.poor.items()
    )
    rows = protocol.NAMES[protocol.CHOSEN[config.protocol]]
    return (
        f"worse than a constant prediction on the {rows} rows, by log loss: {heads}; "
        "the probabilities are useless (train longer, or lower the learning rate)"
    )


class Record:
    """The progress of one run, and its lines of metrics.

    Args:
        config: configuration of the run.
        schema: schema of the data.
        metrics: writes the lines.
        progress: progress of the run, updated in place.
        schedule: says which steps are logged.
        stopwatch: adds a line of timings after each line of metrics.
    """

    def __init__(
        self,
        config: Config,
        schema: Schema,
        metrics: MetricsWriter,
        progress: Progress,
        schedule: Schedule,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.config, self.schema = config, schema
        self.metrics, self.progress = metrics, progress
        self._schedule, self._stopwatch = schedule, stopwatch
        self.aucs: Aucs = {}

    def read(
        self,
        losses: Mapping[str, np.ndarray],
        diagnostics: Mapping[str, np.ndarray],
        count: int,
    ) -> None:
        """Adds the metrics of `count` steps; a line has means since the previous line.

        Raises:
            UserError: one of them is not finite.
        """
        progress = self.progress
        for at in range(count):
            progress.step += 1
            # The parts first: they say more than the total.
            for name in sorted(losses, key="loss".__eq__):
                value = losses[name][at]
                if not np.isfinite(value):
                    raise UserError(
                        f"the loss is not finite: {name} is {value} at step "
                        f"{progress.step}"
                    )
                total = progress.window.get(name, 0.0)
                progress.window[name] = total + float(value)
            progress.window_steps += 1
            if self._schedule.logs(progress.step):
                self._log(numbers({k: v[at] for k, v in diagnostics.items()}))

    def _log(self, observed: Mapping[str, float | int | None]) -> None:
        """Writes a line: means since the last line, and diagnostics of this step."""
        progress = self.progress
        means = {k: v / progress.window_steps for k, v in progress.window.items()}
        line = {"epoch": progress.epoch, **means, **observed}
        self.metrics.write("train", progress.step, line)
        if self._stopwatch is not None:
            self.metrics.write(TIMING, progress.step, self._stopwatch.lap())
        progress.window, progress.window_steps = {}, 0

    def end_epoch(self, logits: Mapping[str, np.ndarray], valid: Rows) -> bool:
        """Evaluates the validation logits; returns whether they are the best so far.

        Raises:
            UserError: they are not finite.
        """
        progress, config = self.progress, self.config
        for name, values in logits.items():
            if not np.all(np.isfinite(values)):
                raise UserError(
                    f"the logits of {name} are not finite after step {progress.step}"
                )
        measured = mean_auc(
            logits, valid.labels, self.schema.labels, config.model.cvr_space
        )
        mean, aucs, reasons = processes.from_first(
            [measured.mean, measured.auc, measured.reasons]
        )
        self.aucs = aucs
        if progress.window_steps:
            self._log({})
        epoch = progress.epoch
        self.metrics.write(
            protocol.CHOSEN[config.protocol],
            progress.step,
            {
                "epoch": epoch,
                "auc": self.aucs,
                "mean_auc": mean,
                **({"reason": reasons} if reasons else {}),
            },
        )
        # Where no AUC is defined, the first epoch stays the best.
        best = progress.best_auc
        better = progress.best_step < 0 or (
            mean is not None and (best is None or mean > best)
        )
        if better:
            progress.best_auc, progress.best_aucs = mean, self.aucs
            progress.best_step, progress.best_epoch = progress.step, epoch
            progress.poor = self._poor(logits, valid)
            progress.without_gain = 0
        else:
            progress.without_gain += 1
        if progress.without_gain >= config.train.patience:
            progress.stopped = "early"
        elif epoch + 1 >= config.train.epochs:
            progress.stopped = "epochs"
        progress.epoch = epoch + 1
        return better

    def _poor(
        self, logits: Mapping[str, np.ndarray], valid: Rows
    ) -> dict[str, list[float]]:
        """Heads with a log loss above that of the best constant, and both losses."""
        level, poor = valid.labels.sum(axis=1), {}
        for task in trained(self.schema.labels, self.config.model.cvr_space):
            rows = level >= task.given
            label = level[rows] >= task.rung
            rate = float(np.mean(label)) if len(label) else 0.0
            if 0 < rate < 1:
                loss = log_loss_from_logits(label, logits[task.name][rows])
                odds = math.log(rate) - math.log1p(-rate)
                constant = log_loss_from_logits(label, np.full(len(label), odds))
                if loss > constant:
                    poor[task.name] = [float(loss), float(constant)]
        return poor

    def epoch_line(self) -> str:
        """The last epoch's AUCs as a line of text; a star marks the best so far."""
        progress = self.progress
        chosen = protocol.CHOSEN[self.config.protocol]
        shown = "  ".join(
            f"{name} {'not defined' if auc is None else f'{auc:.4f}'}"
            for name, auc in self.aucs.items()
        )
        mark = " *" if progress.without_gain == 0 else ""
        return f"epoch {progress.epoch}: {protocol.NAMES[chosen]} AUC {shown}{mark}"
