"""Is it more than chance? Over seeds, over rows, and where there is nothing to find.

    python -m experiments.all --only significance --output runs/experiments

Over seeds: t interval, signed-rank test, Holm's correction, and how many seeds would
show .001. Over rows: DeLong's interval by group, and a bootstrap by group beside it.
Nothing to find: PWiseR against itself with other seeds, PWiseR with lambda 0, shuffled
conversions; and the intervals' coverage in simulations.
"""

from dataclasses import replace

import numpy as np
import polars as pl

from experiments.lib.coverage import coverage
from experiments.lib.datasets import Dataset
from experiments.lib.relabel import shuffled_conversions
from experiments.lib.study import Experiment, Finding, Measures, Outcome, Study
from experiments.lib.words import average_difference, listed, text_of, verdict
from pwiser_jax import metrics
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import differences
from pwiser_jax.reports.tables import significance, summary
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
        rates.append(_null_rates(results, dataset.name))
        row_tables.append(_over_rows(study, dataset, results))
    results = pl.concat(every)
    # Cells without an effect in truth are not among those that are corrected for.
    tests = significance(results.filter(pl.col("loss") != NOTHING))
    nothing = results.filter(pl.col("loss") != "pwiser")
    again = significance(_null_results(results), baseline="pwiser")
    nulls = pl.concat([again, significance(nothing)])
    blocks.append(
        TableBlock(tests.drop("model"), "MMoE, PWiseR against BCE, over seeds")
    )
    blocks.append(
        Picture(
            differences(_with_nulls(results)),
            "Paired differences: PWiseR to BCE, and two that have no effect in truth.",
            "95% intervals; only the first of the three could differ from 0 in truth.",
        )
    )
    blocks.append(
        TableBlock(
            nulls.drop("model"),
            "Nothing to find: PWiseR against itself, and lambda 0 against BCE",
        )
    )
    rate = pl.concat(rates)
    blocks.append(
        TableBlock(
            rate,
            f"Share of p < .05 in {PAIRINGS:,} random pairings of PWiseR's own runs; "
            ".05 is promised",
        )
    )
    rows = pl.concat(row_tables)
    blocks.append(
        TableBlock(rows, "Over rows: DeLong by group and a bootstrap by group")
    )
    shuffled = pl.concat([_shuffled(study, dataset) for dataset in study.core])
    blocks.append(TableBlock(shuffled, "Shuffled conversions: CVR AUC, .5 in truth"))
    held = coverage(study.scale.worlds)
    covered = pl.DataFrame(
        [(name, share) for name, share in held.items()],
        schema=["interval", "holds the truth"],
        orient="row",
    )
    caption = f"95% intervals in {study.scale.worlds:,} simulated worlds"
    blocks.append(TableBlock(covered, caption))
    return Finding(_answer(results, tests, nulls, shuffled, rate), blocks)


def _runs(study: Study, dataset: Dataset) -> pl.DataFrame:
    pairs = study.scale.pairs
    cells = study.cells(dataset, [MODEL], ["bce", "pwiser"], pairs)
    again = study.cells(dataset, [MODEL], ["pwiser"], pairs, first_seed=pairs)
    nothing = [
        replace(
            cell,
            loss=NOTHING,
            config=replace(
                cell.config,
                loss=replace(cell.config.loss, lambdas={"ctr": 0.0, "ctcvr": 0.0}),
            ),
        )
        for cell in study.cells(dataset, [MODEL], ["bce"], min(pairs, ROW_SEEDS))
    ]
    return study.run(NAME, [*cells, *again, *nothing], dataset)


