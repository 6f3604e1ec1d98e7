"""Trains and measures runs on one prepared dataset.

The folder of a run is RUNS/DATASET-HASH/MODEL-LOSS-SEED-HASH, with hashes of the data's
manifest and of the configuration. A finished run is not trained again, by this
experiment or another, and a killed run resumes. Processes that share RUNS take turns on
a dataset, so they do not train the same run.
"""

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    track,
)

from experiments.lib.runs import Run
from pwiser_jax.atomic import InUse, locked
from pwiser_jax.config import Config
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import FILE
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import Evaluation
from pwiser_jax.host import free_programs
from pwiser_jax.inference.evaluate import evaluate_run
from pwiser_jax.schema import Schema
from pwiser_jax.training.run.folder import RESULT, config_hash, read_result
from pwiser_jax.training.sweep import (
    RunsFailed,
    most_runs,
    sweep_key,
    sweeps_in_progress,
    train_sweep,
)

MEASURES = dict.fromkeys(("auc", "log_loss"), pl.Float64) | {"reason": pl.String}
WAIT = 1.0  # seconds between attempts to take a lock


def results_of(
    planned: Sequence[Run],
    data: Path,
    runs: Path,
    split: str,
    cluster: str | None = None,
) -> pl.DataFrame:
    """Trains and evaluates the missing runs; returns all results in long form.

    Args:
        planned: the runs.
        data: the prepared folder.
        runs: the folder of run folders.
        split: the split that is measured: "valid" or "test".
        cluster: a Ray cluster to train on, see `cluster.connect`; None: this process.
    Returns:
        One row per run and task, in order: dataset, model, loss, seed, the runs' tags
        (null where a run lacks one), split, protocol, task, auc, log_loss, reason (why
        auc is null), best_epoch, run, config_hash.
    Raises:
        UserError: no such data, no run, or a run that failed.
    """
    if not planned:
        raise UserError("there is nothing to run")
    prepared = Prepared(data)
    tags = dict.fromkeys(name for run in planned for name in run.tags)
    dataset = prepared.manifest.dataset
    manifest = (data / FILE).read_bytes()
    series = f"{dataset}-{hashlib.sha256(manifest).hexdigest()[:8]}"
    configs = {
        runs / series / run.name: replace(
            run.config, data=replace(run.config.data, path=str(data))
        )
        for run in planned
    }
    if cluster is None:
        with in_turn(runs / series):
            _train(configs, prepared.schema)
    elif not all((folder / RESULT).exists() for folder in configs):
        from pwiser_jax.training.cluster.study import train_study

        _when_free(lambda: train_study(configs, runs / series, cluster, split))
    rows: list[dict[str, Any]] = []
    for run in track(planned, "measuring", console=_console()):
        folder = f"{series}/{run.name}"
        best = read_result(runs / folder).best
        measures = evaluation(runs / folder, split, prepared.schema.labels)
        for name, task in measures.tasks.items():
            rows.append(
                {
                    "dataset": dataset,
                    "model": run.model,
                    "loss": run.loss,
                    "seed": run.seed,
                    **{tag: run.tags.get(tag) for tag in tags},
                    "split": split,
                    "protocol": run.config.protocol,
                    "task": name,
                    "auc": task.auc.value,
                    "log_loss": task.log_loss,
                    "reason": task.auc.reason,
                    "best_epoch": best.epoch + 1,
                    "run": folder,
                    "config_hash": config_hash(run.config),
                }
            )
    return pl.DataFrame(rows, schema_overrides=MEASURES, infer_schema_length=None)


@contextmanager
def in_turn(folder: Path) -> Iterator[None]:
    """Locks a folder; waits while another process holds the lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        _when_free(lambda: stack.enter_context(locked(folder, "running experiments")))
        yield


def _when_free(work: Callable[[], None]) -> None:
    """Calls `work` until no other process holds the lock that it takes."""
    waiting = False
    while True:
        try:
            return work()
        except InUse as error:
            if not waiting:
                _console().print(f"waiting: {error}", markup=False)
            waiting = True
            time.sleep(WAIT)


def _train(configs: Mapping[Path, Config], schema: Schema) -> None:
    """Trains the missing runs, sweep by sweep.

    Raises:
        UserError: some runs failed; all others are finished.
    """
    missing = [f for f, config in configs.items() if not (f / RESULT).exists()]
    failures: dict[Path, str] = {}
    with _Bar(len(configs), len(configs) - len(missing)) as bar:
        for folders in _sweeps(missing, configs, schema):
            bar.sweep([folder.name for folder in folders])
            try:
                train_sweep([configs[folder] for folder in folders], folders, bar)
            except RunsFailed as error:
                failures |= error.failures
            bar.done(len(folders))
            free_programs()
    if failures:
        raise RunsFailed(failures, len(configs))


def _sweeps(
    missing: list[Path], configs: Mapping[Path, Config], schema: Schema
) -> list[list[Path]]:
    """The folders of each sweep; unfinished sweeps come first."""
    sweeps = [
        folders
        for parent in dict.fromkeys(folder.parent for folder in missing)
        for folders in sweeps_in_progress(parent).values()
        if configs.keys() >= set(folders) and not set(missing).isdisjoint(folders)
    ]
    resumed = {folder for folders in sweeps for folder in folders}
    groups: dict[str, list[Path]] = {}
    for folder in missing:
        if folder not in resumed:
            groups.setdefault(sweep_key(configs[folder]), []).append(folder)
    for folders in groups.values():
        # Sweeps of equal size, not full ones and a remainder.
        count = -(-len(folders) // most_runs(configs[folders[0]], schema))
        ends = [len(folders) * i // count for i in range(count + 1)]
        sweeps += [folders[start:end] for start, end in pairwise(ends)]
    return sweeps


def _console() -> Console:
    return Console(stderr=True, highlight=False)


class _Bar(Progress):
    """Progress: steps of the current sweep, and finished runs of all."""

    def __init__(self, runs: int, done: int) -> None:
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=_console(),
        )
        self._runs = self.add_task("runs", total=runs, completed=done)
        self._steps = self.add_task("steps", total=None, visible=False)
        self._name = ""

    def sweep(self, names: list[str]) -> None:
        """Begins a sweep."""
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        self._name = names[0].rpartition("-")[0] + more
        self.reset(self._steps, description=self._name, visible=True)

    def done(self, runs: int) -> None:
        """Counts the runs of a finished sweep."""
        self.update(self._runs, advance=runs)

    def epoch(self, epoch: int, steps: int, done: int) -> None:
        self.reset(
            self._steps,
            description=f"{self._name}: epoch {epoch + 1}",
            total=steps,
            completed=done,
        )

    def steps(self, count: int, loss: float, rows_per_second: float) -> None:
        self.update(self._steps, advance=count)

    def line(self, text: str) -> None:
        pass


def evaluation(run: Path, split: str, labels: tuple[str, ...]) -> Evaluation:
    """The measures of a run's best checkpoint; each split is measured once."""
    path = run / f"evaluation_{split}.json"
    if path.exists():
        return Evaluation.from_dict(json.loads(path.read_text()), labels)
    return evaluate_run(run, split)
