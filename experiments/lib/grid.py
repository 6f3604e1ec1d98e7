"""Runs on one prepared dataset: a list of cells, or a grid of them paired by seed.

A run's folder, RUNS/DATASET-HASH/MODEL-LOSS-SEED-HASH, is named by what makes its
numbers (the hashes are of the data's manifest and of the configuration). So a run that
exists is not run again, by this experiment or another, and a killed one goes on.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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

from pwiser_jax.config import Config, DataConfig, load_config
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import FILE
from pwiser_jax.errors import UserError
from pwiser_jax.inference.evaluate import evaluate_run
from pwiser_jax.schema import Schema
from pwiser_jax.tasks import measured
from pwiser_jax.training.run.folder import RESULT, config_hash
from pwiser_jax.training.sweep import (
    RunsFailed,
    most_runs,
    sweep_key,
    sweeps_in_progress,
    train_sweep,
)

PWISER = {"ranking": "pwiser"}
# What a loss changes in a config's `loss` section. Paired runs share the rest, so they
# have the same initial weights and see the same batches.
LOSSES: Mapping[str, Mapping[str, Any]] = {
    "bce": {**PWISER, "lambdas": 0.0},
    "pwiser": {**PWISER, "lambdas": 0.1},
    "without_click_only": {
        **PWISER,
        "lambdas": 0.1,
        "margins": {"conversion>click": None},
    },
    "without_no_click": {
        **PWISER,
        "lambdas": 0.1,
        "margins": {"conversion>exposure": None},
    },
    "bce_on_conversions": {**PWISER, "lambdas": 0.1, "bce_rows": "conversions"},
    "ctr_only": {**PWISER, "lambdas": {"ctr": 0.1}},
    "ctcvr_only": {**PWISER, "lambdas": {"ctcvr": 0.1}},
    "logit": {**PWISER, "lambdas": 0.1, "scores": "logit"},
    "logistic": {**PWISER, "lambdas": 0.1, "scores": "logit", "surrogate": "logistic"},
    "literal_gate": {**PWISER, "lambdas": 0.1, "gate": "literal"},
    "per_negative": {**PWISER, "lambdas": 0.1, "normalize": "negatives"},
    "plain_sums": {**PWISER, "lambdas": 1e-5, "normalize": "none"},
    "balanced": {**PWISER, "lambdas": 1.0, "normalize": "balanced"},
    "bank": {**PWISER, "lambdas": 0.1, "bank": 64},
    "bce_conversion_aware": {**PWISER, "lambdas": 0.0},
    "conversion_aware": {**PWISER, "lambdas": 0.1},
}
# The losses whose batches hold at least so many conversions: other batches than those
# of the runs that they are paired with, though of the same rows.
MIN_CONVERSIONS = {"bce_conversion_aware": 8, "conversion_aware": 8}


Tag = str | int | float


@dataclass(frozen=True)
class Cell:
    """One run.

    Args:
        model, loss, seed: what it is called in tables; no number depends on them.
        config: what is run; its `data.path` gives way to that of the experiment.
        tags: further columns of its results, such as a rate of noise.
    """

    model: str
    loss: str
    seed: int
    config: Config
    tags: Mapping[str, Tag] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model}-{self.loss}-seed{self.seed}-{config_hash(self.config)}"


@dataclass(frozen=True)
class Grid:
    """Which runs: the MODEL.yaml of each model, times losses, times seeds."""

    configs: Path
    data: Path
    models: Sequence[str]
    losses: Sequence[str]
    seeds: int
    overrides: Sequence[str] = ()

    def cells(self) -> Iterator[Cell]:
        """Seed by seed, so that a killed grid leaves whole pairs."""
        if not self.models or not self.losses or self.seeds < 1:
            raise UserError("the grid is empty: it needs a model, a loss and a seed")
        base = {
            model: load_config(self.configs / f"{model}.yaml", tuple(self.overrides))
            for model in self.models
        }
        for seed in range(self.seeds):
            for model in self.models:
                for loss in self.losses:
                    config = base[model]
                    changed = replace(
                        config,
                        loss=replace(config.loss, **LOSSES[loss]),
                        data=_data(config.data, loss),
                        train=replace(config.train, seed=seed),
                    )
                    yield Cell(model, loss, seed, changed)


def _data(data: DataConfig, loss: str) -> DataConfig:
    least = max(data.min_conversions, MIN_CONVERSIONS.get(loss, 0))
    return replace(data, min_conversions=least)


def run_grid(grid: Grid, runs: Path, split: str) -> pl.DataFrame:
    """`run_cells` of a grid."""
    return run_cells(list(grid.cells()), grid.data, runs, split)


def run_cells(
    cells: Sequence[Cell], data: Path, runs: Path, split: str
) -> pl.DataFrame:
    """Trains and evaluates what is missing; returns all results in long form.

    Args:
        cells: which runs.
        data: the prepared folder that all are run on.
        runs: the folder of run folders.
        split: the split that is measured: "valid" or "test".
    Returns:
        A row a cell and task, in order: dataset, model, loss, seed, the cells' tags
        (null where a cell lacks one), split, protocol, task, auc, log_loss,
        best_epoch, run, config_hash.
    Raises:
        UserError: no such data, no cell, or a run that failed.
    """
    if not cells:
        raise UserError("there is nothing to run: no cell")
    prepared = Prepared(data)
    names = [task.name for task in measured(prepared.schema.labels)]
    tags = dict.fromkeys(name for cell in cells for name in cell.tags)
    dataset = prepared.manifest.dataset
    manifest = (data / FILE).read_bytes()
    series = f"{dataset}-{hashlib.sha256(manifest).hexdigest()[:8]}"
    configs = {
        runs / series / cell.name: replace(
            cell.config, data=replace(cell.config.data, path=str(data))
        )
        for cell in cells
    }
    _train(configs, prepared.schema)
    rows: list[dict[str, Any]] = []
    for cell in track(cells, "measuring", console=_console()):
        folder = f"{series}/{cell.name}"
        result = json.loads((runs / folder / RESULT).read_text())
        report = _evaluation(runs / folder, split)
        for name in names:
            rows.append(
                {
                    "dataset": dataset,
                    "model": cell.model,
                    "loss": cell.loss,
                    "seed": cell.seed,
                    **{tag: cell.tags.get(tag) for tag in tags},
                    "split": split,
                    "protocol": cell.config.protocol,
                    "task": name,
                    "auc": report[name]["auc"]["value"],
                    "log_loss": report[name]["log_loss"],
                    "best_epoch": result["best"]["epoch"] + 1,
                    "run": folder,
                    "config_hash": config_hash(cell.config),
                }
            )
    return pl.DataFrame(rows, infer_schema_length=None)


def _train(configs: Mapping[Path, Config], schema: Schema) -> None:
    """Trains what is missing, sweep by sweep.

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
    if failures:
        raise RunsFailed(failures, len(configs))


