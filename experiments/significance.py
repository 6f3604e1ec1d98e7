"""Is the difference significant? Over seeds, over rows, and without any effect.

    python -m experiments.all --only significance --output runs/experiments

Over seeds: t interval, signed-rank test, Holm's correction, and the seeds needed to
detect .001. Over rows: DeLong's interval by group, and a bootstrap by group. Without
any effect: PWiseR against itself with other seeds, PWiseR with lambda 0, shuffled
conversions; and the coverage of the intervals in simulations.
"""

from dataclasses import replace

import numpy as np
import polars as pl

from experiments.lib.coverage import coverage
from experiments.lib.datasets import Dataset
from experiments.lib.relabel import shuffled_conversions
from experiments.lib.runs import fixed
from experiments.lib.study import Experiment, Finding, Measures, Outcome, Study
from experiments.lib.words import after_holm, changes, text_of
from pwiser_jax import metrics
from pwiser_jax.config import Config
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import differences
from pwiser_jax.reports.tables import significance, summary, tests_table
from pwiser_jax.tasks import measured

NAME = "significance"
MODEL = "mmoe"
AGAIN, NOTHING = "pwiser_other_seeds", "pwiser_lambda_0"
PAIRINGS = 2000
DRAWS = 500
ROW_SEEDS = 5  # runs whose rows are compared


def find(study: Study) -> Finding:
    blocks: list[TableBlock | Picture] = []
    every, row_tables, rates = [], [], []
    for dataset in study.core:
        results = _runs(study, dataset)
        every.append(results)
        rates.append(_null_rates(results, dataset.title))
        if study.tables is None:
            row_tables.append(_over_rows(study, dataset, results))
    results = pl.concat(every)
    # The correction leaves out runs without a true effect.
    tests = significance(results.filter(pl.col("loss") != NOTHING))
    nothing = results.filter(pl.col("loss") != "pwiser")
    again = significance(_null_results(results), baseline="pwiser")
    nulls = pl.concat([again, significance(nothing)])
    real = tests.filter(pl.col("loss") == "pwiser")
    blocks.append(
        TableBlock(
            tests_table(tests),
            f"MMoE, PWiseR against BCE over seeds: {after_holm(real)}",
        )
    )
    blocks.append(
        Picture(
            differences(_with_nulls(results), rows=("loss", "dataset")),
            "Paired differences: PWiseR to BCE, and two without a true effect.",
            "95% intervals; only the first of the three can have a true effect.",
        )
    )
    blocks.append(
        TableBlock(
            tests_table(nulls),
            "No true effect: PWiseR against itself with other seeds, and lambda 0 "
            "against BCE",
        )
    )
    blocks.append(
        TableBlock(
            pl.concat(rates),
            f"Share of p < .05 in {PAIRINGS:,} random pairings of PWiseR's own runs; "
            "5% is nominal",
        )
    )
    if row_tables:
        rows = pl.concat(row_tables)
        blocks.append(
            TableBlock(rows, "Over rows: DeLong by group and a bootstrap by group")
        )
    shuffled = pl.concat([_shuffled(study, dataset) for dataset in study.core])
    caption = (
        "Shuffled conversions: CVR AUC, truly .5, which "
        f"{shuffled['holds .5'].sum()} of {shuffled.height} intervals hold"
    )
    blocks.append(TableBlock(shuffled, caption))
    covered = pl.DataFrame(
        list(coverage(study.scale.worlds).items()),
        schema=["Interval", "Coverage [%]"],
        orient="row",
    )
    caption = f"95% intervals in {study.scale.worlds:,} simulated datasets"
    blocks.append(TableBlock(covered, caption))
    return Finding(_answer(results, real), blocks)


def _runs(study: Study, dataset: Dataset) -> pl.DataFrame:
    pairs = study.scale.pairs
    planned = study.grid(dataset, [MODEL], ["bce", "pwiser"], pairs)
    again = study.grid(dataset, [MODEL], ["pwiser"], pairs, first_seed=pairs)
    nothing = [
        replace(run, loss=NOTHING, configure=fixed(_without_effect(run.config)))
        for run in study.grid(dataset, [MODEL], ["pwiser"], min(pairs, ROW_SEEDS))
    ]
    return study.run(NAME, [*planned, *again, *nothing], dataset)


def _without_effect(config: Config) -> Config:
    return replace(
        config, loss=replace(config.loss, lambdas={"ctr": 0.0, "ctcvr": 0.0})
    )


def _null_results(results: pl.DataFrame) -> pl.DataFrame:
    """PWiseR's second half of seeds paired with its first: no true effect."""
    pwiser = results.filter(pl.col("loss") == "pwiser")
    half = pwiser["seed"].n_unique() // 2
    again = pwiser.filter(pl.col("seed") >= half).with_columns(
        pl.lit(AGAIN).alias("loss"), pl.col("seed") - half
    )
    return pl.concat([pwiser.filter(pl.col("seed") < half), again])


def _with_nulls(results: pl.DataFrame) -> pl.DataFrame:
    """The table of three differences: to BCE, to other seeds, of lambda 0 to BCE."""
    to_bce = summary(results)
    again = summary(_null_results(results), baseline="pwiser")
    return pl.concat([to_bce, again.filter(pl.col("loss") == AGAIN)])


