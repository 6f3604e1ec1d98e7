"""The effect of accidental clicks in train on PWiseR's gain.

    python -m experiments.all --only noise --output runs/experiments

Up to half of the clicks in train are accidental: random train rows without a click get
one. Validation and test stay clean. On the synthetic funnel, scores are also compared
with the true probabilities.
"""

from functools import partial

import numpy as np
import polars as pl

from experiments.lib.datasets import Dataset
from experiments.lib.relabel import accidental_clicks
from experiments.lib.study import Experiment, Finding, Measures, Outcome, Study
from experiments.lib.words import (
    average_difference,
    changes,
    joined,
    line_rows,
    text_of,
)
from pwiser_jax.metrics import mean_interval, order_agreement
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import interval_lines
from pwiser_jax.reports.tables import formatted, summary

NAME = "noise"
MODEL = "mmoe"
LOSSES = ("bce", "pwiser")
TRUTH = ("agreement", "rmse")


def find(study: Study) -> Finding:
    runs, truths = [], []
    for dataset in study.core:
        for share in study.scale.shares:
            noisy = _noisy(study, dataset, share)
            planned = study.grid(
                noisy, [MODEL], LOSSES, study.scale.seeds, tags={"noise": share}
            )
            results = study.run(NAME, planned, noisy)
            runs.append(results)
            if dataset.truth:
                truths.append(study.measure(NAME, results, noisy, TRUTH, _truth))
    results = pl.concat(runs)
    blocks: list[TableBlock | Picture] = [
        TableBlock(_shares_table(results), "AUC of PWiseR minus that of BCE")
    ]
    for dataset in study.core:
        part = results.filter(pl.col("dataset") == dataset.name)
        blocks += _blocks(part, dataset, study)
    if truths:
        blocks += _truth_blocks(pl.concat(truths))
    return Finding(_answer(results, study), blocks)


def _shares_table(results: pl.DataFrame) -> pl.DataFrame:
    """One row per dataset and share of accidental clicks, one column per task."""
    tasks = results["task"].unique(maintain_order=True)
    groups = results.group_by("dataset", "noise", maintain_order=True)
    return pl.DataFrame(
        [
            {"Dataset": dataset, "Accidental clicks": f"{share:.0%}"}
            | {task.upper(): text_of(average_difference(part, task)) for task in tasks}
            for (dataset, share), part in groups
        ]
    )


def _noisy(study: Study, dataset: Dataset, share: float) -> Dataset:
    if not share:
        return dataset
    change = partial(accidental_clicks, share=share)
    return dataset.relabelled(study.place, f"accidental_{round(100 * share)}", change)


def _truth(outcome: Outcome) -> Measures:
    """Kendall's tau and RMS distance to the true probabilities."""
    extra = outcome.rows("test").extra
    ctr, cvr = extra["true_ctr"], extra["true_cvr"]
    truth = {"ctr": ctr, "ctcvr": ctr * cvr, "cvr": cvr}
    measures: dict[tuple[str, str], float] = {}
    for task, prediction in outcome.predictions("test").items():
        true = truth[task]
        measures[task, "agreement"] = order_agreement(prediction.scores, true)
        gaps = prediction.probabilities - true
        measures[task, "rmse"] = float(np.sqrt(np.mean(gaps**2)))
    return measures


def _blocks(
    part: pl.DataFrame, dataset: Dataset, study: Study
) -> list[TableBlock | Picture]:
    tasks = part["task"].unique(maintain_order=True).to_list()
    rows = []
    for share in study.scale.shares:
        at = part.filter(pl.col("noise") == share)
        for task in tasks:
            gap = average_difference(at, task)
            rows.append((task, "pwiser", share, gap.value, gap.low, gap.high))
    named = part.with_columns(
        pl.format("{}% accidental", (100 * pl.col("noise")).round().cast(int)).alias(
            "dataset"
        )
    )
    return [
        Picture(
            interval_lines(
                line_rows(rows),
                "accidental clicks, share of the clicks in train",
                "AUC of PWiseR minus that of BCE",
                zero="as BCE",
                percent=True,
            ),
            f"Difference of AUC by the share of accidental clicks, {dataset.name}.",
            f"{dataset.name}, MMoE, clean {study.split} rows: paired by seed, with 95% "
            "intervals.",
        ),
        TableBlock(formatted(summary(named)), f"AUC, {dataset.name}", folded=True),
    ]


def _truth_blocks(measures: pl.DataFrame) -> list[TableBlock | Picture]:
    texts = {
        "agreement": "Kendall's tau to the true probability",
        "rmse": "RMS distance to the true probability",
    }
    blocks: list[TableBlock | Picture] = []
    for metric, text in texts.items():
        groups = measures.filter(pl.col("metric") == metric).group_by(
            "task", "loss", "noise", maintain_order=True
        )
        rows = []
        for (task, loss, share), part in groups:
            mean = mean_interval(part["value"].to_numpy())
            rows.append((task, loss, share, mean.value, mean.low, mean.high))
        figure = interval_lines(
            line_rows(rows),
            "accidental clicks, share of the clicks in train",
            text,
            percent=True,
        )
        caption = (
            "Synthetic funnel, test rows, means over seeds with 95% intervals; the "
            "truth is that of genuine clicks."
        )
        blocks.append(
            Picture(figure, f"{text} by the share of accidental clicks.", caption)
        )
    return blocks


def _answer(results: pl.DataFrame, study: Study) -> str:
    texts = []
    for share in (study.scale.shares[0], study.scale.shares[-1]):
        part = results.filter(pl.col("noise") == share)
        texts.append(f"with {share:.0%} of them it {changes(part, ['ctcvr'])}")
    return (
        f"Accidental clicks in train: {joined(texts)}, against BCE on clean rows "
        "(MMoE, mean over datasets)."
    )


NOISE = Experiment(
    NAME,
    "Accidental clicks",
    "When some of the clicks in train are accidental, does PWiseR gain over BCE, and "
    "do its scores come closer to the true probabilities?",
    find,
)
