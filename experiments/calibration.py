"""How does PWiseR change calibration, and the order of the funnel's levels?

    python -m experiments.all --only calibration --output runs/experiments

Log loss and calibration error of each head, as trained and after a refit of slope and
shift on validation; the share of discordant pairs of levels; and the agreement of the
orders by CTR and by CTCVR. The runs are those of the other experiments.
"""

from itertools import chain

import numpy as np
import polars as pl
from scipy import special

from experiments.lib.study import Experiment, Finding, Measures, Outcome, Study
from experiments.lib.words import average_difference, change, text_of
from pwiser_jax import metrics
from pwiser_jax.evaluation import Prediction
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import differences, reliability_curves
from pwiser_jax.reports.tables import difference_text, summary
from pwiser_jax.tasks import Task, measured

NAME = "calibration"
MODEL = "mmoe"
LOSSES = ("bce", "pwiser", "logit")
TABLES = {
    "Log loss": ("log loss", "log loss after refit"),
    "Calibration": ("ECE", "ECE after refit", "predicted / observed"),
    "Order of the levels": ("discordant", "agreement with CTR"),
}
METRICS = tuple(chain.from_iterable(TABLES.values()))


def find(study: Study) -> Finding:
    parts = []
    for dataset in study.core:
        planned = study.grid(dataset, [MODEL], LOSSES, study.scale.seeds)
        results = study.run(NAME, planned, dataset)
        parts.append(
            study.measure(
                NAME, results, dataset, METRICS, lambda run: measures(run, study.split)
            )
        )
    wide = pl.concat(parts).pivot(
        "metric",
        index=["dataset", "model", "loss", "seed", "task"],
        values="value",
        maintain_order=True,
    )
    blocks: list[TableBlock | Picture] = [
        TableBlock(_table(wide, study, names), f"{title} on {_caption(study)}")
        for title, names in TABLES.items()
    ]
    figures = {"log loss": "as trained", "log loss after refit": "after the refit"}
    for metric, text in figures.items():
        table = summary(wide, metric=metric)
        if table["low"].is_not_null().any():
            blocks.append(
                Picture(
                    differences(table, metric="log loss", rows=("dataset",)),
                    f"Paired differences of log loss to BCE, {text}.",
                    f"Log loss {text}: below 0 is better than BCE.",
                )
            )
    if study.tables is None:
        blocks.append(_reliability(study))
    return Finding(_answer(wide), blocks)


def measures(outcome: Outcome, split: str) -> Measures:
    """All measures of a run by (task, metric); the refit uses validation rows."""
    schema = outcome.prepared.schema
    level, predictions = outcome.level(split), outcome.predictions(split)
    valid_level, valid = outcome.level("valid"), outcome.predictions("valid")
    by_task: dict[tuple[str, str], float] = {}
    first = measured(schema.labels)[0].name
    for task in measured(schema.labels):
        name = task.name
        labels, z, p = _rows(task, predictions[name], level)
        valid_labels, valid_z, _ = _rows(task, valid[name], valid_level)
        refitted = metrics.refit(valid_labels, valid_z)(z)
        q = special.expit(refitted)
        known = not np.isnan(refitted).any()
        numbers = (
            metrics.log_loss(labels, p),
            metrics.log_loss_from_logits(labels, refitted) if known else np.nan,
            metrics.expected_calibration_error(labels, p),
            metrics.expected_calibration_error(labels, q) if known else np.nan,
            metrics.predicted_over_observed(labels, p),
            metrics.discordance(level, predictions[name].scores).share,
            metrics.order_agreement(
                predictions[name].scores, predictions[first].scores
            ),
        )
        by_task |= {
            (name, metric): number
            for metric, number in zip(METRICS, numbers, strict=True)
        }
    return by_task


def _rows(
    task: Task, prediction: Prediction, level: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Labels, logits and probabilities on the rows where a task is defined.

    The logit of a conditional probability that is a ratio is computed from the ratio,
    clipped below 1.
    """
    rows = level >= task.given
    p = prediction.probabilities[rows]
    if prediction.scores_are_logits:
        z = prediction.scores[rows]
    else:
        z = special.logit(np.clip(p, 1e-12, 1 - 1e-6))
    return level[rows] >= task.rung, z, p


def _table(wide: pl.DataFrame, study: Study, names: tuple[str, ...]) -> pl.DataFrame:
    """One row per dataset, task and loss: mean of BCE, or difference to BCE."""
    keys = ["dataset", "task", "loss"]
    columns: dict[str, list[str]] = {}
    for metric in names:
        table = summary(wide, metric=metric)
        columns[metric] = [
            f"{row['mean']:.5f}"
            if row["difference"] is None
            else difference_text(row["difference"], row["low"], row["high"], ".5f")
            for row in table.with_columns(pl.col("mean").fill_null(np.nan)).iter_rows(
                named=True
            )
        ]
    return (
        summary(wide, metric=names[0])
        .select(keys if len(study.core) > 1 else keys[1:])
        .with_columns(pl.Series(name, texts) for name, texts in columns.items())
    )


def _caption(study: Study) -> str:
    return (
        f"{study.split}: BCE's means, and differences to BCE with 95% intervals over "
        f"{study.scale.seeds} paired seeds"
    )


def _reliability(study: Study) -> Picture:
    """Curves of seed 0 on the main dataset."""
    dataset = study.datasets[0]
    results = study.run(NAME, study.grid(dataset, [MODEL], LOSSES, 1), dataset)
    runs = dict(results.select("loss", "run").unique(maintain_order=True).rows())
    curves: dict[str, dict[str, metrics.Reliability]] = {}
    for loss, run in runs.items():
        outcome = Outcome(study.runs / run, dataset.ready())
        level = outcome.level(study.split)
        for task in measured(outcome.prepared.schema.labels):
            prediction = outcome.predictions(study.split)[task.name]
            labels, _, p = _rows(task, prediction, level)
            curves.setdefault(task.name, {})[loss] = metrics.reliability(labels, p, 10)
    return Picture(
        reliability_curves(curves),
        "Share of positives by predicted probability, by task and loss.",
        f"{dataset.title}, MMoE, seed 0, {study.split}, as trained; the line is "
        "perfect calibration.",
    )


def _answer(wide: pl.DataFrame) -> str:
    texts = []
    for task in ("ctr", "ctcvr"):
        gap = average_difference(wide, task, metric="log loss")
        refit = average_difference(wide, task, metric="log loss after refit")
        texts.append(
            f"{change(f'{task.upper()} log loss', gap, '.5f')}, after a refit "
            f"{text_of(refit, '.5f')}"
        )
    wrong = average_difference(wide, "ctcvr", metric="discordant")
    texts.append(change("the share of discordant pairs of levels", wrong))
    return f"Against BCE, PWiseR {'; it '.join(texts)} (MMoE, mean over datasets)."


EXPERIMENT = Experiment(
    NAME,
    "Calibration and harmony",
    "What does PWiseR do to log loss and calibration error, before and after a refit "
    "of two parameters, and to the order of the funnel's levels?",
    find,
)