def _null_rates(results: pl.DataFrame, dataset: str) -> pl.DataFrame:
    """How often tests of PWiseR's runs against each other reject."""
    rng = np.random.default_rng(0)
    rows = []
    pwiser = results.filter(pl.col("loss") == "pwiser")
    for (task,), part in pwiser.group_by("task", maintain_order=True):
        values = part.filter(pl.col("auc").is_finite())["auc"].to_numpy()
        half = len(values) // 2
        p_values = []
        for _ in range(PAIRINGS):
            drawn = rng.permutation(values)
            a, b = drawn[:half], drawn[half : 2 * half]
            p_values.append((metrics.paired_test(a, b), metrics.wilcoxon_test(a, b)))
        rate = (np.array(p_values) < 0.05).mean(axis=0)
        rows.append((dataset, task, half, float(rate[0]), float(rate[1])))
    names = ["Dataset", "Task", "Pairs", "t test [%]", "Signed-rank test [%]"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _over_rows(study: Study, dataset: Dataset, results: pl.DataFrame) -> pl.DataFrame:
    """PWiseR minus BCE of one seed each, over the rows of the split."""
    folder, split = dataset.ready(), study.split
    runs = results.select("loss", "seed", "run").unique(maintain_order=True)
    table = []
    for seed in range(min(ROW_SEEDS, study.scale.pairs)):
        folders = dict(runs.filter(pl.col("seed") == seed).select("loss", "run").rows())
        outcomes = {
            loss: Outcome(study.runs / folders[loss], folder)
            for loss in ("bce", "pwiser")
        }
        rows, level = outcomes["bce"].rows(split), outcomes["bce"].level(split)
        a, b = (outcomes[loss].predictions(split) for loss in ("pwiser", "bce"))
        for task in a:
            labels, kept = _labels(task, level, outcomes["bce"])
            given = (
                labels,
                a[task].scores[kept],
                b[task].scores[kept],
                rows.group[kept],
            )
            gap = metrics.auc_difference(*given)
            drawn = metrics.bootstrap_auc_difference(*given, draws=DRAWS, seed=seed)
            table.append(
                {
                    "Dataset": dataset.title,
                    "Seed": seed,
                    "Task": task.upper(),
                    "Difference, DeLong": text_of(gap),
                    "Standard error": gap.standard_error,
                    "Difference, bootstrap": text_of(drawn),
                    "Standard error, bootstrap": drawn.standard_error,
                }
            )
    return pl.DataFrame(table)


def _shuffled(study: Study, dataset: Dataset) -> pl.DataFrame:
    nothing = dataset.relabelled(study.place, "shuffled", shuffled_conversions)
    planned = study.grid(
        nothing,
        [MODEL],
        ["bce", "pwiser"],
        min(3, study.scale.pairs),
        tags={"shuffled": 1},
    )
    results = study.run(NAME, planned, nothing)
    names = ("auc_low", "auc_high")

    def interval(outcome: Outcome) -> Measures:
        level, split = outcome.level(study.split), study.split
        scores = outcome.predictions(split)["cvr"].scores
        labels, kept = _labels("cvr", level, outcome)
        auc = metrics.auc_interval(
            labels, scores[kept], outcome.rows(split).group[kept]
        )
        return {("cvr", "auc_low"): auc.low, ("cvr", "auc_high"): auc.high}

    ends = study.measure(NAME, results, nothing, names, interval)
    wide = ends.pivot("metric", index="run", values="value")
    cvr = results.filter(pl.col("task") == "cvr").join(
        wide, on="run", maintain_order="left"
    )
    holds = (pl.col("auc_low") <= 0.5) & (pl.col("auc_high") >= 0.5)
    return cvr.select(
        "dataset",
        "loss",
        "seed",
        "auc",
        pl.col("auc_low").alias("low"),
        pl.col("auc_high").alias("high"),
        holds.alias("holds .5"),
    )


def _labels(
    task: str, level: np.ndarray, outcome: Outcome
) -> tuple[np.ndarray, np.ndarray]:
    """A task's labels on the rows where it is defined, and which rows these are."""
    (measured_task,) = (
        t for t in measured(outcome.prepared.schema.labels) if t.name == task
    )
    kept = np.flatnonzero(level >= measured_task.given)
    return level[kept] >= measured_task.rung, kept


def _answer(results: pl.DataFrame, real: pl.DataFrame) -> str:
    tasks = real["task"].unique(maintain_order=True).to_list()
    seeds = real.filter(pl.col("task") == "ctcvr")["seeds"]
    most = f" to {seeds.max()}" if seeds.max() != seeds.min() else ""
    return (
        f"Over {real['pairs'].max()} paired seeds of MMoE, PWiseR "
        f"{changes(results, tasks)}; detecting a change of .001 in CTCVR AUC needs "
        f"{seeds.min()}{most} pairs of seeds."
    )


EXPERIMENT = Experiment(
    NAME,
    "More than chance?",
    "Over paired seeds and over rows: is the difference significant, how many seeds "
    "does it take to detect .001, and do the same tests stay silent without an effect?",
    find,
)
