"""The paper's table: four models, with and without PWiseR, on every dataset.

    python -m experiments.all --only paper_table --output runs/experiments
    python -m experiments.all --only paper_table --data data/aliexpress_nl \\
        --configs configs/aliexpress --output runs/aliexpress_nl

The second form runs on any prepared folder, such as AliExpress FR, NL and US or Ali-CCP
as written by `pwiser prepare`.
"""

import polars as pl

from experiments.lib.study import Experiment, Finding, Outcome, Study
from experiments.lib.words import (
    after_holm,
    changes,
    counted,
    effects,
    effects_by_dataset,
)
from pwiser_jax.evaluation import level_name
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import differences, score_distributions, training_curves
from pwiser_jax.reports.tables import formatted, significance, summary, tests_table
from pwiser_jax.tasks import joint_task
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.protocol import note

NAME = "paper_table"
LOSSES = ("bce", "pwiser")


def find(study: Study) -> Finding:
    results = pl.concat(
        study.run(
            NAME,
            study.grid(dataset, study.scale.models, LOSSES, study.scale.seeds),
            dataset,
        )
        for dataset in study.datasets
    )
    table = summary(results)
    texts = formatted(table)
    tests = significance(results)
    by_dataset = effects(results)
    caption = "AUC of PWiseR minus that of BCE, mean over models"
    blocks: list[TableBlock | Picture] = [
        TableBlock(effects_by_dataset(results), caption)
    ]
    if table["low"].is_not_null().any():
        blocks.append(
            Picture(
                differences(table, rows=("model", "dataset")),
                "Mean paired differences of AUC to BCE, by dataset, model and task.",
                "Each mark is a mean over seeds, paired with BCE of the same seed.",
            )
        )
    caption = f"AUC on {study.split}; {_rows(study)}"
    blocks.append(TableBlock(texts, caption, folded=True))
    if study.tables is None:
        main = results.filter(pl.col("dataset") == study.datasets[0].title)
        curves = _curves(main, study)
        if curves.height:
            blocks.append(
                Picture(
                    training_curves(curves),
                    "AUC by epoch on the rows that choose it, by model, task and loss.",
                    f"{study.datasets[0].title}: thin lines are seeds, bold the mean.",
                )
            )
        blocks.append(_distributions(main, study))
    if tests.height:
        caption = f"Tests of the differences: {after_holm(tests)}"
        blocks.append(TableBlock(tests_table(tests), caption, folded=True))
    runs = results.select(
        *("dataset", "model", "loss", "seed", "task", "auc", "log_loss"),
        pl.col("best_epoch").cast(pl.Int64),
        "run",
    )
    blocks.append(TableBlock(runs, "Every run", folded=True))
    return Finding(_answer(results, study), blocks, texts, by_dataset)


def _answer(results: pl.DataFrame, study: Study) -> str:
    tasks = results["task"].unique(maintain_order=True).to_list()
    return (
        f"Against BCE, PWiseR {changes(results, tasks)}: means over "
        f"{counted(len(study.scale.models), 'model')} and "
        f"{counted(results['dataset'].n_unique(), 'dataset')}, with 95% intervals over "
        f"{counted(study.scale.seeds, 'seed')}."
    )


def _rows(study: Study) -> str:
    if study.split == "valid":
        return "rows that chose the epoch, so slightly optimistic"
    if (caution := note(study.protocol, study.split)) is not None:
        return caution
    return "rows that no choice depends on"


def _curves(results: pl.DataFrame, study: Study) -> pl.DataFrame:
    rows = []
    names = "run", "model", "loss", "seed"
    for run, model, loss, seed in (
        results.select(names).unique(maintain_order=True).rows()
    ):
        for line in read_metrics(study.runs / run):
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
    types = {"auc": pl.Float64}  # null where a class is missing
    return pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None)


def _distributions(results: pl.DataFrame, study: Study) -> Picture:
    """Logits of the top joint task by level, a panel a loss, for one model and seed."""
    dataset = study.datasets[0]
    first = results.filter(
        (pl.col("seed") == 0) & (pl.col("model") == results["model"][-1])
    )
    runs = dict(first.select("loss", "run").unique(maintain_order=True).rows())
    outcomes = {
        loss: Outcome(study.runs / run, dataset.ready()) for loss, run in runs.items()
    }
    level = next(iter(outcomes.values())).level(study.split)
    labels = next(iter(outcomes.values())).prepared.schema.labels
    task = joint_task(labels, len(labels)).name
    scores = {
        loss: outcome.predictions(study.split)[task].scores
        for loss, outcome in outcomes.items()
    }
    names = [level_name(k, labels) for k in range(len(labels) + 1)]
    model = first["model"][0]
    return Picture(
        score_distributions(scores, level, names, task),
        f"Density of the {task.upper()} logit of {model} by level, a panel a loss.",
        f"{dataset.title}, {model}, seed 0, {study.split}: scores by level and loss.",
    )


EXPERIMENT = Experiment(
    NAME,
    "The paper's table",
    "Does PWiseR, with lambda 0.1 on both heads and default margins, raise AUC over "
    "binary cross-entropy alone, in which model, on which data?",
    find,
)
