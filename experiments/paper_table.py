"""The paper's table: four models, with and without PWiseR, on every dataset.

    python -m experiments.all --only paper_table --output runs/experiments
    python -m experiments.all --only paper_table --data data/aliexpress_nl \\
        --configs configs/aliexpress --output runs/aliexpress_nl

The second form runs on any prepared folder: AliExpress FR, NL and US and Ali-CCP once
`pwiser prepare` has written them.
"""

import polars as pl

from experiments.lib.study import Experiment, Finding, Outcome, Study
from experiments.lib.words import average_difference, listed, text_of, verdict
from pwiser_jax.evaluation import level_name
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import differences, score_distributions, training_curves
from pwiser_jax.reports.tables import formatted, significance, summary
from pwiser_jax.tasks import joint_task
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.protocol import note

NAME = "paper_table"
LOSSES = ("bce", "pwiser")


def find(study: Study) -> Finding:
    parts = []
    for dataset in study.datasets:
        cells = study.cells(dataset, study.scale.models, LOSSES, study.scale.seeds)
        parts.append(study.run(NAME, cells, dataset))
    results = pl.concat(parts)
    table = summary(results)
    texts = formatted(table)
    tests = significance(results)
    blocks: list[TableBlock | Picture] = [
        TableBlock(texts, f"AUC on {study.split}; {_rows(study)}")
    ]
    if table["low"].is_not_null().any():
        blocks.append(
            Picture(
                differences(table),
                "Mean paired differences of AUC to BCE, by dataset, model and task.",
                "Each mark is a mean over seeds paired with BCE of the same seed.",
            )
        )
    main = results.filter(pl.col("dataset") == study.datasets[0].name)
    blocks.append(
        Picture(
            training_curves(_curves(main, study)),
            "AUC by epoch on the rows that choose it, by model, task and loss.",
            f"{study.datasets[0].name}: a thin line a seed, the mean bold.",
        )
    )
    blocks.append(_distributions(main, study))
    if tests.height:
        blocks.append(TableBlock(tests, "Tests of the differences", folded=True))
    blocks.append(TableBlock(results.drop("split"), "Every run", folded=True))
    return Finding(_answer(results, tests, study), blocks, texts)


def _answer(results: pl.DataFrame, tests: pl.DataFrame, study: Study) -> str:
    tasks = results["task"].unique(maintain_order=True)
    means = [
        f"{task.upper()} {text_of(average_difference(results, task))}" for task in tasks
    ]
    where = f"models ({len(study.scale.models)}) and datasets ({len(study.datasets)})"
    return (
        f"AUC with PWiseR less that with BCE, mean over {where} with a 95% interval "
        f"over {study.scale.seeds} seeds: {listed(means)}. {verdict(tests)}"
    )


def _rows(study: Study) -> str:
    if study.split == "valid":
        return "the rows on which the epoch was chosen, so a little optimistic"
    if (said := note(study.protocol, study.split)) is not None:
        return said
    return "rows that no choice has seen"


def _curves(results: pl.DataFrame, study: Study) -> pl.DataFrame:
    rows = []
    cells = results.select("run", "model", "loss", "seed").unique(maintain_order=True)
    for run, model, loss, seed in cells.rows():
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
    return pl.DataFrame(rows)


def _distributions(results: pl.DataFrame, study: Study) -> Picture:
    """The top joint task's logits by level, a panel a loss, of one model and seed."""
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
        loss: own.predictions(study.split)[task].scores
        for loss, own in outcomes.items()
    }
    names = [level_name(k, labels) for k in range(len(labels) + 1)]
    model = first["model"][0]
    return Picture(
        score_distributions(scores, level, names, task),
        f"Density of the {task.upper()} logit of {model} by level, a panel a loss.",
        f"{dataset.name}, {model}, seed 0, {study.split}: scores by level and loss.",
    )


PAPER_TABLE = Experiment(
    NAME,
    "The paper's table",
    "Does PWiseR, with lambda 0.1 on both heads and default margins, raise AUC over "
    "binary cross-entropy alone, in which model, on which data?",
    find,
)