def _sweeps(
    missing: list[Path], configs: Mapping[Path, Config], schema: Schema
) -> list[list[Path]]:
    """The folders of each sweep: those in progress come first."""
    sweeps = [
        folders
        for parent in dict.fromkeys(folder.parent for folder in missing)
        for folders in sweeps_in_progress(parent).values()
        if configs.keys() >= set(folders) and not set(missing).isdisjoint(folders)
    ]
    taken = {folder for folders in sweeps for folder in folders}
    groups: dict[str, list[Path]] = {}
    for folder in missing:
        if folder not in taken:
            groups.setdefault(sweep_key(configs[folder]), []).append(folder)
    for folders in groups.values():
        # Of equal size, rather than full ones and a rest.
        count = -(-len(folders) // most_runs(configs[folders[0]], schema))
        ends = [len(folders) * i // count for i in range(count + 1)]
        sweeps += [folders[start:end] for start, end in pairwise(ends)]
    return sweeps


def _console() -> Console:
    return Console(stderr=True, highlight=False)


class _Bar(Progress):
    """The steps of the sweep at work, and the runs that are done of all."""

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
        """A sweep begins."""
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        self._name = names[0].rpartition("-")[0] + more
        self.reset(self._steps, description=self._name, visible=True)

    def done(self, runs: int) -> None:
        """A sweep of so many runs is over."""
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


def _evaluation(run: Path, split: str) -> dict[str, Any]:
    path = run / f"evaluation_{split}.json"
    if path.exists():
        return json.loads(path.read_text())
    return evaluate_run(run, split)
