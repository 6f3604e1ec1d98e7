"""Tuning and sensitivity: lambda, m1 and m2 against BCE with as many trials.

    python -m experiments.all --only tuning --output runs/experiments

PWiseR's grid is over lambda, m1 and m2, BCE's over its learning rate and L2, with the
same number of points. Points are chosen on validation with tuning seeds; the chosen
ones, the defaults, and PWiseR's defaults on top of BCE's chosen settings are then run
with other seeds, and test is read once, for these. So is an adaptive lambda: at each
step the one at which PWiseR's gradient is as long as BCE's (1), or a tenth of it (0.1).

The rule without a search of PWiseR's own: BCE's chosen settings, lambda 0.1 on the
CTCVR head alone. The experiment on terms, on the same test rows, suggested it.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import polars as pl

from experiments.grid_search import Point, at, best_point, contours, grid_search, points
from experiments.lib.datasets import Dataset
from experiments.lib.study import Experiment, Finding, Study
from experiments.lib.tuner import has_optuna, tune
from experiments.lib.words import average_difference, listed, text_of
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import differences
from pwiser_jax.reports.tables import formatted, summary

NAME = "tuning"
MODEL = "mmoe"
ON_TUNED, RULE = "pwiser on bce tuned", "pwiser by rule"
ADAPTIVE, ADAPTIVE_TENTH = "pwiser adaptive 1", "pwiser adaptive 0.1"
REGRET = "Optuna's TPE in batches: mean AUC on validation; below 0 beats the grid"


def find(study: Study) -> Finding:
    blocks: list[TableBlock | Picture] = []
    results, chosen = [], []
    for dataset in study.core:
        pwiser, bce = _searched(study, dataset)
        picture = contours(pwiser)
        if picture:
            blocks.append(picture)
        best, best_bce = best_point(pwiser), best_point(bce)
        chosen += [
            (dataset.name, "pwiser tuned", _text(best)),
            (dataset.name, "bce tuned", _text(best_bce)),
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
        if has_optuna() and dataset is study.core[0]:
            blocks.append(TableBlock(_regret(study, dataset, pwiser), REGRET))
        for name, table in (("PWiseR", pwiser), ("BCE", bce)):
            ranked = table.sort("auc", descending=True, maintain_order=True)
            caption = f"{dataset.name}: {name}'s points by mean AUC on validation"
            blocks.append(TableBlock(ranked, caption, folded=True))
    found = pl.concat(results)
    for baseline in ("bce", "bce tuned"):
        table = summary(found, baseline=baseline)
        if table["low"].is_not_null().any():
            blocks.append(
                Picture(
                    differences(table, baseline=baseline),
                    f"Paired differences of test AUC to {baseline}.",
                    f"Test rows, seeds that no choice has seen: against {baseline}.",
                )
            )
    names = ["Dataset", "Loss", "Chosen"]
    table = pl.DataFrame(chosen, schema=names, orient="row")
    blocks.insert(0, TableBlock(table, "What was chosen on validation"))
    blocks.append(TableBlock(formatted(summary(found)), "AUC on test"))
    return Finding(_answer(found, len(points(**study.scale.bce_grid))), blocks)


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
    cells = [
        replace(
            cell,
            config=at(cell.config, point),
            tags={"setting": name},
        )
        for name, (loss, point) in settings.items()
        for cell in study.cells(dataset, [MODEL], [loss], study.scale.seeds)
    ]
    found = study.run(NAME, cells, dataset, "test")
    return found.with_columns(pl.col("setting").alias("loss"))


def _regret(study: Study, dataset: Dataset, grid: pl.DataFrame) -> pl.DataFrame:
    """The best of the grid less the best that the tuner has found, by trials."""

    def measure(asked: Sequence[Point]) -> list[float]:
        # A point that was asked for twice is one cell: the table finds it by numbers.
        table = grid_search(study, NAME, dataset, asked, model=MODEL)
        return table["auc"].to_list()

    trials, batch = grid.height, max(grid.height // 6, 1)
    found = tune(measure, trials, batch)
    best = float(grid["auc"].max())  # pyright: ignore[reportArgumentType]
    rows = []
    for count in range(batch, trials + 1, batch):
        reached = max(value for _, value in found[:count])
        rows.append((dataset.name, count, reached, best - reached))
    names = ["dataset", "trials", "best of the tuner", "regret against the whole grid"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _text(point: Point) -> str:
    return ", ".join(f"{name} {value:g}" for name, value in point.items())


def _answer(results: pl.DataFrame, trials: int) -> str:
    pairs = (
        ("pwiser", "bce"),
        ("pwiser tuned", "bce tuned"),
        (ADAPTIVE, "bce"),
        (ADAPTIVE_TENTH, "bce"),
        (ADAPTIVE_TENTH, "pwiser tuned"),
        (ON_TUNED, "bce tuned"),
        (RULE, "bce tuned"),
    )
    texts = []
    for task in ("ctr", "ctcvr"):
        gaps = [
            f"{a} against {b} {text_of(average_difference(results, task, a, b))}"
            for a, b in pairs
        ]
        texts.append(f"{task.upper()}: {', '.join(gaps)}")
    return (
        f"Test AUC with {trials} trials for each loss, MMoE, mean over datasets: "
        f"{listed(texts)}."
    )


TUNING = Experiment(
    NAME,
    "Tuning and sensitivity",
    "With as many trials for BCE over its own settings, is tuned PWiseR better; how "
    "much do lambda and the margins matter; does a lambda that follows the gradients "
    "do as well?",
    find,
)
