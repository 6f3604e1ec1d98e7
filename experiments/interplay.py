"""L2 and lambda together: does the sign of PWiseR's effect follow the regularisation?

    python -m experiments.all --full --only interplay --output runs/comparison

PWiseR on the CTCVR head over a grid of L2 and lambda, 0 (BCE) included, trained to the
end at one learning rate. Nothing is chosen here: the grid is described, on test.
"""

from functools import partial

import polars as pl

from experiments.comparison import (
    HEADS,
    TRUTH,
    arm_config,
    planned_runs,
    truth_measures,
)
from experiments.lib.arms import ARMS
from experiments.lib.datasets import Dataset
from experiments.lib.paired import by_seed, paired_gaps
from experiments.lib.search import Point
from experiments.lib.study import Experiment, Finding, Study
from experiments.lib.words import counted, text_of
from pwiser_jax.metrics import mean_interval
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import grid_cells

NAME = "interplay"
LEARNING_RATE = 0.01
ARM = ARMS["pwiser ctcvr"]


def find(study: Study) -> Finding:
    dataset = study.core[0]
    results = _results(study, dataset)
    metric = TRUTH[0] if dataset.truth else "auc"
    blocks: list[TableBlock | Picture] = []
    cells = results.group_by("task", "lambda", "l2", maintain_order=True).agg(
        pl.col(metric).mean()
    )
    shown = cells.filter(pl.col("task").is_in(HEADS)).select(
        pl.col("task").str.to_uppercase().alias("panel"),
        pl.col("l2").alias("x"),
        pl.col("lambda").alias("y"),
        pl.col(metric).alias("value"),
    )
    seeds = counted(results["seed"].n_unique(), "seed")
    blocks.append(
        Picture(
            grid_cells(shown, "L2", "lambda", "mean AUC on test", "best"),
            "AUC over L2 and lambda, a panel a head.",
            f"{dataset.title}, MMoE, learning rate {LEARNING_RATE}, mean of {seeds}; "
            "lambda 0 is BCE.",
        )
    )
    rows = [
        (task.upper(), l2, value, text_of(gap))
        for task, l2, value, gap in _gaps(results, metric)
    ]
    names = ["Head", "L2", "lambda", "Minus BCE of the same L2"]
    table = pl.DataFrame(rows, schema=names, orient="row").with_columns(
        pl.col("L2", "lambda").map_elements("{:g}".format, pl.String)
    )
    blocks.append(TableBlock(table, f"{dataset.title}: PWiseR minus BCE, by L2"))
    return Finding(_answer(results, metric), blocks)


def _results(study: Study, dataset: Dataset) -> pl.DataFrame:
    """A row a run and task, with its L2 and lambda."""
    configure = partial(arm_config, study, dataset, ARM)
    points: list[Point] = [
        {"learning_rate": LEARNING_RATE, "l2": l2, "lambda": value}
        for l2 in study.scale.interplay_l2
        for value in study.scale.interplay_lambdas
    ]
    runs = planned_runs(configure, ARM, points, range(study.scale.interplay_seeds))
    results = study.run(NAME, runs, dataset, "test")
    if not dataset.truth:
        return results
    long = study.measure(NAME, results, dataset, TRUTH, truth_measures)
    wide = long.pivot("metric", index=["run", "task"], values="value")
    return results.join(wide, on=["run", "task"], how="left", maintain_order="left")


def _gaps(results: pl.DataFrame, metric: str):
    """Head, L2, lambda and the interval of the difference to lambda 0."""
    named = results.with_columns(pl.col("lambda").cast(pl.String).alias("loss"))
    values = results["lambda"].unique().sort().to_list()
    for task in HEADS:
        for (l2,), part in named.group_by("l2", maintain_order=True):
            of_part = by_seed(part, metric)
            for value in values[1:]:
                gaps = paired_gaps(of_part, task, str(value), str(values[0]))
                yield task, l2, value, mean_interval(gaps)


def _answer(results: pl.DataFrame, metric: str) -> str:
    gaps = [row for row in _gaps(results, metric) if row[0] == "ctcvr"]
    most = max(gaps, key=lambda row: row[3].value)
    least = min(gaps, key=lambda row: row[3].value)
    means = (
        results.filter(pl.col("task") == "ctcvr")
        .group_by("lambda", "l2")
        .agg(pl.col(metric).mean())
        .sort(metric, descending=True)
    )
    best, bce = means.row(0, named=True), means.filter(pl.col("lambda") == 0)
    first = bce.row(0, named=True)
    return (
        f"The effect on CTCVR AUC goes from {text_of(least[3])} (L2 {least[1]:g}, "
        f"lambda {least[2]:g}) to {text_of(most[3])} (L2 {most[1]:g}, lambda "
        f"{most[2]:g}); the best cell has {best[metric]:.4f} (L2 {best['l2']:g}, "
        f"lambda {best['lambda']:g}), the best of BCE {first[metric]:.4f} (L2 "
        f"{first['l2']:g})."
    )


EXPERIMENT = Experiment(
    NAME,
    "L2 and lambda",
    "Does the sign of PWiseR's effect follow the regularisation?",
    find,
)
