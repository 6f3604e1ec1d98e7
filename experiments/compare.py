"""What the comparing experiments share: options, grid, table, plots and page."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from rich.console import Console

from experiments.grid import MODELS, Grid, run_grid
from pwiser_jax.config import Protocol
from pwiser_jax.data.prepared import Prepared
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import level_name
from pwiser_jax.files import write_whole
from pwiser_jax.options import Parser
from pwiser_jax.reports.html import Picture, Report, Section, TableBlock
from pwiser_jax.reports.plots import differences, score_distributions, training_curves
from pwiser_jax.reports.tables import (
    formatted,
    summary,
    to_markdown,
    to_rich,
    write_csv,
)
from pwiser_jax.tasks import joint_task
from pwiser_jax.training.evaluate import run_config
from pwiser_jax.training.inference import load_best, predict_logits
from pwiser_jax.training.metrics import read_metrics
from pwiser_jax.training.protocol import CHOSEN, NAMES, TRAINED_ON, note


@dataclass(frozen=True)
class Options:
    """Options of an experiment.

    Args:
        data: a folder written by `pwiser prepare`.
        configs: a folder with MODEL_bce.yaml for each model.
        output: the folder of the table, the plots and the page.
        runs: the folder of the run folders; experiments that share it share runs.
        models: the models to compare.
        seeds: seeds 0 .. seeds - 1 of each cell.
        split: the split that is measured; epochs are chosen on validation.
        protocol: "mtreclib" (with split "test"): epochs are chosen on test, for a
            comparison with published tables, and every table says so.
        set: further options of every run, as "train.epochs=3".
    """

    data: Path
    configs: Path
    output: Path
    runs: Path = Path("runs/cells")
    models: tuple[Literal["single_task", "shared_bottom", "mmoe", "ple"], ...] = MODELS
    seeds: int = 5
    split: Literal["valid", "test"] = "valid"
    protocol: Protocol = "default"
    set: tuple[str, ...] = ()


@dataclass(frozen=True)
class Experiment:
    """A question, and the losses whose runs answer it."""

    name: str
    title: str
    asked: str
    losses: Sequence[str]


def main(experiment: Experiment, argv: Sequence[str] | None = None) -> int:
    """The command line of an experiment; returns the exit code."""
    parser = Parser(prog=f"experiments.{experiment.name}", description=experiment.asked)
    parser.add_class_arguments(Options, as_group=False)
    arguments = sys.argv[1:] if argv is None else list(argv)
    made = parser.instantiate(parser.parse(arguments))
    command = " ".join(["python -m", parser.prog, *arguments])
    options = Options(**vars(made))
    try:
        texts = compare(experiment, options, command)
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where it stopped", file=sys.stderr)
        return 130
    Console().print(to_rich(texts, _titled(experiment.title, options)))
    print(f"{options.output / 'report.html'}")
    return 0


def compare(experiment: Experiment, options: Options, command: str) -> pl.DataFrame:
    """Runs what is missing and writes results.csv, table.csv, table.md, report.html.

    Returns:
        The table of means and paired differences, as texts.
    """
    said = note(options.protocol, options.split)
    if said == TRAINED_ON:
        raise UserError("protocol mtreclib trains on valid; measure --split test")
    grid = Grid(
        configs=options.configs,
        data=options.data,
        models=options.models,
        losses=experiment.losses,
        seeds=options.seeds,
        overrides=(
            *(f"--{item}" for item in options.set),
            f"--protocol={options.protocol}",
        ),
    )
    results = run_grid(grid, options.runs, options.split)
    table = summary(results)
    texts = formatted(table)
    write_csv(results, options.output / "results.csv")
    write_csv(table, options.output / "table.csv")
    markdown = to_markdown(texts)
    if said is not None:
        markdown = f"{said}\n\n{markdown}"
    write_whole(options.output / "table.md", markdown)
    title = _titled(experiment.title, options)
    section = Section(
        title=title,
        asked=experiment.asked,
        answer=_answer(table, options.split),
        blocks=_blocks(results, table, texts, options),
        command=command,
        configuration="\n".join(
            (options.configs / f"{model}_bce.yaml").read_text()
            for model in options.models
        ),
    )
    manifest = Prepared(options.data).manifest
    counts = "; ".join(
        f"{name} {split.rows:,} rows, {split.labels[manifest.schema.labels[-1]]:,} "
        f"{manifest.schema.labels[-1]}s"
        for name, split in manifest.splits.items()
        if split.rows
    )
    introduction = (
        f"Dataset {manifest.dataset} ({counts}). AUC on the {options.split} split, of "
        f"the epoch with the best mean {NAMES[CHOSEN[options.protocol]]} AUC; runs of "
        "one seed share initial weights and batches."
    )
    if said is not None:
        introduction += f" {said}."
    elif options.split == "valid":
        introduction += (
            " The epoch was chosen on the rows that are measured here, for every loss "
            "alike, so each AUC is a little optimistic."
        )
    Report(title, introduction, [section]).write(options.output / "report.html")
    return texts


def _titled(title: str, options: Options) -> str:
    """A title, and what has to stand beside every figure of the protocol."""
    said = note(options.protocol, options.split)
    return title if said is None else f"{title} ({said})"


def _answer(table: pl.DataFrame, split: str) -> str:
    """The mean difference of each task over models, whatever its sign."""
    pairs = table.filter(pl.col("difference").is_not_null())
    if pairs.is_empty():
        best = table.sort("mean", descending=True).group_by("task", maintain_order=True)
        found = best.first().sort("task")
        texts = [
            f"{row['task'].upper()} {row['mean']:.4f} ({row['model']})"
            for row in found.iter_rows(named=True)
        ]
        return f"Best mean {split} AUC: {', '.join(texts)}."
    texts = []
    for row in pairs.iter_rows(named=True):
        if row["low"] is None:
            verdict = "one seed, no interval"
        elif row["low"] > 0:
            verdict = "better"
        elif row["high"] < 0:
            verdict = "worse"
        else:
            continue
        interval = (
            "" if row["low"] is None else f" [{row['low']:+.4f}, {row['high']:+.4f}]"
        )
        texts.append(
            f"{row['loss']} {row['model']} {row['task'].upper()} "
            f"{row['difference']:+.4f}{interval} ({verdict})"
        )
    count = len(pairs)
    if not texts:
        return (
            f"None of the {count} differences to BCE has an interval that excludes 0."
        )
    return (
        f"{len(texts)} of {count} differences to BCE have a 95% interval that excludes "
        f"0 (uncorrected): {'; '.join(texts)}."
    )


def _blocks(
    results: pl.DataFrame, table: pl.DataFrame, texts: pl.DataFrame, options: Options
) -> list[TableBlock | Picture]:
    blocks: list[TableBlock | Picture] = [
        TableBlock(
            texts, _titled(f"AUC on {options.split}, {options.seeds} seeds", options)
        )
    ]
    if table["difference"].is_not_null().any():
        blocks.append(
            Picture(
                differences(table),
                "Mean paired differences of AUC to BCE with 95% intervals.",
                "Each mark is a mean over seeds paired with BCE of the same seed.",
            )
        )
    blocks.append(
        Picture(
            training_curves(_curves(results, options)),
            f"{NAMES[CHOSEN[options.protocol]].capitalize()} AUC by epoch, by model, "
            "task and loss.",
            "A thin line a seed, the mean bold.",
        )
    )
    model = "mmoe" if "mmoe" in options.models else options.models[0]
    mine = results.filter((pl.col("model") == model) & (pl.col("seed") == 0))
    blocks.append(_distributions(mine, model, options))
    folded = results.drop("dataset", "split")
    blocks.append(TableBlock(folded, "Every run", folded=True))
    return blocks


def _curves(results: pl.DataFrame, options: Options) -> pl.DataFrame:
    rows = []
    cells = results.select("run", "model", "loss", "seed").unique(maintain_order=True)
    for run, model, loss, seed in cells.rows():
        for line in read_metrics(options.runs / run):
            if "mean_auc" in line:
                rows += [
                    {
                        "model": model,
                        "task": task,
                        "loss": loss,
                        "seed": seed,
                        "epoch": line["epoch"] + 1,
                        "auc": auc,
                    }
                    for task, auc in line["auc"].items()
                ]
    return pl.DataFrame(rows)


def _distributions(results: pl.DataFrame, model: str, options: Options) -> Picture:
    """The top joint task's logits by level, a panel a loss, of seed 0."""
    prepared = Prepared(options.data)
    labels = prepared.schema.labels
    task = joint_task(labels, len(labels)).name
    rows = prepared.load(options.split)
    scores: dict[str, np.ndarray] = {}
    for run, loss in results.select("run", "loss").unique(maintain_order=True).rows():
        folder = options.runs / run
        config = run_config(folder)
        state = load_best(folder, config, prepared.schema)
        logits = predict_logits(config, prepared.schema, state, rows)
        scores[loss] = logits[task]
    names = [level_name(level, labels) for level in range(len(labels) + 1)]
    figure = score_distributions(scores, rows.labels.sum(axis=1), names, task)
    return Picture(
        figure,
        f"Density of the {task.upper()} logit of {model} by level, a panel a loss.",
        f"{model}, seed 0, {options.split}: scores of the three levels by loss.",
    )
