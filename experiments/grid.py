"""Runs on one prepared dataset: a list of cells, or a grid of them paired by seed.

A run's folder, RUNS/DATASET-HASH/MODEL-LOSS-SEED-HASH, is named by what makes its
numbers (the hashes are of the data's manifest and of the configuration). So a run that
exists is not run again, by this experiment or another, and a killed one goes on.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
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
)

from pwiser_jax.config import Config, DataConfig, load_config
from pwiser_jax.data.manifest import FILE
from pwiser_jax.data.prepared import Prepared
from pwiser_jax.errors import UserError
from pwiser_jax.tasks import measured
from pwiser_jax.training.evaluate import evaluate_run
from pwiser_jax.training.loop import train
from pwiser_jax.training.progress import Silent
from pwiser_jax.training.run import config_hash

MODELS = ("single_task", "shared_bottom", "mmoe", "ple")

# What a loss changes in a config's `loss` section. Paired runs share the rest, so they
# have the same initial weights and see the same batches.
LOSSES: Mapping[str, Mapping[str, Any]] = {
    "bce": {"lambdas": 0.0},
    "pwiser": {"lambdas": 0.1},
    "without_click_only": {"lambdas": 0.1, "margins": {"conversion>click": None}},
    "without_no_click": {"lambdas": 0.1, "margins": {"conversion>exposure": None}},
    "bce_on_conversions": {"lambdas": 0.1, "bce_rows": "conversions"},
    "ctr_only": {"lambdas": {"ctr": 0.1}},
    "ctcvr_only": {"lambdas": {"ctcvr": 0.1}},
    "logit": {"lambdas": 0.1, "scores": "logit"},
    "logistic": {"lambdas": 0.1, "scores": "logit", "surrogate": "logistic"},
    "literal_gate": {"lambdas": 0.1, "gate": "literal"},
    "per_negative": {"lambdas": 0.1, "normalize": "negatives"},
    "plain_sums": {"lambdas": 1e-5, "normalize": "none"},
    "bank": {"lambdas": 0.1, "bank": 64},
    "bce_conversion_aware": {"lambdas": 0.0},
    "conversion_aware": {"lambdas": 0.1},
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
    """Which runs: the MODEL_bce.yaml of each model, times losses, times seeds."""

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
            model: load_config(
                self.configs / f"{model}_bce.yaml", tuple(self.overrides)
            )
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
    rows: list[dict[str, Any]] = []
    console = Console(stderr=True, highlight=False)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("runs", total=len(cells))
        for cell in cells:
            bar.update(task, description=f"{cell.model} {cell.loss} seed {cell.seed}")
            folder = f"{series}/{cell.name}"
            config = replace(
                cell.config, data=replace(cell.config.data, path=str(data))
            )
            result = train(config, runs / folder, Silent())
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
            bar.advance(task)
    return pl.DataFrame(rows, infer_schema_length=None)


def _evaluation(run: Path, split: str) -> dict[str, Any]:
    path = run / f"evaluation_{split}.json"
    if path.exists():
        return json.loads(path.read_text())
    return evaluate_run(run, split)
