"""Tuning: PWiseR against BCE, each tuned with the same number of trials.

    python -m experiments.all --only tuning --output runs/experiments

PWiseR's grid is over lambda, m1 and m2, BCE's over its learning rate and L2. Points are
chosen on validation with tuning seeds. The chosen points, the defaults, and PWiseR's
defaults with BCE's chosen settings are then run with other seeds and measured on test.
So is an adaptive lambda, at which the norm of PWiseR's gradient is that of BCE's (1),
or a tenth of it (0.1).

"By rule" needs no search for PWiseR: BCE's chosen settings, and lambda 0.1 on the CTCVR
head only. The experiment on terms, on the same test rows, suggested it.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import polars as pl

from experiments.grid_search import (
    Point,
    at,
    best_point,
    cells_picture,
    edge_text,
    grid_search,
    on_edge,
    point_text,
    points,
    ranked_points,
)
from experiments.lib.datasets import Dataset
from experiments.lib.study import Experiment, Finding, Study
from experiments.lib.tuner import has_optuna, tune
from experiments.lib.words import changes, effects, effects_table, joined
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import differences
from pwiser_jax.reports.tables import formatted, summary

NAME = "tuning"
MODEL = "mmoe"
ON_TUNED, RULE = "pwiser on bce tuned", "pwiser by rule"
ADAPTIVE, ADAPTIVE_TENTH = "pwiser adaptive 1", "pwiser adaptive 0.1"
REGRET = "Optuna's TPE in batches: mean AUC on validation; below 0 beats the grid"
COMPARISONS = (
    ("pwiser", "bce"),
    ("pwiser tuned", "bce tuned"),
    (ADAPTIVE, "bce"),
    (ADAPTIVE_TENTH, "bce"),
    (ADAPTIVE_TENTH, "pwiser tuned"),
    (ON_TUNED, "bce tuned"),
    (RULE, "bce tuned"),
)


def find(study: Study) -> Finding:
    blocks: list[TableBlock | Picture] = []
    results, chosen = [], []
    for dataset in study.core:
        pwiser, bce = _searched(study, dataset)
        picture = cells_picture(pwiser)
        if picture:
            blocks.append(picture)
        best, best_bce = best_point(pwiser), best_point(bce)
        chosen += [
            (dataset.name, name, point_text(best_point(table)), joined(on_edge(table)))
            for name, table in (("pwiser tuned", pwiser), ("bce tuned", bce))
        ]
        settings = {
            "bce": ("bce", {}),
            "bce tuned": ("bce", best_bce),
            "pwiser": ("pwiser", {}),
            "pwiser tuned": ("pwiser", best),
            ADAPTIVE: ("balanced", {}),
            ADAPTIVE_TENTH: ("balanced", {"lambda": 0.1}),
            ON_TUNED: ("pwiser", best_bce),
            RULE: ("ctcvr_only", best_bce),
        }
        results.append(_final(study, dataset, settings))
        if study.tables is None and has_optuna() and dataset is study.core[0]:
            blocks.append(TableBlock(_regret(study, dataset, pwiser), REGRET))
        for name, table in (("PWiseR", pwiser), ("BCE", bce)):
            caption = f"{dataset.name}: points of {name}. {edge_text(table)}"
            blocks.append(TableBlock(ranked_points(table), caption, folded=True))
    finals = pl.concat(results)
    for baseline in ("bce", "bce tuned"):
        table = summary(finals, baseline=baseline)
        if table["low"].is_not_null().any():
            blocks.append(
                Picture(
                    differences(table, baseline=baseline, rows=("loss", "dataset")),
                    f"Paired differences of test AUC to {baseline}.",
                    f"Test rows, seeds that no choice has used: against {baseline}.",
                )
            )
    names = ["Dataset", "Loss", "Chosen", "On the edge of the grid in"]
    table = pl.DataFrame(chosen, schema=names, orient="row")
    gaps = effects_table(finals, COMPARISONS)
    caption = "AUC on test, mean over datasets, 95% intervals over seeds"
    blocks = [
        TableBlock(gaps, caption),
        TableBlock(table, "Chosen on validation"),
        *blocks,
        TableBlock(formatted(summary(finals)), "AUC on test", folded=True),
    ]
    tuned = effects(finals, [("pwiser tuned", "bce tuned")])
    trials = len(points(**study.scale.bce_grid))
    return Finding(_answer(finals, trials), blocks, effects=tuned)


def _searched(study: Study, dataset: Dataset) -> tuple[pl.DataFrame, pl.DataFrame]:
    """The points of PWiseR and of BCE with their AUC on validation."""
    grids = study.scale.pwiser_grid, study.scale.bce_grid
    sizes = {prod(len(values) for values in grid.values()) for grid in grids}
    assert len(sizes) == 1, "both losses get the same number of trials"
    return (
        grid_search(study, NAME, dataset, points(**grids[0]), model=MODEL),
        grid_search(study, NAME, dataset, points(**grids[1]), model=MODEL, loss="bce"),
    )


def _final(
    study: Study, dataset: Dataset, settings: dict[str, tuple[str, Point]]
) -> pl.DataFrame:
    planned = [
        replace(run, config=at(run.config, point), tags={"setting": name})
        for name, (loss, point) in settings.items()
        for run in study.grid(dataset, [MODEL], [loss], study.scale.seeds)
    ]
    results = study.run(NAME, planned, dataset, "test")
    return results.with_columns(pl.col("setting").alias("loss"))


def _regret(study: Study, dataset: Dataset, grid: pl.DataFrame) -> pl.DataFrame:
    """The best of the grid minus the best of the tuner, by number of trials."""

    def measure(asked: Sequence[Point]) -> list[float]:
        # A point that is asked for twice is one run.
        table = grid_search(study, NAME, dataset, asked, model=MODEL)
        return table["auc"].to_list()

    trials, batch = grid.height, max(grid.height // 6, 1)
    tried = tune(measure, trials, batch)
    best = float(grid["auc"].to_numpy().max())
    rows = []
    for count in range(batch, trials + 1, batch):
        reached = max(value for _, value in tried[:count])
        rows.append((dataset.name, count, reached, best - reached))
    names = ["Dataset", "Trials", "Best of the tuner", "Regret against the whole grid"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _answer(results: pl.DataFrame, trials: int) -> str:
    gaps = changes(results, ("ctr", "ctcvr"), "pwiser tuned", "bce tuned")
    return (
        f"Tuned with {trials} trials each, PWiseR {gaps} against BCE on test (MMoE, "
        "mean over datasets)."
    )


TUNING = Experiment(
    NAME,
    "Tuning and sensitivity",
    "With the same number of trials for BCE over its own settings, is tuned PWiseR "
    "better; how much do lambda and the margins matter; is an adaptive lambda as good?",
    find,
)
