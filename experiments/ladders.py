"""More than two tasks: the ladder loss on 3 to 6 levels.

    python -m experiments.all --only ladders --output runs/experiments

The synthetic funnel with 2 to 5 labels, MMoE: BCE alone, PWiseR (the highest level over
every lower one), and the ladder loss (every level over every lower one, 0.1 a rung).
Measures: the AUC of the highest label's score between all pairs of levels, and the time
and memory of the loss alone, by the number of levels.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from experiments.lib.datasets import Dataset, synthetic
from experiments.lib.measure import median_seconds
from experiments.lib.runs import Run, fixed
from experiments.lib.study import Experiment, Finding, Measures, Outcome, Study
from experiments.lib.words import average_difference, change, joined, line_rows, text_of
from pwiser_jax import metrics
from pwiser_jax.data.datasets.funnel import LADDERS
from pwiser_jax.losses import ladder_loss
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import interval_lines
from pwiser_jax.tasks import joint_task

NAME = "ladders"
MODEL = "mmoe"
STEP = 0.1
ROWS = (1_024, 65_536)  # of the batches that the loss is timed on


def find(study: Study) -> Finding:
    parts = []
    for labels in study.scale.labels:
        dataset = synthetic(study.place, study.scale.rows, labels)
        results = study.run(NAME, _runs(study, dataset, labels), dataset)
        names = _pair_names(labels)
        measures = study.measure(
            NAME, results, dataset, names, lambda run: _pairs(run, study.split)
        )
        parts.append(measures.with_columns(pl.lit(labels + 1).alias("levels")))
    pairs = pl.concat(parts)
    means = _pooled(pairs)
    blocks: list[TableBlock | Picture] = [
        TableBlock(_effects(means), "AUC minus that of BCE, by the top label's score"),
        Picture(
            interval_lines(
                _lines(means),
                "levels of the ladder, the exposure included",
                "AUC minus that of BCE",
                zero="as BCE",
            ),
            "Difference to BCE of the AUC between levels, by the number of levels.",
            "The top label's score; the mean over all pairs of levels, and the highest "
            "level against the one below; paired by seed, with 95% intervals.",
        ),
        TableBlock(_pair_table(pairs), "AUC between two levels, by the top score"),
        TableBlock(loss_costs(study.scale.labels), "The loss alone, both passes"),
    ]
    return Finding(_answer(means, study), blocks)


def _runs(study: Study, dataset: Dataset, labels: int) -> list[Run]:
    planned = study.grid(dataset, [MODEL], ["bce", "pwiser"], study.scale.seeds)
    margins = every_margin(LADDERS[labels])
    ladder = [
        replace(
            run,
            loss="ladder",
            configure=fixed(
                replace(run.config, loss=replace(run.config.loss, margins=margins))
            ),
        )
        for run in planned
        if run.loss == "pwiser"
    ]
    return [*planned, *ladder]


def _effects(means: pl.DataFrame) -> pl.DataFrame:
    """A row a number of levels and loss."""
    return pl.DataFrame(
        [
            {"Levels": str(levels), "Loss": loss}
            | {
                name.capitalize(): text_of(average_difference(part, name, loss))
                for name in ("all pairs", "top pair")
            }
            for (levels,), part in means.group_by("levels", maintain_order=True)
            for loss in ("pwiser", "ladder")
        ]
    )


def every_margin(labels: tuple[str, ...]) -> dict[str, float | None]:
    """Every level over every lower one, 0.1 a rung."""
    names = ("exposure", *labels)
    return {
        f"{names[high]}>{names[low]}": STEP * (high - low)
        for high in range(1, len(names))
        for low in range(high)
    }


def _pair_names(labels: int) -> tuple[str, ...]:
    return tuple(
        f"auc {high}>{low}" for high in range(1, labels + 1) for low in range(high)
    )


def _pairs(outcome: Outcome, split: str) -> Measures:
    """AUC of the top label's score between all pairs of levels."""
    labels = outcome.prepared.schema.labels
    task = joint_task(labels, len(labels)).name
    level = outcome.level(split)
    discordance = metrics.discordance(level, outcome.predictions(split)[task].scores)
    measures = {
        (task, f"auc {high}>{low}"): 1 - share
        for (high, low), share in discordance.by_levels.items()
    }
    missing = {(task, name): np.nan for name in _pair_names(len(labels))}
    return missing | measures


