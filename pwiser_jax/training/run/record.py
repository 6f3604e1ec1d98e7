"""What is kept of a run while it trains: its window of metrics and early stopping."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pwiser_jax.config import Config
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import mean_auc
from pwiser_jax.schema import Schema
from pwiser_jax.training.devices import processes
from pwiser_jax.training.run import protocol
from pwiser_jax.training.run.metrics import TIMING, MetricsWriter
from pwiser_jax.training.run.stopwatch import Stopwatch


@dataclass
class Progress:
    """The state of a run besides its weights.

    It is kept in each checkpoint, so that a resumed run is the same.

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


def numbers(values: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Diagnostics for JSON: counts stay integers, what is not finite is None."""
    items = ((name, np.asarray(value).item()) for name, value in sorted(values.items()))
    return {name: value if math.isfinite(value) else None for name, value in items}


def result(config: Config, progress: Progress) -> dict[str, Any]:
    """The tree of result.json."""
    return {
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


class Record:
    """The progress of one run, and the lines of metrics that come of it.

    With a stopwatch, a line of timings follows each of metrics.
    """

    def __init__(
        self,
        config: Config,
        schema: Schema,
        metrics: MetricsWriter,
        progress: Progress,
        stopwatch: Stopwatch | None = None,
    ) -> None:
        self.config, self.schema = config, schema
        self.metrics, self.progress = metrics, progress
        self._stopwatch = stopwatch
        self.aucs: dict[str, float] = {}

    def read(
        self,
        losses: Mapping[str, np.ndarray],
        diagnostics: Mapping[str, np.ndarray],
        count: int,
    ) -> None:
        """Takes the metrics of the next `count` steps: those up to a line are averaged.

        Raises:
            UserError: one of them is not finite.
        """
        progress = self.progress
        for at in range(count):
            progress.step += 1
            # The parts first: a part says more than the whole.
            for name in sorted(losses, key="loss".__eq__):
                value = losses[name][at]
                if not np.isfinite(value):
                    raise UserError(
                        f"the loss is not finite: {name} is {value} at step "
                        f"{progress.step}; the last good checkpoint stays"
                    )
                total = progress.window.get(name, 0.0)
                progress.window[name] = total + float(value)
            progress.window_steps += 1
            if progress.step % self.config.train.log_every == 0:
                self._log(numbers({k: v[at] for k, v in diagnostics.items()}))

    def _log(self, observed: Mapping[str, float | int | None]) -> None:
        """A line of metrics: means since the line before, and what was observed."""
        progress = self.progress
        means = {k: v / progress.window_steps for k, v in progress.window.items()}
        line = {"epoch": progress.epoch, **means, **observed}
        self.metrics.write("train", progress.step, line)
        if self._stopwatch is not None:
            self.metrics.write(TIMING, progress.step, self._stopwatch.lap())
        progress.window, progress.window_steps = {}, 0

    def end_epoch(self, logits: Mapping[str, np.ndarray], valid: Rows) -> bool:
        """Takes the validation logits; whether they are better than those before.

        Raises:
            UserError: they are not finite.
        """
        progress, config = self.progress, self.config
        for name, values in logits.items():
            if not np.all(np.isfinite(values)):
                raise UserError(
                    f"the logits of {name} are not finite after step {progress.step}; "
                    "the last good checkpoint stays"
                )
        mean, aucs = processes.from_first(
            mean_auc(logits, valid.labels, self.schema.labels, config.model.cvr_space)
        )
        self.aucs = aucs
        if progress.window_steps:
            self._log({})
        epoch = progress.epoch
        self.metrics.write(
            protocol.CHOSEN[config.protocol],
            progress.step,
            {"epoch": epoch, "auc": aucs, "mean_auc": mean},
        )
        better = mean > progress.best_auc
        if better:
            progress.best_auc, progress.best_aucs = mean, aucs
            progress.best_step, progress.best_epoch = progress.step, epoch
            progress.without_gain = 0
        else:
            progress.without_gain += 1
        if progress.without_gain >= config.train.patience:
            progress.stopped = "early"
        elif epoch + 1 >= config.train.epochs:
            progress.stopped = "epochs"
        progress.epoch = epoch + 1
        return better

    def epoch_line(self) -> str:
        """The last epoch's AUCs, a star for the best so far, for people to read."""
        progress = self.progress
        chosen = protocol.CHOSEN[self.config.protocol]
        shown = "  ".join(f"{name} {value:.4f}" for name, value in self.aucs.items())
        mark = " *" if progress.without_gain == 0 else ""
        return f"epoch {progress.epoch}: {protocol.NAMES[chosen]} AUC {shown}{mark}"
