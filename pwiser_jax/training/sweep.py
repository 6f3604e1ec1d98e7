"""Many runs at once: runs of one shape as one program over shared batches.

Each run equals its solo run (`loop.train`) up to what two programs round differently:
it has the same initial weights, its own order of the rows, its own dropout and its own
early stopping, and its folder ends up with the same files, `checkpoints/last` aside.

A sweep in progress keeps its own checkpoints in `.sweeps/NAME` beside the first run's
folder, and goes on from them; the folder is deleted when the sweep is over.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pwiser_jax.atomic import write_whole
from pwiser_jax.config import Config
from pwiser_jax.data.batches.batches import (
    epoch_batches,
    sequential_batches,
    steps_per_epoch,
)
from pwiser_jax.data.batches.prefetch import prefetched
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.errors import UserError
from pwiser_jax.host import prepare_host
from pwiser_jax.schema import Schema
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices.programs import (
    dealt,
    runs_at_once,
    stack_size,
    sweep_eval_program,
    sweep_program,
)
from pwiser_jax.training.devices.several import MOST_STEPS, pace
from pwiser_jax.training.devices.signals import Interrupted, StopSignals
from pwiser_jax.training.devices.stack import filled, stack, stack_hypers, unstack
from pwiser_jax.training.inference import (
    draw_program,
    state_template,
)
from pwiser_jax.training.objective import Objective, Weights
from pwiser_jax.training.run import protocol
from pwiser_jax.training.run.checkpoint import Checkpoints
from pwiser_jax.training.run.folder import RESULT, config_hash, open_run, write_json
from pwiser_jax.training.run.metrics import MetricsWriter
from pwiser_jax.training.run.progress import Reporter
from pwiser_jax.training.run.record import Progress, Record, result
from pwiser_jax.training.step import (
    Batch,
    ModelSpec,
    StepSpec,
    TrainState,
    example_inputs,
    hyper,
    state_shapes,
    step_spec,
    train_step,
)

SWEEPS = ".sweeps"
MEMBERS = "sweep.json"
FAILURE = "failure.txt"

# Runs of a sweep at most: more gain nothing on a CPU, and a kill would cost more. Their
# states are in memory several times: at work, the best, and both for a checkpoint.
MOST_RUNS = 16
STATE_COPIES = 4
STATE_BYTES = 4 * 2**30


class RunsFailed(UserError):
    """Some runs of a sweep failed; all others are finished.

    Attributes:
        failures: the sentence of each by its folder.
    """

    def __init__(self, failures: dict[Path, str], runs: int) -> None:
        told = "; ".join(f"{folder}: {text}" for folder, text in failures.items())
        super().__init__(
            f"{len(failures)} of {runs} runs failed, the others are finished: {told}"
        )
        self.failures = failures


def sweep_key(config: Config) -> str:
    """What the runs of one sweep have in common: equal for configs that share one.

    Seed, learning rate, L2, lambdas, margins and terms left out may differ; with a bank
    margins may not, nor anything else.
    """
    margins = config.loss.margins if config.loss.bank else None
    common = replace(
        config,
        loss=replace(config.loss, lambdas=0.0, margins=margins),
        optimizer=replace(config.optimizer, learning_rate=1.0, l2=0.0),
        train=replace(config.train, seed=0),
    )
    return f"{config_hash(common)} {config.data.path}"


def most_runs(config: Config, schema: Schema) -> int:
    """How many runs of a configuration one sweep should have."""
    leaves = jax.tree.leaves(state_template(config, schema))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return max(1, min(MOST_RUNS, STATE_BYTES // (STATE_COPIES * size)))


def sweeps_in_progress(parent: Path) -> dict[Path, list[Path]]:
    """The folders of the runs of each sweep that was cut off, beside `parent`'s runs.

    Such a sweep goes on if `train_sweep` is given all of its runs. Keys are the sweeps'
    own folders.
    """
    return {
        path.parent: [
            Path(os.path.normpath(parent / name))
            for name in json.loads(path.read_text())
        ]
        for path in sorted((parent / SWEEPS).glob(f"*/{MEMBERS}"))
    }


def train_sweep(
    configs: Sequence[Config],
    outputs: Sequence[Path],
    reporter: Reporter,
    *,
    stop_after: int | None = None,
) -> list[dict[str, Any]]:
    """Trains runs of one `sweep_key` together, or goes on with them.

    Args:
        configs: one a run.
        outputs: the runs' folders; finished runs among them are left as they are.
        reporter: hears of steps (a step of all runs is one) and epochs.
        stop_after: ends this call after so many steps of its own, with a checkpoint.
    Returns:
        The tree of result.json of each run.
    Raises:
        ValueError: the configs do not share a sweep, or a folder is named twice.
        UserError: the data, a configuration or a folder do not fit, or large tables
            are to be sharded.
        RunsFailed: the loss of some runs was not finite; each stopped alone there, with
            the sentence in its failure.txt.
        Interrupted: stopped by a signal or `stop_after`, after saving.
    """
    # 1. Data, folders, and which runs there are to train.
    prepare_host()
    outputs = [Path(os.path.normpath(output)) for output in outputs]
    if len({sweep_key(config) for config in configs}) != 1:
        raise ValueError("the configs do not share a sweep_key")
    if len(set(outputs)) != len(configs) or len(outputs) != len(configs):
        raise ValueError("each config needs a folder of its own")
    data = configs[0].data
    if configs[0].optimizer.shard_tables:
        raise UserError(
            "optimizer.shard_tables: the runs of a sweep are whole on a device each; "
            "leave it out, or train such runs one by one"
        )
    if not data.path:
        raise UserError("data.path is needed: a folder that `pwiser prepare` wrote")
    prepared = Prepared(Path(data.path))
    for config, output in zip(configs, outputs, strict=True):
        open_run(output, config, Path(data.path))
    by_folder = dict(zip(outputs, configs, strict=True))
    missing = [folder for folder in outputs if not (folder / RESULT).exists()]
    if missing:
        home, members = _home(missing, outputs)
        sweep = _Sweep(
            [by_folder[folder] for folder in members],
            members,
            home,
            prepared,
            reporter,
        )
        sweep.run(stop_after)
    # 2. Results.
    failures = {
        folder: (folder / FAILURE).read_text().strip()
        for folder in outputs
        if not (folder / RESULT).exists()
    }
    if failures:
        raise RunsFailed(failures, len(outputs))
    return [json.loads((folder / RESULT).read_text()) for folder in outputs]


def _home(missing: list[Path], outputs: Sequence[Path]) -> tuple[Path, list[Path]]:
    """The sweep's own folder and its runs: one in progress, or else a new one."""
    parent = outputs[0].parent
    for home, members in sweeps_in_progress(parent).items():
        if set(missing) <= set(members) <= set(outputs):
            return home, members
        if not set(missing).isdisjoint(members):
            shutil.rmtree(home)  # its runs are taken over
    names = [os.path.relpath(folder, parent) for folder in missing]
    told = hashlib.sha256(json.dumps(names).encode()).hexdigest()[:12]
    home = parent / SWEEPS / told
    shutil.rmtree(home, ignore_errors=True)
    for folder in missing:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / FAILURE).unlink(missing_ok=True)
    home.mkdir(parents=True)
    write_whole(home / MEMBERS, json.dumps(names))
    return home, missing


