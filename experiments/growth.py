"""How the effect grows: with the number of conversions, and with the batch size.

    python -m experiments.all --only growth --output runs/comparison
    python -m experiments.all --full --only growth --output runs/comparison

Four arms with the settings that the comparison chose, on synthetic funnels of other
sizes and with other batch sizes at equal epochs. L2 and learning rate are not searched
again at each size: what is shown is the choice carried over.
"""

from collections.abc import Sequence
from dataclasses import replace

import polars as pl

from experiments.comparison import (
    HEADS,
    TRUTH,
    arm_config,
    arms_of,
    planned_runs,
    truth_measures,
    tune,
)
from experiments.lib.arms import Arm
from experiments.lib.datasets import Dataset, synthetic
from experiments.lib.search import Point
from experiments.lib.study import Experiment, Finding, Study
from experiments.lib.words import average_difference, line_rows, text_of
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import interval_lines

NAME = "growth"
ARMS = ("bce", "pwiser ctcvr", "ranknet", "jrc")
BANK = Arm("pwiser ctcvr, bank", "", ("--loss.bank=256",))
AWARE = Arm("pwiser ctcvr, 8 conversions", "", ("--data.min_conversions=8",))


def find(study: Study) -> Finding:
    dataset = study.core[0]
    arms = [arm for arm in arms_of(study, dataset) if arm.name in ARMS]
    points = {arm.name: tune(study, dataset, arm).chosen for arm in arms}
    by_rows = pl.concat(
        _results(study, synthetic(study.place, rows), arms, points, {"rows": rows})
        for rows in study.scale.growth_rows
    )
    variants = [
        replace(arm, name=more.name, options=(*arm.options, *more.options))
        for arm in arms
        for more in (BANK, AWARE)
        if arm.name == "pwiser ctcvr"
    ]
    points |= {arm.name: points["pwiser ctcvr"] for arm in variants}
    funnel = synthetic(study.place, study.scale.rows)
    by_batch = pl.concat(
        _results(study, funnel, [*arms, *variants], points, {"batch": size})
        for size in study.scale.batch_sizes
    )
    blocks: list[TableBlock | Picture] = []
    for frame, name, caption in (
        (
            by_rows,
            "rows",
            "rows of the funnel, 1.2% conversions to train on",
        ),
        (by_batch, "batch", "rows of a batch"),
    ):
        if frame[name].n_unique() < 2:
            continue
        gaps = _gaps(frame, name)
        blocks.append(
            Picture(
                interval_lines(
                    gaps.with_columns(pl.col("x").log10()),
                    f"log10 of {name}",
                    "expected AUC minus BCE",
                    zero="as BCE",
                ),
                f"Difference of AUC to BCE by {name}, a line an arm.",
                f"Over {caption}; settings chosen at {study.scale.rows:,} rows, 95% "
                "intervals over seeds.",
            )
        )
        texts = gaps.select(
            pl.col("panel").str.to_uppercase().alias("Head"),
            pl.col("line").alias("Arm"),
            pl.Series(name.capitalize(), [f"{x:,.0f}" for x in gaps["x"]]),
            pl.Series("Minus BCE", [_text(row) for row in gaps.iter_rows(named=True)]),
        )
        blocks.append(TableBlock(texts, f"Minus BCE, over {caption}"))
    return Finding(_answer(by_rows), blocks)


def _results(
    study: Study,
    dataset: Dataset,
    arms: Sequence[Arm],
    points: dict[str, Point],
    tags: dict[str, int],
) -> pl.DataFrame:
    """The runs of the arms at one size; every seed of the other experiments."""
    parts = []
    for arm in arms:
        config = arm_config(study, dataset, arm)
        if "batch" in tags:
            data = replace(config.data, batch_size=tags["batch"])
            config = replace(config, data=data)
        planned = [
            replace(run, tags=tags)
            for run in planned_runs(
                config, arm, [points[arm.name]], range(study.scale.seeds)
            )
        ]
        results = study.run(NAME, planned, dataset, "test")
        long = study.measure(NAME, results, dataset, TRUTH, truth_measures)
        wide = long.pivot("metric", index=["run", "task"], values="value")
        parts.append(
            results.join(wide, on=["run", "task"], how="left", maintain_order="left")
        )
    return pl.concat(parts)


def _gaps(frame: pl.DataFrame, name: str) -> pl.DataFrame:
    """The rows of `interval_lines`: each arm minus BCE at each size."""
    rows = []
    losses = [x for x in frame["loss"].unique(maintain_order=True) if x != "bce"]
    for task in HEADS:
        for loss in losses:
            for (size,), part in frame.group_by(name, maintain_order=True):
                gap = average_difference(part, task, loss, "bce", TRUTH[0])
                rows.append((task, loss, size, gap.value, gap.low, gap.high))
    return line_rows(rows)


def _text(row: dict) -> str:
    low, high = row["low"], row["high"]
    ends = "" if low is None else f" [{low:+.4f}, {high:+.4f}]"
    return f"{row['value']:+.4f}{ends}"


def _answer(by_rows: pl.DataFrame) -> str:
    gaps = [
        (rows, average_difference(part, "ctcvr", "pwiser ctcvr", "bce", TRUTH[0]))
        for (rows,), part in by_rows.group_by("rows", maintain_order=True)
    ]
    each = "; ".join(f"{rows:,} rows: {text_of(gap)}" for rows, gap in gaps)
    return f"PWiseR on the CTCVR head minus BCE, in CTCVR AUC: {each}."


GROWTH = Experiment(
    NAME,
    "How it grows",
    "How does the effect change with the number of conversions and the batch size?",
    find,
)
