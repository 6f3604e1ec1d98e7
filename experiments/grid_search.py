"""Chooses settings on validation: lambda, m1 and m2, as the paper's authors did.

    python -m experiments.grid_search --data data/kuairand --configs configs/kuairand \\
        --lambdas 0.03 0.1 0.3 1 --m1 0.05 0.1 0.2 0.4 --m2 0.1 0.2 0.4 \\
        --output runs/grid_search

Every point is run with tuning seeds, which no final run shares, and measured on
validation; test is never read. Invalid points, such as a negative lambda, are reported
and skipped. grid.csv holds the points, best first.
"""

import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import polars as pl
from jsonargparse import Namespace

from experiments.lib.commands import run_command
from experiments.lib.datasets import Dataset, given
from experiments.lib.runs import Run, fixed
from experiments.lib.search import Point, at, point_text
from experiments.lib.study import SCALES, TUNING_SEED, Study
from experiments.lib.words import joined
from pwiser_jax.errors import UserError
from pwiser_jax.models import MODELS
from pwiser_jax.options import Parser
from pwiser_jax.reports.html import Picture, Report, Section, TableBlock
from pwiser_jax.reports.plots import grid_cells
from pwiser_jax.reports.tables import write_csv


def points(**values: Sequence[float]) -> list[Point]:
    """The grid of all values: points(m1=(0.1,), m2=(0.1, 0.2)) has two points."""
    return [
        dict(zip(values, point, strict=True)) for point in product(*values.values())
    ]


def grid_search(
    study: Study,
    experiment: str,
    dataset: Dataset,
    grid: Sequence[Point],
    *,
    model: str = "mmoe",
    loss: str = "pwiser",
    seeds: int = 1,
) -> pl.DataFrame:
    """Runs every point on validation.

    Args:
        study: data, size and folders.
        experiment: name of the result table.
        dataset: the dataset.
        grid: the points.
        model, loss: as in `lib.runs`; a point's numbers replace those of the loss.
        seeds: number of tuning seeds of each point.

    Returns:
        A row a point, in the grid's order: its numbers, and `auc`, the mean over seeds
        and over CTR and CTCVR of the AUC on validation.

    Raises:
        UserError: no point is valid.
    """
    planned: list[Run] = []
    kept: list[Point] = []
    for point in grid:
        try:
            runs = [
                replace(run, configure=fixed(at(run.config, point)), tags=dict(point))
                for run in study.grid(dataset, [model], [loss], seeds, TUNING_SEED)
            ]
        except ValueError as error:
            print(f"skipped {point_text(point)}: {error}", file=sys.stderr)
            continue
        kept.append(point)
        planned += runs
    if not planned:
        raise UserError("the grid has no valid point")
    results = study.run(experiment, planned, dataset, "valid")
    heads = results.filter(pl.col("task").is_in(["ctr", "ctcvr"]))
    means = heads.group_by(list(kept[0]), maintain_order=True).agg(pl.col("auc").mean())
    return pl.DataFrame(kept).join(means, on=list(kept[0]), maintain_order="left")


def best_point(table: pl.DataFrame) -> Point:
    """The point with the highest AUC on validation, the first of equal ones.

    Raises:
        UserError: no point has an AUC.
    """
    finite = table.filter(pl.col("auc").is_finite())
    if finite.is_empty():
        raise UserError("no point of the grid has an AUC on validation")
    row = finite.sort("auc", descending=True, maintain_order=True).row(0, named=True)
    return {name: value for name, value in row.items() if name != "auc"}


def on_edge(table: pl.DataFrame) -> list[str]:
    """The settings in which the best point lies on the edge of the grid."""
    return [
        name
        for name, value in best_point(table).items()
        if table[name].n_unique() > 1
        and value in (table[name].min(), table[name].max())
    ]


def edge_text(table: pl.DataFrame) -> str:
    """A sentence: is the best point on the edge of the grid?"""
    if edges := on_edge(table):
        return (
            f"The best point lies on the edge of the grid in {joined(edges)}: a wider "
            "grid may hold a better one."
        )
    return "The best point lies inside the grid."


def cells_picture(table: pl.DataFrame) -> Picture | None:
    """Mean AUC over lambda and m2, a panel a value of m1; None for a line of points."""
    if min(table[name].n_unique() for name in ("lambda", "m2")) < 2:
        return None
    shown = table.select(
        pl.format("m1 = {}", "m1").alias("panel"),
        pl.col("lambda").alias("x"),
        pl.col("m2").alias("y"),
        pl.col("auc").alias("value"),
    )
    return Picture(
        grid_cells(shown, "lambda", "margin m2", "mean validation AUC", "best"),
        "Mean validation AUC over lambda and m2, a panel a value of m1.",
        f"Mean of the AUC of CTR and CTCVR on validation. {edge_text(table)}",
    )


def ranked_points(table: pl.DataFrame) -> pl.DataFrame:
    """The points, best first, their settings as written."""
    ranked = table.sort("auc", descending=True, nulls_last=True, maintain_order=True)
    settings = [name for name in table.columns if name != "auc"]
    return ranked.select(
        *(pl.Series(name, [f"{x:g}" for x in ranked[name]]) for name in settings),
        pl.col("auc").alias("mean validation AUC"),
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.grid_search", description=__doc__)
    add = parser.add_argument
    add("--data", type=Path, required=True, help="a prepared folder")
    add("--configs", type=Path, required=True, help="a folder with MODEL.yaml")
    add("--output", type=Path, required=True)
    add("--model", choices=list(MODELS), default="mmoe")
    add("--lambdas", type=float, nargs="*", default=[0.03, 0.1, 0.3, 1.0])
    add("--m1", type=float, nargs="*", default=[0.05, 0.1, 0.2, 0.4])
    add("--m2", type=float, nargs="*", default=[0.1, 0.2, 0.4])
    add("--seeds", type=int, default=1, help="tuning seeds of each point")
    add("--set", type=str, nargs="+", help="options of every run: train.epochs=3 ...")
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse(arguments)
    command = f"python -m experiments.grid_search {shlex.join(arguments)}"
    return run_command(parser.prog, lambda: _search(options, command))


def _search(options: Namespace, command: str) -> None:
    """Runs the grid, writes grid.csv and report.html, prints the best point."""
    if options.seeds < 1:
        raise UserError(f"--seeds is {options.seeds}; expected 1 or more")
    dataset = given(options.data, options.configs)
    study = Study(
        output=options.output,
        runs=options.output / "cells",
        scale=SCALES["standard"],
        datasets=[dataset],
        overrides=tuple(f"--{item}" for item in options.set or ()),
    )
    grid = points(**{"lambda": options.lambdas, "m1": options.m1, "m2": options.m2})
    name, seeds = "grid_search", options.seeds
    table = grid_search(study, name, dataset, grid, model=options.model, seeds=seeds)
    best = best_point(table)
    ranked = table.sort("auc", descending=True, maintain_order=True)
    write_csv(ranked, options.output / "grid.csv")
    answer = f"The best of {table.height} points on validation is {point_text(best)}."
    picture = cells_picture(table)
    section = Section(
        "Grid search",
        "Which lambda, m1 and m2 are the best on validation?",
        answer,
        [
            *([picture] if picture else []),
            TableBlock(ranked_points(table), f"The points. {edge_text(table)}"),
        ],
        command=command,
    )
    Report("Grid search", "", [section]).write(options.output / "report.html")
    print(answer, edge_text(table))


if __name__ == "__main__":
    sys.exit(main())