class _Sweep:
    """The loop over epochs and steps of all runs."""

    def __init__(
        self,
        configs: list[Config],
        outputs: list[Path],
        home: Path,
        prepared: Prepared,
        reporter: Reporter,
    ) -> None:
        self.configs, self.outputs, self.home = configs, outputs, home
        self.config, self.schema, self.reporter = configs[0], prepared.schema, reporter
        self.train_rows, self.valid_rows = protocol.rows_of(
            self.config.protocol, prepared
        )
        data, model = self.config.data, self.config.model
        self.epoch_steps = steps_per_epoch(
            self.train_rows,
            data.batch_size,
            min_conversions=data.min_conversions,
        )
        built = [
            objectives.build(config.loss, self.schema.labels, model.cvr_space)
            for config in configs
        ]
        self.own = [objective for objective, _ in built]
        self.objective, weights = objectives.union(built)
        self.size = stack_size(len(configs))
        self.seeds = sorted({config.train.seed for config in configs})
        which = [self.seeds.index(config.train.seed) for config in configs]
        self.which = np.array(self._padded(which), np.int32)
        total = self.config.train.epochs * self.epoch_steps
        hypers = [hyper(c, w, total) for c, w in zip(configs, weights, strict=True)]
        self.hypers = stack_hypers(self._padded(hypers))
        self.names = self._metric_names([w for _, w in built])
        at_once = runs_at_once(len(configs))
        self.program = sweep_program(self._spec(self.objective), at_once)
        evaluated = ModelSpec(model=model, schema=self.schema)
        self.evaluate = sweep_eval_program(evaluated, at_once)
        for text in protocol.lines(self.config):
            reporter.line(text)
        self.pace = 1
        self.failures: dict[int, str] = {}

    def run(self, stop_after: int | None) -> None:
        """From the last checkpoint, or from the seeds, to results."""
        checkpoints = Checkpoints(self.home, "last")
        self.checkpoints = checkpoints
        try:
            self._restore()
            budget = None if stop_after is None else self.step + stop_after
            for progress, output in zip(self.progress, self.outputs, strict=True):
                if (output / RESULT).exists():  # finished by others, meanwhile
                    progress.stopped = progress.stopped or "elsewhere"
            self.records = {
                run: Record(
                    self.configs[run],
                    self.schema,
                    MetricsWriter(self.outputs[run], self.progress[run].step),
                    self.progress[run],
                )
                for run, going in enumerate(self.active)
                if going
            }
            try:
                with StopSignals() as signals:
                    while any(self.active):
                        self.train_epoch(signals, budget)
                        if any(self.active):
                            self.end_epoch()
            finally:
                for record in self.records.values():
                    record.metrics.close()
        finally:
            checkpoints.close()
        self.finish()

    @property
    def active(self) -> list[bool]:
        """Which runs go on."""
        return [
            not progress.stopped and run not in self.failures
            for run, progress in enumerate(self.progress)
        ]

    def _restore(self) -> None:
        found = self.checkpoints.restore(self._template(), self.reporter.line)
        if found is None:
            draw = draw_program(self._spec(self.objective))
            drawn = {seed: jax.device_get(draw(seed)) for seed in self.seeds}
            self.best = [drawn[config.train.seed] for config in self.configs]
            self.states = dealt(stack(self._padded(self.best)))
            self.progress = [Progress() for _ in self.configs]
            self.step = self.epoch = 0
            return
        (states, best), loop = jax.device_get(found[0]), found[1]
        self.best = unstack(best, len(self.configs))
        states = unstack(states, len(self.configs))
        self.states = dealt(stack(self._padded(states)))
        self.progress = [Progress(**tree) for tree in loop["progress"]]
        self.failures = {int(run): text for run, text in loop["failures"].items()}
        self.step, self.epoch = loop["step"], loop["epoch"]
        self.reporter.line(f"going on from the checkpoint at step {self.step}")

    def _padded(self, items: list[Any]) -> list[Any]:
        """With the last run again, never active, up to the size of the stack."""
        return items + items[-1:] * (self.size - len(items))

    def _spec(self, objective: Objective) -> StepSpec:
        return step_spec(self.config, self.schema, objective)

    def _template(self) -> tuple[TrainState, TrainState]:
        """The shapes of a checkpoint: the states, and the best states so far."""
        runs = len(self.configs)
        states = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((runs, *x.shape), x.dtype),
            state_shapes(self._spec(self.objective)),
        )
        return states, states

    def _metric_names(self, weights: list[Weights]) -> list[set[str]]:
        """The metrics that each run has alone: not those of others' heads and terms."""
        batch = Batch(
            inputs=example_inputs(self.schema),
            labels=np.zeros((1, len(self.schema.labels)), np.int8),
            mask=np.ones(1, bool),
            rows=np.zeros(1, np.uint32),
            weights=np.ones(1, np.float32),
        )
        names: dict[Objective, set[str]] = {}
        for config, objective, own in zip(self.configs, self.own, weights, strict=True):
            if objective not in names:
                spec = self._spec(objective)
                step, numbers = partial(train_step, spec), hyper(config, own, 1)
                shapes = jax.eval_shape(step, state_shapes(spec), batch, numbers)
                names[objective] = {*shapes[1], *shapes[2]}
        return [names[objective] for objective in self.own]

    def save(self) -> None:
        loop = {
            "progress": [asdict(progress) for progress in self.progress],
            "failures": {str(run): text for run, text in self.failures.items()},
            "step": self.step,
            "epoch": self.epoch,
        }
        self.checkpoints.save(self.step, (self._host(), stack(self.best)), loop)

    def _host(self) -> TrainState:
        """The states of the runs, without padding, in the host's memory."""
        host = jax.device_get(self.states)
        # Copies: the next step gives the buffers of the states away.
        return jax.tree.map(lambda x: np.array(x[: len(self.configs)]), host)

    def _mask(self) -> np.ndarray:
        return np.pad(self.active, (0, self.size - len(self.configs)))

    def train_epoch(self, signals: StopSignals, budget: int | None) -> None:
        """The rest of an epoch, from the position on."""
        end = (self.epoch + 1) * self.epoch_steps
        done = self.step + self.epoch_steps - end
        every = self.config.train.checkpoint_interval
        self.reporter.epoch(self.epoch, self.epoch_steps, done)
        clock = time.perf_counter()
        with prefetched(self._calls(done, end, budget)) as calls:
            for batches, count in calls:
                self.states, values = self.program(
                    self.states,
                    batches,
                    np.int32(count),
                    self.hypers,
                    self.which,
                    self._mask(),
                )
                loss = self._read(jax.device_get(values), count)
                now = time.perf_counter()
                seconds, clock = max(now - clock, 1e-9) / count, now
                self.pace = pace(seconds)
                rows = self.config.data.batch_size * sum(self.active)
                self.reporter.steps(count, loss, rows / seconds)
                stop = signals.received is not None or self.step == budget
                if stop or self.step % every == 0:
                    self.save()
                if stop:
                    raise Interrupted(self.step, signals.received or 0)
                if not any(self.active):
                    return

    def _calls(
        self, done: int, end: int, budget: int | None
    ) -> Iterator[tuple[Batch, int]]:
        """The rest of an epoch's batches, call by call, each with its number of steps.

        Batches are [k, S, B, ...]: those of each distinct seed.
        """
        data, every = self.config.data, self.config.train.checkpoint_interval
        orders = [
            epoch_batches(
                self.train_rows,
                data.batch_size,
                seed=seed,
                epoch=self.epoch,
                start_step=done,
                min_conversions=data.min_conversions,
            )
            for seed in self.seeds
        ]
        step = self.step
        while step < end:
            # No call goes beyond a step after which something is to be done.
            stops = [end, (step // every + 1) * every]
            stops += [budget] if budget is not None and budget > step else []
            count = min(self.pace, min(stops) - step)
            steps = [
                stack(
                    [
                        Batch(b.inputs, b.labels, b.mask, b.rows, b.weights)
                        for b in map(next, orders)
                    ]
                )
                for _ in range(count)
            ]
            yield filled(stack(steps), MOST_STEPS), count
            step += count

    def _read(self, values: list[dict[str, np.ndarray]], count: int) -> float:
        """Gives each run its metrics; returns the mean loss of those that go on."""
        self.step += count
        losses = []
        for run, going in enumerate(self.active):
            if not going:
                continue
            own = [
                {k: v[run] for k, v in each.items() if k in self.names[run]}
                for each in values
            ]
            try:
                self.records[run].read(own[0], own[1], count)
                losses.append(own[0]["loss"][:count].mean())
            except UserError as error:
                self._fail(run, error)
        return float(np.mean(losses)) if losses else np.nan

    def _fail(self, run: int, error: UserError) -> None:
        self.failures[run] = str(error)
        self.reporter.line(f"{self.outputs[run]}: {error}")

    def end_epoch(self) -> None:
        """Validation and early stopping of each run, and a checkpoint."""
        logits, host = self._logits(), self._host()
        better = 0
        for run, going in enumerate(self.active):
            if not going:
                continue
            own = {name: values[run] for name, values in logits.items()}
            try:
                if self.records[run].end_epoch(own, self.valid_rows):
                    self.best[run] = jax.tree.map(lambda x, i=run: np.array(x[i]), host)
                    better += 1
            except UserError as error:
                self._fail(run, error)
        self.epoch += 1
        self.save()
        going = sum(self.active)
        self.reporter.line(
            f"epoch {self.epoch}: {better} runs better than before, {going} of "
            f"{len(self.configs)} go on"
        )

    def _logits(self) -> dict[str, np.ndarray]:
        """f32[R, rows] by name for the validation rows."""
        chunks: dict[str, list[np.ndarray]] = {}
        size = self.config.data.eval_batch_size
        for batch in sequential_batches(self.valid_rows, size):
            states, count = self.states, int(np.sum(batch.mask))
            logits = self.evaluate(
                states.params, states.batch_stats, batch.inputs, self._mask()
            )
            for name, values in jax.device_get(logits).items():
                chunks.setdefault(name, []).append(values[:, :count])
        return {name: np.concatenate(parts, axis=1) for name, parts in chunks.items()}

    def finish(self) -> None:
        """Each run's best checkpoint and result, or why there is none."""
        for run, output in enumerate(self.outputs):
            progress, best = self.progress[run], self.best[run]
            if run in self.failures:
                write_whole(output / FAILURE, self.failures[run] + "\n")
                continue
            if (output / RESULT).exists():
                continue
            banks = {k: v for k, v in best.banks.items() if k in self.own[run].ranked}
            checkpoints = Checkpoints(output, "best")
            try:
                checkpoints.save(
                    progress.best_step, best._replace(banks=banks), asdict(progress)
                )
            finally:
                checkpoints.close()
            write_json(output / RESULT, result(self.configs[run], progress))
        shutil.rmtree(self.home)
        if not any(self.home.parent.iterdir()):
            self.home.parent.rmdir()
