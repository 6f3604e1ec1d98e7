"""What the experiments share: sizes, data, runs, result tables and measures."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from experiments.lib.datasets import Dataset
from experiments.lib.result_table import (
    RUN,
    ResultTable,
    long_rows,
    tag_text,
    wide_rows,
)
from experiments.lib.runs import Run, Tag, paired_runs
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import read_manifest
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import Prediction, predict_task
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.tasks import measured
from pwiser_jax.training.run.protocol import note

if TYPE_CHECKING:
    from pwiser_jax.config import Protocol

PAPER_MODELS = ("single_task", "shared_bottom", "mmoe", "ple")
TUNING_SEED = 1000  # first seed of runs that choose settings; final runs use others


@dataclass(frozen=True)
class Scale:
    """The size of the experiments.

    Args:
        rows: exposures of the synthetic funnel and of the industrial table.
        models: models of the paper's table; other experiments use MMoE.
        seeds: seeds of most experiments.
        pairs: paired seeds of the experiment on significance.
        variants: number of variants of the loss.
        carried: number of arms of the experiments that carry the comparison's settings
            over: noise, growth and revenue.
        noise: levels of each kind of noise; see `noise.KINDS`.
        worlds: simulated datasets for the coverage of the intervals.
        labels: number of labels of each ladder.
        days: number of days of a stream that are tested.
        arms, arms_elsewhere: number of arms of the comparison on the first dataset and
            on each other one.
        trials: points of a batch of the comparison's search.
        finalists: points that are run with further tuning seeds.
        finals: seeds of the comparison's final runs.
        interplay_l2, interplay_lambdas, interplay_seeds: a grid and its seeds.
        growth_rows, batch_sizes: sizes of the funnel and of a batch.
        to_the_end: options of runs that end by early stopping.
        overrides: options of every run, such as "--train.epochs=1".
        kuairand: further options of runs on KuaiRand.
        kuairand_rows: train rows of KuaiRand; None: all.
    """

    rows: int
    models: tuple[str, ...]
    seeds: int
    pairs: int
    variants: int
    carried: int
    noise: Mapping[str, tuple[float, ...]]
    worlds: int
    labels: tuple[int, ...]
    days: int
    arms: int
    arms_elsewhere: int
    trials: int
    finalists: int
    finals: int
    interplay_l2: tuple[float, ...]
    interplay_lambdas: tuple[float, ...]
    interplay_seeds: int
    growth_rows: tuple[int, ...]
    batch_sizes: tuple[int, ...]
    to_the_end: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    kuairand: tuple[str, ...] = ()
    kuairand_rows: int | None = None


TINY = (
    "--train.epochs=1",
    "--data.batch_size=512",
    "--model.embedding_dim=4",
    "--model.bottom=[16]",
    "--model.expert=[16]",
    "--model.experts=2",
    "--model.levels=[[16],[8]]",
    "--model.shared_experts=1",
    "--model.task_experts=1",
    "--model.tower=[8]",
)
FULL = Scale(
    rows=60_000,
    models=PAPER_MODELS,
    seeds=6,
    pairs=20,
    variants=99,
    carried=4,
    noise={
        "accidents": (0.3, 0.5),
        "bots": (0.2,),
        "position_bias": (1.0,),
        "delayed": (0.3,),
        "moved": (0.0, 0.25, 0.5),
    },
    worlds=4_000,
    labels=(2, 3, 4, 5),
    days=8,
    arms=19,
    arms_elsewhere=5,
    trials=16,
    finalists=8,
    finals=16,
    interplay_l2=(1e-4, 3e-4, 1e-3, 3e-3, 1e-2),
    interplay_lambdas=(0.0, 0.1, 1.0, 10.0),
    interplay_seeds=4,
    growth_rows=(10_000, 30_000, 100_000, 300_000, 1_000_000, 3_000_000),
    batch_sizes=(256, 1024, 4096, 16_384, 65_536),
    to_the_end=("--train.epochs=60", "--train.patience=3", "--model.expert=[32]"),
    kuairand=("--train.epochs=4", "--train.patience=4"),
    kuairand_rows=20_000,
)
SCALES = {
    "quick": Scale(
        rows=8_000,
        models=("shared_bottom", "mmoe"),
        seeds=2,
        pairs=4,
        variants=3,
        carried=2,
        noise={"accidents": (0.5,)},
        worlds=200,
        labels=(2, 3),
        days=2,
        arms=3,
        arms_elsewhere=2,
        trials=2,
        finalists=1,
        finals=2,
        interplay_l2=(1e-4, 1e-2),
        interplay_lambdas=(0.0, 1.0),
        interplay_seeds=2,
        growth_rows=(8_000,),
        batch_sizes=(),
        overrides=TINY,
    ),
    "standard": replace(
        FULL,
        seeds=4,
        pairs=12,
        carried=3,
        noise={"accidents": (0.5,), "moved": (0.5,)},
        worlds=1_000,
        days=4,
        arms=4,
        arms_elsewhere=2,
        trials=8,
        finalists=4,
        finals=8,
        interplay_l2=(1e-4, 1e-3, 1e-2),
        interplay_lambdas=(0.0, 1.0, 10.0),
        interplay_seeds=2,
        growth_rows=(10_000, 30_000, 100_000),
        batch_sizes=(256, 4096),
    ),
    "full": FULL,
}


@dataclass(frozen=True)
class Finding:
    """The result of an experiment.

    Args:
        answer: one sentence with its number and interval, whatever its sign.
        blocks: tables and pictures, for the report.
        table: the main table as texts, for the terminal and for Markdown.
        effects: the mean effect by dataset and task, for the report's first picture:
            see `words.effects`.
        details: further sentences, for the section alone.
        decisions: rows of `paired.decision`, for the report's table of what to do.
    """

    answer: str
    blocks: Sequence[TableBlock | Picture]
    table: pl.DataFrame | None = None
    effects: pl.DataFrame | None = None
    details: str = ""
    decisions: pl.DataFrame | None = None


@dataclass(frozen=True)
class Experiment:
    """A question, and the function that answers it.

    Args:
        name: its name on the command line and that of its result table.
        title, asked: title and question in the report.
        find: makes the runs that are missing and answers.
        check: raises UserError for what the experiment cannot run with.
    """

    name: str
    title: str
    asked: str
    find: Callable[["Study"], Finding]
    check: Callable[["Study"], None] | None = None


@dataclass(frozen=True)
class Outcome:
    """Predictions of a run's best checkpoint, row by row."""

    folder: Path
    data: Path

    @cached_property
    def prepared(self) -> Prepared:
        return Prepared(self.data)

    def rows(self, split: str) -> Rows:
        return self.prepared.load(split)

    def level(self, split: str) -> np.ndarray:
        """int64[N]: the highest label that each row reached."""
        return self.rows(split).labels.sum(axis=1, dtype=np.int64)

    def predictions(self, split: str) -> dict[str, Prediction]:
        """Scores and probabilities of every measured task for every row."""
        # These load jax, which a report from tables does without.
        from pwiser_jax.inference.load import load_best
        from pwiser_jax.training.logits import predict_logits
        from pwiser_jax.training.run.folder import run_config

        config, schema = run_config(self.folder), self.prepared.schema
        rows, state = self.rows(split), load_best(self.folder, config, schema)
        logits = predict_logits(config, schema, state, rows)
        return {
            task.name: predict_task(
                task, logits, schema.labels, config.model.cvr_space, len(rows)
            )
            for task in measured(schema.labels)
        }