def _null_results(results: pl.DataFrame) -> pl.DataFrame:
    """PWiseR's second half of seeds, called as the first: pairs without an effect."""
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
    """How often a test of PWiseR's runs against each other finds something."""
    rng = np.random.default_rng(0)
    rows = []
    pwiser = results.filter(pl.col("loss") == "pwiser")
    for (task,), own in pwiser.group_by("task", maintain_order=True):
        values = own["auc"].to_numpy()
        half = len(values) // 2
        found = []
        for _ in range(PAIRINGS):
            drawn = rng.permutation(values)
            a, b = drawn[:half], drawn[half : 2 * half]
            found.append((metrics.paired_test(a, b), metrics.wilcoxon_test(a, b)))
        rate = (np.array(found) < 0.05).mean(axis=0)
        rows.append((dataset, task, half, float(rate[0]), float(rate[1])))
    names = ["dataset", "task", "pairs", "t test", "signed-rank test"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _over_rows(study: Study, dataset: Dataset, results: pl.DataFrame) -> pl.DataFrame:
    """PWiseR less BCE of one seed each, over the rows of the split."""
    folder, split = dataset.ready(), study.split
    runs = results.select("loss", "seed", "run").unique(maintain_order=True)
    found = []
    for seed in range(min(ROW_SEEDS, study.scale.pairs)):
        own = dict(runs.filter(pl.col("seed") == seed).select("loss", "run").rows())
        outcomes = {
            loss: Outcome(study.runs / own[loss], folder) for loss in ("bce", "pwiser")
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
            found.append(
                {
                    "dataset": dataset.name,
                    "seed": seed,
                    "task": task,
                    "difference": gap.value,
                    "low": gap.low,
                    "high": gap.high,
                    "standard error": gap.standard_error,
                    "bootstrap low": drawn.low,
                    "bootstrap high": drawn.high,
                    "bootstrap error": drawn.standard_error,
                }
            )
    return pl.DataFrame(found)


def _shuffled(study: Study, dataset: Dataset) -> pl.DataFrame:
    nothing = dataset.relabelled(study.place, "shuffled", shuffled_conversions)
    cells = study.cells(
        nothing,
        [MODEL],
        ["bce", "pwiser"],
        min(3, study.scale.pairs),
        tags={"shuffled": 1},
    )
    results = study.run(NAME, cells, nothing)
    names = ("auc_low", "auc_high")

    def interval(outcome: Outcome) -> Measures:
        level, split = outcome.level(study.split), study.split
        scores = outcome.predictions(split)["cvr"].scores
        labels, kept = _labels("cvr", level, outcome)
        found = metrics.auc_interval(
            labels, scores[kept], outcome.rows(split).group[kept]
        )
        return {("cvr", "auc_low"): found.low, ("cvr", "auc_high"): found.high}

    ends = study.measure(NAME, results, nothing, names, interval)
    wide = ends.pivot("metric", index="run", values="value")
    own = results.filter(pl.col("task") == "cvr").join(
        wide, on="run", maintain_order="left"
    )
    holds = (pl.col("auc_low") <= 0.5) & (pl.col("auc_high") >= 0.5)
    return own.select(
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
    (own,) = (t for t in measured(outcome.prepared.schema.labels) if t.name == task)
    kept = np.flatnonzero(level >= own.given)
    return level[kept] >= own.rung, kept


def _answer(
    results: pl.DataFrame,
    tests: pl.DataFrame,
    nulls: pl.DataFrame,
    shuffled: pl.DataFrame,
    rate: pl.DataFrame,
) -> str:
    real = tests.filter(pl.col("loss") == "pwiser")
    means = [
        f"{task.upper()} {text_of(average_difference(results, task))}"
        for task in real["task"].unique(maintain_order=True)
    ]
    seeds = real.filter(pl.col("task") == "ctcvr")["seeds"]
    held = shuffled["holds .5"].sum()
    return (
        f"AUC of PWiseR less that of BCE over {real['pairs'].max()} paired seeds, "
        f"MMoE, mean over datasets: {listed(means)}. {verdict(real)} "
        f"To see .001 in CTCVR takes {seeds.min()} to {seeds.max()} seeds. "
        "Where there is nothing: "
        f"{(nulls['p_holm'] < 0.05).sum()} of {nulls.height} tests find something, "
        f"the t test at a rate of {rate['t test'].mean():.3f} (.05 promised), and "
        f"{held} of {shuffled.height} intervals of CVR on shuffled conversions hold .5."
    )


SIGNIFICANCE = Experiment(
    NAME,
    "More than chance?",
    "Over paired seeds and over rows: is the difference more than chance, how many "
    "seeds would show .001, and do the same tests find nothing where nothing is?",
    find,
)