def _pooled(pairs: pl.DataFrame) -> pl.DataFrame:
    """Two measures of each run: the mean over pairs of levels, and the top pair."""
    top = pl.format("auc {}>{}", pl.col("levels") - 1, pl.col("levels") - 2)
    keys = ["dataset", "model", "loss", "seed", "levels"]
    finite = pairs.filter(pl.col("value").is_finite())
    mean = finite.group_by(keys, maintain_order=True).agg(
        pl.lit("all pairs").first().alias("task"), pl.col("value").mean().alias("auc")
    )
    highest = finite.filter(pl.col("metric") == top).select(
        *keys, pl.lit("top pair").alias("task"), pl.col("value").alias("auc")
    )
    return pl.concat([mean, highest])


def _lines(means: pl.DataFrame) -> pl.DataFrame:
    rows = []
    for (levels, task), part in means.group_by("levels", "task", maintain_order=True):
        for loss in ("pwiser", "ladder"):
            gap = average_difference(part, str(task), loss)
            rows.append((task, loss, levels, gap.value, gap.low, gap.high))
    return line_rows(rows).sort("panel", "x")


def _pair_table(pairs: pl.DataFrame) -> pl.DataFrame:
    """A row a ladder and pair of levels, the losses' means over seeds as columns."""
    return (
        pairs.group_by("levels", "metric", "loss", maintain_order=True)
        .agg(pl.col("value").mean())
        .pivot("loss", index=["levels", "metric"], values="value")
        .rename({"levels": "Levels", "metric": "Pair of levels"})
        .with_columns(pl.col("Pair of levels").str.strip_prefix("auc "))
    )


def loss_costs(labels: tuple[int, ...]) -> pl.DataFrame:
    """Milliseconds and temporary memory of the ladder loss with its gradient."""
    rows = []
    for count in ROWS:
        rng = np.random.default_rng(0)
        scores = jnp.asarray(rng.random(count), jnp.float32)
        for number in labels:
            level = rng.binomial(number, 0.15, count)
            margins = {
                (high, low): STEP * (high - low)
                for high in range(1, number + 1)
                for low in range(high)
            }
            program = _program(jnp.asarray(level, jnp.int32), margins)
            compiled: Any = jax.jit(program).lower(scores).compile()
            memory = compiled.memory_analysis()
            seconds = median_seconds(partial(_wait, compiled, scores), budget=0.3)
            kib = memory.temp_size_in_bytes / 2**10 if memory else None
            rows.append((count, number + 1, len(margins), 1e3 * seconds, kib))
    names = ["Rows", "Levels", "Terms", "Time [ms]", "Temporary memory [KiB]"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _program(level: jax.Array, margins: dict[tuple[int, int], float]) -> Callable:
    return jax.value_and_grad(lambda scores: ladder_loss(scores, level, margins))


def _wait(program: Any, scores: jax.Array) -> None:
    jax.block_until_ready(program(scores))


def _answer(means: pl.DataFrame, study: Study) -> str:
    levels = study.scale.labels[-1] + 1
    part = means.filter(pl.col("levels") == levels)
    texts = [
        f"{name} {change('the mean AUC over pairs of levels', gap)}"
        for name, gap in (
            ("the ladder loss", average_difference(part, "all pairs", "ladder")),
            ("PWiseR", average_difference(part, "all pairs")),
        )
    ]
    return f"On a ladder of {levels} levels, {joined(texts)}, against BCE (MMoE)."


EXPERIMENT = Experiment(
    NAME,
    "More than two tasks",
    "On ladders of 3 to 6 levels: does ranking every level over every lower one gain "
    "more than ranking the highest one only, and what does it cost?",
    find,
)