Measures = Mapping[tuple[str, str], float]


@dataclass
class Study:
    """The data, the size and the folders of one command.

    Args:
        output: the folder of the report and the result tables.
        runs: the folder of run folders; experiments and studies share runs.
        scale: the size.
        datasets: datasets of the paper's table, the main one first.
        split: the split that is measured; choices are made on validation.
        protocol: "mtreclib" (with split "test"): epochs are chosen on test, for a
            comparison with published tables, and every title says so.
        kuairand: KuaiRand-Pure's files, where they are given.
        overrides: options of every run.
        arms: names of the comparison's arms; none: as many as the scale has.
        tables: a folder of result tables. The report is made from them alone, without
            training; what needs predictions or a run's own files is left out.
        cluster: a Ray cluster that grids of runs are trained on, see `results_of`.
    """

    output: Path
    runs: Path
    scale: Scale
    datasets: Sequence[Dataset]
    split: str = "test"
    protocol: "Protocol" = "default"
    kuairand: Path | None = None
    overrides: Sequence[str] = ()
    arms: Sequence[str] = ()
    tables: Path | None = None
    cluster: str | None = None
    _tables: dict[str, ResultTable] = field(default_factory=dict)
    _wide: dict[str, pl.DataFrame] = field(default_factory=dict)  # of `tables`

    @property
    def core(self) -> list[Dataset]:
        """The datasets of every experiment."""
        return [dataset for dataset in self.datasets if dataset.core]

    @property
    def place(self) -> Path:
        """Where data is prepared."""
        return self.output / "data"

    def table(self, experiment: str) -> ResultTable:
        if experiment not in self._tables:
            folder = self.tables or self.output / "results"
            path = folder / f"{experiment}.parquet"
            self._tables[experiment] = ResultTable(path, experiment)
        return self._tables[experiment]

    def recorded_tags(self, experiment: str) -> list[dict[str, Any]]:
        """The tags of the runs that a result table has, in its order."""
        texts = self.table(experiment).frame["tags"].unique(maintain_order=True)
        return [json.loads(text) for text in texts]

    def knows(self, experiment: str, metrics: Sequence[str]) -> bool:
        """Whether measures can be had: recorded tables of older runs may lack some."""
        if self.tables is None:
            return True
        return set(metrics) <= set(self.table(experiment).frame["metric"].unique())

    def titled(self, text: str) -> str:
        """A title, with the note that every figure of the protocol needs."""
        said = note(self.protocol, self.split)
        return text if said is None else f"{text} ({said})"

    def grid(
        self,
        dataset: Dataset,
        models: Sequence[str],
        losses: Sequence[str],
        seeds: int,
        first_seed: int = 0,
        tags: Mapping[str, Tag] | None = None,
    ) -> list[Run]:
        """Models x losses x seeds first_seed, first_seed + 1, ..., paired by seed."""
        numbers = range(first_seed, first_seed + seeds)
        overrides = self.options(dataset)
        return paired_runs(dataset.configs, models, losses, numbers, overrides, tags)

    def options(self, dataset: Dataset, more: Sequence[str] = ()) -> tuple[str, ...]:
        """The options of every run on a dataset, with `more` of an experiment."""
        return (
            *self.scale.overrides,
            *dataset.overrides,
            *more,
            *self.overrides,
            f"--protocol={self.protocol}",
        )

    def run(
        self,
        experiment: str,
        planned: Sequence[Run],
        dataset: Dataset,
        split: str | None = None,
    ) -> pl.DataFrame:
        """Makes the runs that are missing and adds them to the experiment's table.

        Returns:
            As `grid.results_of`, with this dataset's title.
        """
        split = split or self.split
        if self.tables is not None:
            return self._recorded(experiment, planned, dataset, split)
        from experiments.lib.grid import results_of  # loads jax

        folder = dataset.ready()
        if not read_manifest(folder).splits[split].rows:
            raise UserError(f"{folder} has no {split} rows to measure on")
        results = results_of(planned, folder, self.runs, split, self.cluster)
        results = results.with_columns(pl.lit(dataset.name).alias("dataset"))
        self.table(experiment).add(long_rows(results))
        return results.with_columns(pl.lit(dataset.title).alias("dataset"))

    def _recorded(
        self, experiment: str, planned: Sequence[Run], dataset: Dataset, split: str
    ) -> pl.DataFrame:
        """The results of runs as the table has them."""
        if experiment not in self._wide:
            self._wide[experiment] = wide_rows(self.table(experiment).frame)
        wide = self._wide[experiment]
        keys = pl.DataFrame(
            [
                (dataset.name, split, run.model, run.loss, run.seed, tag_text(run.tags))
                for run in planned
            ],
            schema=["dataset", "split", "model", "loss", "seed", "tags"],
            orient="row",
        )
        rows = keys.join(wide, on=keys.columns, maintain_order="left_right")
        if rows.is_empty():
            raise UserError(f"{self.tables} has no {experiment} of {dataset.name}")
        results = with_tags(rows.select(wide.columns)).drop("tags")
        return results.with_columns(pl.lit(dataset.title).alias("dataset"))

    def measure(
        self,
        experiment: str,
        results: pl.DataFrame,
        dataset: Dataset,
        metrics: tuple[str, ...],
        compute: Callable[[Outcome], Measures],
    ) -> pl.DataFrame:
        """Further measures of runs from their predictions, kept in the table.

        Args:
            experiment: whose table.
            results: the result of `run`.
            dataset: the dataset of these runs.
            metrics: the names of the measures.
            compute: the measures of a run by (task, metric).

        Returns:
            The rows of `results`' runs, long: a row a run, task and metric.
        """
        table = self.table(experiment)
        folder = dataset.ready() if self.tables is None else dataset.folder
        firsts = results.unique("run", keep="first", maintain_order=True)
        runs = long_rows(firsts).filter(metric="auc")
        known = table.of_runs(runs, metrics)
        missing = runs.join(known, on=RUN, how="anti", maintain_order="left")
        for row in missing.iter_rows(named=True):
            if self.tables is not None:
                raise UserError(f"{table.path} lacks {metrics[0]} of {row['run']}")
            measures = compute(Outcome(self.runs / row["run"], folder))
            rows = [
                row
                | {"dataset": dataset.name, "task": task, "metric": metric}
                | {"value": value, "reason": None}
                for (task, metric), value in measures.items()
            ]
            table.add(pl.DataFrame(rows, infer_schema_length=None))
        if not missing.is_empty():
            known = table.of_runs(runs, metrics)
        return with_tags(known.with_columns(pl.lit(dataset.title).alias("dataset")))


def with_tags(rows: pl.DataFrame) -> pl.DataFrame:
    """The tags of a result table as columns of their own."""
    texts = rows["tags"].to_list()
    trees = {text: json.loads(text) for text in dict.fromkeys(texts)}
    names = dict.fromkeys(name for tree in trees.values() for name in tree)
    return rows.with_columns(
        pl.Series(name, [trees[text].get(name) for text in texts], strict=False)
        for name in names
    )
