"""The fair comparison: PWiseR and its rivals, trained to the end and tuned equally.

    python -m experiments.all --full --only comparison --output runs/comparison
    python -m experiments.all --full --only comparison --arms jrc --output runs/two

`plan.md`, written before the first final run, has the questions and the order of the
arms. Each arm gets the same number of trials over learning rate, L2 and its own
settings: Sobol points, then as many in a box of half the width around the best, which
extends beyond the edge where the best is near it. The best are run with further tuning
seeds (halving over seeds, not over epochs: a cap on epochs would favour what learns
fast), and the point with the best mean AUC of CTR and CTCVR on validation is run with
the final seeds and measured on test.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING

import numpy as np
import polars as pl

from experiments.lib import curves
from experiments.lib.arms import (
    ARMS,
    Arm,
    arm_title,
    arm_titles,
    check_arm,
    chosen_arms,
)
from experiments.lib.datasets import Dataset
from experiments.lib.paired import (
    PairedTest,
    by_seed,
    decision,
    decisions_table,
    difference_and_p,
    gap_text,
    null_rates,
    paired_gaps,
    paired_tests,
)
from experiments.lib.planner import half_width, pilot_deviation, seeds_for_width
from experiments.lib.runs import Configure, Run, Tag
from experiments.lib.search import (
    Point,
    at,
    point_text,
    settings_on_edge,
    sobol_points,
    space_around,
)
from experiments.lib.study import (
    TUNING_SEED,
    Experiment,
    Finding,
    Measures,
    Outcome,
    Study,
)
from experiments.lib.words import (
    average_difference,
    counted,
    joined,
    short_text,
    text_of,
)
from pwiser_jax import metrics
from pwiser_jax.errors import UserError
from pwiser_jax.metrics import Interval
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import differences, interval_lines
from pwiser_jax.tasks import heads, measured

if TYPE_CHECKING:
    from pwiser_jax.config import Config

NAME = "comparison"
MODEL = "mmoe"
HEADS = ("ctr", "ctcvr")
BATCHES = 2  # of trials that every arm gets
MOST_BATCHES = 3  # with those of an arm whose choice is at an edge
PILOT = 4  # seeds that plan the number of seeds
ROW_SEEDS = 4  # runs whose rows are compared
# Half widths that the intervals should have, by whether true probabilities are known.
WIDTHS = {
    True: {"ctr": 0.0005, "ctcvr": 0.0015},
    False: {"ctr": 0.0015, "ctcvr": 0.004},
}
TRUTH = (
    "expected_auc",
    "expected_log_loss",
    "predicted_over_true",
    "calibration_error",
)
COST = ("step_ms", "step_ratio")
ROWS = ("rows_difference", "rows_error")
POSITIVES = "train_positives"


@dataclass(frozen=True)
class Tuned:
    """An arm's search: the points tried, the choice, and its settings at an edge."""

    arm: Arm
    tried: Sequence[Point]
    chosen: Point
    edges: list[str]
    valid_auc: float
    at_cap: list[float]


def arms_of(study: Study, dataset: Dataset) -> list[Arm]:
    """The arms on a dataset; of recorded tables, all that were finished."""
    names = list(study.arms or ARMS)
    if not study.arms and study.tables is None:
        first = dataset is study.core[0]
        names = names[: study.scale.arms if first else study.scale.arms_elsewhere]
    arms = chosen_arms(names)
    if study.tables is not None:
        frame = study.table(NAME).frame.filter(
            (pl.col("dataset") == dataset.name)
            & (pl.col("metric") == "at_cap")
            & (pl.col("split") == "test")
        )
        finished = set(frame["loss"])
        arms = [a for a in arms if {a.name, a.baseline} <= finished]
    return arms


def arm_config(
    study: Study, dataset: Dataset, arm: Arm, more: Sequence[str] = ()
) -> "Config":
    """The configuration of an arm before its settings are chosen."""
    from pwiser_jax.config import load_config  # loads jax

    options = (*study.scale.to_the_end, *arm.options, *more)
    path = dataset.configs / f"{MODEL}.yaml"
    return load_config(path, study.options(dataset, options))


def planned_runs(
    configure: Configure, arm: Arm, points: Sequence[Point], seeds: Sequence[int]
) -> list[Run]:
    """Runs of an arm, whose configuration is that of `configure` at a point."""
    once = cache(configure)

    def at_point(point: Point) -> "Config":
        return at(once(), point)

    return [
        Run(MODEL, arm.name, 0, partial(at_point, point), dict(point)).seeded(seed)
        for point in points
        for seed in seeds
    ]


def tune(study: Study, dataset: Dataset, arm: Arm) -> Tuned:
    """Searches the settings of an arm on validation."""
    scale, space = study.scale, arm.whole_space
    configure = partial(arm_config, study, dataset, arm)
    tried: list[Point] = []
    aucs: dict[int, list[float]] = {}
    at_cap: list[float] = []

    def run(indices: Sequence[int], seeds: Sequence[int]) -> None:
        points = [tried[i] for i in indices]
        planned = planned_runs(configure, arm, points, seeds)
        results = study.run(NAME, planned, dataset, "valid")
        heads = results.filter(pl.col("task").is_in(HEADS))
        by_run = dict(heads.group_by("run").agg(pl.col("auc").mean()).iter_rows())
        capped = study.measure(NAME, results, dataset, ("at_cap",), _at_cap)
        at_cap.extend(capped["value"])
        folders = results["run"].unique(maintain_order=True).to_list()
        for k, index in enumerate(np.repeat(indices, len(seeds))):
            aucs.setdefault(int(index), []).append(by_run[folders[k]])

    def best() -> int:
        return max(aucs, key=lambda i: float(np.mean(aucs[i])))

    box = space
    for batch in range(MOST_BATCHES):
        if batch >= BATCHES and not settings_on_edge(tried, tried[best()]):
            break
        if batch:
            box = space_around(space, tried[best()])
        fresh = sobol_points(box, scale.trials, seed=batch)
        tried += fresh
        run(range(len(tried) - len(fresh), len(tried)), [TUNING_SEED])
    ranked = sorted(aucs, key=lambda i: -aucs[i][0])[: scale.finalists]
    run(ranked, [TUNING_SEED + 1, TUNING_SEED + 2])
    last = max(ranked, key=lambda i: float(np.mean(aucs[i])))
    chosen = tried[last]
    edges = settings_on_edge(tried, chosen)
    return Tuned(arm, tried, chosen, edges, float(np.mean(aucs[last])), at_cap)


def final_runs(
    study: Study, dataset: Dataset, tuned: Tuned, baseline: pl.DataFrame | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Runs the choice with the final seeds and measures test.

    Returns:
        As `grid.results_of`, with a column for each further measure; and the rows of
        the first seed as `Study.run` returns them.
    """
    configure = partial(arm_config, study, dataset, tuned.arm)
    seeds = range(study.scale.finals)
    planned = planned_runs(configure, tuned.arm, [tuned.chosen], seeds)
    results = study.run(NAME, planned, dataset, "test")
    further: list[tuple[tuple[str, ...], Callable[[Outcome], Measures]]] = [
        (("at_cap",), _at_cap),
        (curves.CURVE, curves.curve),
        (curves.END, curves.end),
    ]
    if dataset.truth:
        further.append((TRUTH, truth_measures))
    parts = [
        study.measure(NAME, results, dataset, names, measure)
        for names, measure in further
        if study.knows(NAME, names)
    ]
    if baseline is not None:
        few = results.filter(pl.col("seed") < ROW_SEEDS)
        folders = dict(baseline.select("seed", "run").unique().iter_rows())
        by_run = dict(few.select("run", "seed").unique().iter_rows())

        def over_rows(outcome: Outcome) -> Measures:
            run = outcome.folder.relative_to(study.runs).as_posix()
            other = Outcome(study.runs / folders[by_run[run]], outcome.data)
            return _over_rows(outcome, other)

        parts.append(study.measure(NAME, few, dataset, ROWS, over_rows))
    long = pl.concat(part.select("run", "task", "metric", "value") for part in parts)
    wide = long.pivot("metric", index=["run", "task"], values="value")
    kept = results.select(
        *("dataset", "model", "loss", "seed", "task", "auc", "log_loss", "best_epoch"),
        "run",
    )
    joined_rows = kept.join(wide, on=["run", "task"], how="left", maintain_order="left")
    known = (*TRUTH, *ROWS, *curves.CURVE, *curves.END)
    missing = [name for name in known if name not in joined_rows.columns]
    nulls = [pl.lit(None, pl.Float64).alias(name) for name in missing]
    return joined_rows.with_columns(nulls), results.filter(pl.col("seed") == 0)


def truth_measures(outcome: Outcome) -> Measures:
    """Measures against the true probabilities; CVR weighted by P(click)."""
    extra = outcome.rows("test").extra
    ctr, cvr = extra["true_ctr"], extra["true_cvr"]
    known = {"ctr": (ctr, None), "ctcvr": (ctr * cvr, None), "cvr": (cvr, ctr)}
    measures: dict[tuple[str, str], float] = {}
    for task, prediction in outcome.predictions("test").items():
        truth, weights = known[task]
        scores, p = prediction.scores, prediction.probabilities
        values = (
            metrics.expected_auc(truth, scores, weights),
            metrics.expected_log_loss(truth, p, weights),
            metrics.predicted_over_true(truth, p, weights),
            metrics.true_calibration_error(truth, p, weights),
        )
        measures |= {(task, n): v for n, v in zip(TRUTH, values, strict=True)}
    return measures


CARRIED = ("bce", "pwiser ctcvr", "ranknet", "jrc")  # to other data, most wanted first


def carried_arms(study: Study) -> list[Arm]:
    """The arms of the experiments that carry the comparison's settings over."""
    return [ARMS[name] for name in CARRIED[: study.scale.carried]]


def chosen_settings(
    study: Study, dataset: Dataset, arms: Sequence[Arm]
) -> dict[str, Point]:
    """The choice of each arm's search on a dataset, to be carried over to others."""
    return {arm.name: tune(study, dataset, arm).chosen for arm in arms}


def runs_of_choice(
    study: Study,
    experiment: str,
    dataset: Dataset,
    arms: Sequence[Arm],
    points: Mapping[str, Point],
    seeds: int,
    tags: Mapping[str, Tag],
    more: Sequence[str] = (),
    names: tuple[str, ...] = TRUTH,
    measures: Callable[[Outcome], Measures] = truth_measures,
) -> pl.DataFrame:
    """Runs arms with given settings on a dataset and measures test.

    Args:
        experiment: whose result table.
        points: settings by arm.
        tags: columns that tell these runs from others of the experiment.
        more: options on top of an arm's.
        names, measures: further measures, as `Study.measure` takes them.

    Returns:
        A row a run and task, with a column for each measure.
    """
    parts = []
    for arm in arms:
        configure = partial(arm_config, study, dataset, arm, more)
        runs = planned_runs(configure, arm, [points[arm.name]], range(seeds))
        planned = [replace(run, tags=tags) for run in runs]
        results = study.run(experiment, planned, dataset, "test")
        columns = ["run", "task", "metric", "value"]
        long = pl.concat(
            [
                study.measure(experiment, results, dataset, names, measures),
                study.measure(experiment, results, dataset, (POSITIVES,), _positives),
            ],
            how="diagonal",
        ).select(columns)
        wide = long.pivot("metric", index=["run", "task"], values="value")
        parts.append(
            results.join(wide, on=["run", "task"], how="left", maintain_order="left")
        )
    return pl.concat(parts, how="diagonal")


def _positives(outcome: Outcome) -> Measures:
    """Rows with each label in train."""
    counts = outcome.prepared.manifest.splits["train"].labels.values()
    names = (task.name for task in heads(outcome.prepared.schema.labels, "ctcvr"))
    return {(n, POSITIVES): float(k) for n, k in zip(names, counts, strict=True)}


def step_costs(
    study: Study,
    dataset: Dataset,
    searches: Sequence[Tuned],
    firsts: Mapping[str, pl.DataFrame],
) -> dict[str, tuple[float, float]]:
    """Milliseconds of a training step by arm, and their ratio to BCE's.

    Arms whose cost the table lacks are measured with all others, in turns; the ratio is
    that of one measurement, on the machine of that time.
    """
    if not study.knows(NAME, COST):
        return {}
    measured_now: dict[str, tuple[float, float]] = {}

    def measure_all() -> None:
        from experiments.lib.step_time import cost, step_seconds  # loads jax

        configs = [
            at(arm_config(study, dataset, search.arm), search.chosen)
            for search in searches
        ]
        configs = [
            replace(c, data=replace(c.data, path=str(dataset.ready()))) for c in configs
        ]
        times = step_seconds(configs)
        for search, own in zip(searches, times, strict=True):
            measured_now[search.arm.name] = cost(own, times[0])

    costs: dict[str, tuple[float, float]] = {}
    for search in searches:
        name = search.arm.name

        def measure(_: Outcome, name: str = name) -> Measures:
            if not measured_now:
                measure_all()
            values = zip(COST, measured_now[name], strict=True)
            return {("ctr", key): value for key, value in values}

        rows = study.measure(NAME, firsts[name], dataset, COST, measure)
        known = dict(rows.select("metric", "value").iter_rows())
        costs[name] = (known[COST[0]], known[COST[1]])
    return costs


def _at_cap(outcome: Outcome) -> Measures:
    """1 where a run ended at the cap on epochs, for each trained head."""
    from pwiser_jax.training.run.folder import read_result  # loads jax

    result = read_result(outcome.folder)
    return {("ctr", "at_cap"): float(result.stopped != "early")}


def _over_rows(outcome: Outcome, other: Outcome) -> Measures:
    """The difference of AUC on labels and its standard error over groups of rows."""
    rows, level = outcome.rows("test"), outcome.level("test")
    a, b = outcome.predictions("test"), other.predictions("test")
    measures: dict[tuple[str, str], float] = {}
    for task in measured(outcome.prepared.schema.labels):
        kept = np.flatnonzero(level >= task.given)
        gap = metrics.auc_difference(
            level[kept] >= task.rung,
            a[task.name].scores[kept],
            b[task.name].scores[kept],
            rows.group[kept],
        )
        measures[task.name, ROWS[0]] = gap.value
        measures[task.name, ROWS[1]] = gap.standard_error
    return measures


def check(study: Study) -> None:
    """Refuses a number of seeds without a spread."""
    if study.scale.finals < 2:
        raise UserError(
            "the comparison has 1 seed; its spread needs at least 2 (--seeds)"
        )


def find(study: Study) -> Finding:
    if study.tables is None:
        for dataset in study.core:
            folder = dataset.ready()
            for arm in arms_of(study, dataset):
                check_arm(arm, arm_config(study, dataset, arm), folder)
    blocks: list[TableBlock | Picture] = []
    tuned: dict[str, list[Tuned]] = {}
    finals: dict[str, pl.DataFrame] = {}
    costs: dict[str, dict[str, tuple[float, float]]] = {}
    for dataset in study.core:
        parts: dict[str, pl.DataFrame] = {}
        firsts: dict[str, pl.DataFrame] = {}
        for arm in arms_of(study, dataset):
            search = tune(study, dataset, arm)
            tuned.setdefault(dataset.title, []).append(search)
            baseline = parts.get(arm.baseline)
            parts[arm.name], firsts[arm.name] = final_runs(
                study, dataset, search, baseline
            )
        if parts:
            costs[dataset.title] = step_costs(
                study, dataset, tuned[dataset.title], firsts
            )
            finals[dataset.title] = pl.concat(parts.values(), how="diagonal")
    tests = question_tests(finals, tuned)
    to_do: list[pl.DataFrame] = []
    for dataset in study.core:
        if dataset.title not in finals:
            continue
        part, searches = finals[dataset.title], tuned[dataset.title]
        metric = _metric(dataset)
        own = tests.filter(pl.col("dataset") == dataset.title)
        to_do.append(decisions(part, metric, dataset.title))
        blocks += [
            TableBlock(
                rivals_table(part, searches, own, metric, costs[dataset.title]),
                f"{dataset.title}: each arm, tuned by the same rule; "
                f"{_measure(dataset)} on test, mean of "
                f"{counted(part['seed'].n_unique(), 'seed')}; milliseconds of a step, "
                "measured in turns. Differences to BCE on the same batches (of forms "
                f"within groups: to {arm_title('bce, groups')}), paired by seed, with "
                "half of the 95% interval of that one difference; p after Holm over "
                f"all {tests.height} questions",
            ),
            *_to_best_rival(part, searches, metric, dataset.title),
            TableBlock(
                calibration_table(part),
                f"{dataset.title}: probabilities, mean over seeds",
            ),
        ]
        if own.height and own["low"].is_not_null().any():
            blocks.append(
                Picture(
                    differences(
                        own,
                        metric=_measure(dataset),
                        rows=("loss",),
                        titles=arm_titles(own["loss"]),
                    ),
                    f"Paired differences to cross-entropy by arm, {dataset.title}.",
                    f"{dataset.title}: differences to tuned cross-entropy on the same "
                    "batches, 95% intervals over seeds. Right of 0 the arm is better.",
                )
            )
        blocks += _curve_blocks(dataset.title, part)
        blocks.append(
            TableBlock(planning(part, dataset, metric), f"{dataset.title}: seeds")
        )
        blocks.append(
            TableBlock(
                rows_table(part), f"{dataset.title}: over seeds and over test rows"
            )
        )
        blocks.append(
            TableBlock(
                pl.concat(
                    null_rates(
                        part.filter(pl.col("loss") == loss), metric, arm_title(loss)
                    )
                    for loss in part["loss"].unique(maintain_order=True)[:2]
                ),
                f"{dataset.title}: no true effect. One arm's runs paired at random "
                "with its own of other seeds; share of p < .05, 5% is nominal",
            )
        )
        blocks.append(
            TableBlock(
                choices_table(searches), f"{dataset.title}: chosen on validation"
            )
        )
        columns = dict.fromkeys(("loss", "seed", "task", metric, "auc", "best_epoch"))
        runs = part.select(*columns, "run")
        blocks.append(
            TableBlock(runs, f"{dataset.title}: every final run", folded=True)
        )
    ours = pl.col("loss").str.starts_with("pwiser")
    effects = tests.filter(ours & ~pl.col("loss").str.contains(" minus "))
    names = ["dataset", "task", "loss", "difference", "low", "high"]
    return Finding(
        _answer(tests, tuned, finals),
        blocks,
        effects=effects.select(names),
        details=" ".join(_early(name, part) for name, part in finals.items()),
        decisions=pl.concat(to_do) if to_do else None,
    )


def _to_best_rival(
    part: pl.DataFrame, searches: Sequence[Tuned], metric: str, dataset: str
) -> list[TableBlock]:
    _, rival = best_of(searches)
    if not rival:
        return []
    best = arm_title(rival)
    caption = f"{dataset}: differences to {best}, the best rival on validation"
    return [TableBlock(best_rival_table(part, rival, metric), caption)]


def _curve_blocks(dataset: str, part: pl.DataFrame) -> list[TableBlock | Picture]:
    """Validation AUC while training; nothing where tables of older runs lack it."""
    if not _has_curves(part):
        return []
    others = drawn(part)
    few = ["bce", *(name for name in others if "pwiser" in name)]
    return [
        Picture(
            interval_lines(
                curves.curve_lines(part, HEADS, few),
                "training step",
                "validation AUC",
                titles=arm_titles(few),
            ),
            "Validation AUC against training steps, BCE and forms of PWiseR.",
            f"{dataset}: mean over seeds, 95% intervals, after each of the "
            f"first {curves.EPOCHS} epochs; a run that stopped earlier keeps its "
            "last AUC.",
        ),
        TableBlock(
            curves.areas_table(part, HEADS, few),
            f"{dataset}: area under these curves, and who is ahead when. Each "
            "arm has the learning rate and L2 that were chosen for it",
        ),
        Picture(
            interval_lines(
                curves.gap_lines(part, HEADS, others),
                "epoch",
                "validation AUC minus BCE",
                zero="as BCE",
                titles=arm_titles(others),
            ),
            "Validation AUC minus that of BCE after each epoch, by arm.",
            f"{dataset}: the difference in validation AUC by epoch; a gain of "
            "the first epochs alone falls back to 0.",
        ),
        TableBlock(
            curves.ends_table(part, HEADS),
            f"{dataset}: the ends of the final runs. Slope: validation AUC "
            "per epoch over the last ones, as many as stopping waits for; flat "
            "where it does not rise significantly",
        ),
    ]


def drawn(part: pl.DataFrame) -> list[str]:
    """The arms whose curves are shown: those of `SHOWN` that ran, or all that did."""
    losses = part["loss"].unique(maintain_order=True).to_list()
    others = [name for name in SHOWN if name in losses]
    return others or [name for name in losses if name != "bce"]


def _has_curves(part: pl.DataFrame) -> bool:
    return bool(part["epochs"].is_not_null().any())


def _metric(dataset: Dataset) -> str:
    return TRUTH[0] if dataset.truth else "auc"


def _measure(dataset: Dataset) -> str:
    return "expected AUC against the true probabilities" if dataset.truth else "AUC"


def _of(part: pl.DataFrame) -> str:
    """The measure of a dataset's finals: against the truth where it is known."""
    return TRUTH[0] if part[TRUTH[0]].is_not_null().any() else "auc"


def question_tests(
    finals: dict[str, pl.DataFrame], tuned: dict[str, list[Tuned]]
) -> pl.DataFrame:
    """The questions of plan.md: a row an arm and head, p corrected over all of them.

    The last of each dataset: the best form of PWiseR minus the best rival, both chosen
    on validation.
    """
    comparisons: list[PairedTest] = []
    for dataset, part in finals.items():
        arms = {search.arm.name: search for search in tuned[dataset]}
        pairs = [(name, s.arm.baseline) for name, s in arms.items() if name != "bce"]
        ours, rival = best_of(list(arms.values()))
        if ours and rival:
            pairs.append((ours, rival))
        comparisons += [
            ({"dataset": dataset}, part, task, name, baseline)
            for name, baseline in pairs
            for task in HEADS
        ]
    tests = paired_tests(comparisons, _of)
    to_other = ~pl.col("baseline").str.starts_with("bce")
    named = pl.concat_str("loss", "baseline", separator=" minus ")
    return tests.with_columns(
        pl.when(to_other).then(named).otherwise("loss").alias("loss")
    )


def best_of(searches: Sequence[Tuned]) -> tuple[str | None, str | None]:
    """The form of PWiseR and the rival with the best AUC on validation."""
    ranked = sorted(searches, key=lambda s: -s.valid_auc)
    ours = [s.arm.name for s in ranked if s.arm.name.startswith("pwiser")]
    others = [s.arm.name for s in ranked if not s.arm.name.startswith("pwiser")]
    others = [name for name in others if not name.startswith("bce")]
    return (ours[0] if ours else None, others[0] if others else None)


def rivals_table(
    part: pl.DataFrame,
    searches: Sequence[Tuned],
    tests: pl.DataFrame,
    metric: str,
    costs: Mapping[str, tuple[float, float]],
) -> pl.DataFrame:
    """A row a rival: measures, cost, differences to BCE on the same batches."""
    rows = []
    for search in searches:
        name = search.arm.name
        own = part.filter(pl.col("loss") == name)
        means = dict(own.group_by("task").agg(pl.col(metric).mean()).iter_rows())
        row: dict[str, str | float | None] = {"Arm": search.arm.title}
        row |= {task.upper(): means.get(task) for task in (*HEADS, "cvr")}
        if TRUTH[2] in own.columns:
            ctcvr = own.filter(pl.col("task") == "ctcvr")
            row["CTCVR predicted / true"] = _mean(ctcvr, TRUTH[2])
        if name in costs:
            milliseconds, ratio = costs[name]
            row["Step [ms] (x BCE)"] = f"{milliseconds:.1f} ({ratio:.2f})"
        for task in HEADS:
            question = tests.filter((pl.col("loss") == name) & (pl.col("task") == task))
            row[f"{task.upper()} minus BCE (p)"] = _question_text(question)
        rows.append(row)
    return _without_empty(pl.DataFrame(rows, infer_schema_length=None))


def best_rival_table(part: pl.DataFrame, rival: str, metric: str) -> pl.DataFrame:
    """A row an arm: differences to the rival that is best on validation."""
    rows, values = [], by_seed(part, metric)
    for name in part["loss"].unique(maintain_order=True):
        row: dict[str, str] = {"Arm": arm_title(name)}
        for task in HEADS if name != rival else ():
            gaps = paired_gaps(values, task, name, rival)
            column = f"{task.upper()} minus {arm_title(rival)}"
            row[column] = short_text(metrics.mean_interval(gaps))
        if len(row) > 1:
            rows.append(row)
    return pl.DataFrame(rows)


def _without_empty(table: pl.DataFrame) -> pl.DataFrame:
    """Without columns that have no value: the true probabilities of real rows."""
    return table.select(c for c in table if c.is_not_null().any())


def calibration_table(part: pl.DataFrame) -> pl.DataFrame:
    """A row a rival: how far its probabilities are from the true ones."""
    rows = []
    for (loss,), own in part.group_by("loss", maintain_order=True):
        row: dict[str, str | float | None] = {"Arm": arm_title(str(loss))}
        for task in HEADS:
            of_task = own.filter(pl.col("task") == task)
            row[f"{task.upper()} log loss"] = _mean(of_task, _loss_of(part))
            row[f"{task.upper()} predicted / true"] = _mean(of_task, TRUTH[2])
        rows.append(row)
    return _without_empty(pl.DataFrame(rows, infer_schema_length=None))


def _mean(rows: pl.DataFrame, column: str) -> float | None:
    values = rows.filter(pl.col(column).is_finite())[column]
    return float(values.to_numpy().mean()) if len(values) else None


def _question_text(question: pl.DataFrame) -> str | None:
    if question.is_empty():
        return None
    row = question.row(0, named=True)
    return difference_and_p(row, short=True)


def decisions(part: pl.DataFrame, metric: str, dataset: str) -> pl.DataFrame:
    """If you want this, do that: the arm with the best mean for each aim."""
    loss = _loss_of(part)
    aims = (
        ("clicks in the right order", "ctr", metric, True),
        ("conversions above all other exposures", "ctcvr", metric, True),
        ("conversions above other clicks", "cvr", metric, True),
        ("good probabilities of conversion (log loss)", "ctcvr", loss, False),
    )
    return decisions_table(
        [
            decision(f"{dataset}, you want {aim}", part, task, column, highest)
            for aim, task, column, highest in aims
        ]
    )


def _loss_of(part: pl.DataFrame) -> str:
    return TRUTH[1] if part[TRUTH[1]].is_not_null().any() else "log_loss"


SHOWN = ("pwiser ctcvr", "pwiser", "ranknet", "jrc")


def planning(part: pl.DataFrame, dataset: Dataset, metric: str) -> pl.DataFrame:
    """Seeds that the wanted widths take, from the first seeds and from all."""
    rows, values = [], by_seed(part, metric)
    for loss in [n for n in ("pwiser ctcvr", "pwiser") if n in set(part["loss"])]:
        for task in HEADS:
            gaps = paired_gaps(values, task, loss, "bce").tolist()
            width = WIDTHS[dataset.truth][task]
            pilot, every = pilot_deviation(gaps[:PILOT]), pilot_deviation(gaps)
            rows.append(
                (
                    arm_title(loss),
                    task.upper(),
                    every,
                    len(gaps),
                    f"±{half_width(every, len(gaps)):.4f}",
                    f"±{width:g}",
                    seeds_for_width(pilot, width) if pilot else 2,
                    seeds_for_width(every, width) if every else 2,
                )
            )
    names = [
        *("Arm", "Head", "SD of a pair", "Seeds", "Interval", "Wanted"),
        *(f"Seeds it takes ({PILOT} seeds' SD)", "Seeds it takes (all)"),
    ]
    return pl.DataFrame(rows, schema=names, orient="row")


def rows_table(part: pl.DataFrame) -> pl.DataFrame:
    """The difference in AUC on labels: over seeds, and over the rows of test."""
    rows, aucs = [], by_seed(part, "auc")
    for (loss,), own in part.group_by("loss", maintain_order=True):
        if not own[ROWS[1]].is_not_null().any():
            continue
        baseline = ARMS[str(loss)].baseline
        for task in HEADS:
            gaps = paired_gaps(aucs, task, str(loss), baseline)
            over_seeds = metrics.mean_interval(gaps)
            few = own.filter((pl.col("task") == task) & pl.col(ROWS[1]).is_finite())
            value, error = _mean(few, ROWS[0]), _mean(few, ROWS[1])
            if value is None or error is None:
                continue
            gap = Interval(value, value - 1.96 * error, value + 1.96 * error, error)
            arm, head = arm_title(str(loss)), task.upper()
            rows.append((arm, head, text_of(over_seeds), text_of(gap)))
    names = ["Arm", "Head", "Over seeds", f"Over test rows (mean of {ROW_SEEDS} seeds)"]
    return pl.DataFrame(rows, schema=names, orient="row")


def choices_table(searches: Sequence[Tuned]) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "Arm": search.arm.title,
                "Source": search.arm.source,
                "Trials": len(search.tried),
                "Chosen": point_text(search.chosen),
                "At the edge of what was tried": joined(search.edges) or "none",
            }
            for search in searches
        ]
    )


def _answer(
    tests: pl.DataFrame,
    tuned: dict[str, list[Tuned]],
    finals: dict[str, pl.DataFrame],
) -> str:
    sentences = []
    for dataset, part in finals.items():
        own = tests.filter(pl.col("dataset") == dataset)
        ours, rival = best_of(tuned[dataset])
        texts = []
        for label in filter(None, (ours, rival, f"{ours} minus {rival}")):
            of_label = own.filter(pl.col("loss") == label)
            heads = [
                f"{row['task'].upper()} {gap_text(row)}"
                for row in of_label.iter_rows(named=True)
            ]
            if heads:
                against = "" if " minus " in label else " minus BCE"
                texts.append(f"{arm_title(label)}{against}: {joined(heads)}")
        sure = own.filter(pl.col("p_holm") < 0.05)
        capped = [x for search in tuned[dataset] for x in search.at_cap]
        capped += part.filter(pl.col("task") == "ctr")["at_cap"].to_list()
        share = float(np.mean(capped)) if capped else np.nan
        sentences.append(
            f"On {dataset}, {_verdict(sure)} ({counted(len(tuned[dataset]), 'arm')} of "
            f"MMoE, {counted(part['seed'].n_unique(), 'paired seed')}, Holm over "
            f"{counted(own.height, 'question')}). The form of PWiseR and the rival "
            f"that are best on validation: {'; '.join(texts)}. "
            f"{_precision(part, ours)}{share:.1%} of {len(capped):,} runs, trials and "
            f"finals, ended at the cap on epochs{_flat(part)}."
        )
    return " ".join(sentences)


def _flat(part: pl.DataFrame) -> str:
    """Whether the mean curves still rise at the end, as a part of a sentence."""
    if not _has_curves(part):
        return ""
    ends = curves.ends_table(part, HEADS)
    if (ends["Flat"] == "unknown").all():
        return ", and they are too short to say whether their curves are flat"
    rising = ends.filter(pl.col("Flat") == "no")
    if rising.is_empty():
        return ", and no arm's mean curve still rises in the last epochs"
    arms = rising.select(pl.format("{} ({})", "Arm", "Head")).to_series().to_list()
    return f", and the mean curves of {joined(arms)} still rise in the last epochs"


def _early(dataset: str, part: pl.DataFrame) -> str:
    """What the forms of PWiseR gain in the first epochs, on validation."""
    forms = [name for name in SHOWN if "pwiser" in name and name in set(part["loss"])]
    texts = []
    for loss in forms if _has_curves(part) else ():
        for task in HEADS:
            whole = average_difference(curves.area(part), task, loss, "bce", "area")
            gain = curves.early_gain(part, task, loss)
            texts.append(
                f"{arm_title(loss)} in {task.upper()}: {gain} (area under the curve "
                f"{text_of(whole)})"
            )
    if not texts:
        return ""
    return (
        f"While training on {dataset}, in validation AUC, each arm with its own "
        f"learning rate and L2: {'; '.join(texts)}."
    )


def _precision(part: pl.DataFrame, ours: str | None) -> str:
    """The width that was reached in CTCVR, and what the wanted one takes."""
    if ours is None:
        return ""
    metric = _of(part)
    gaps = paired_gaps(by_seed(part, metric), "ctcvr", ours, "bce").tolist()
    deviation, width = pilot_deviation(gaps), WIDTHS[metric == TRUTH[0]]["ctcvr"]
    reached = half_width(deviation, len(gaps))
    if not deviation or reached <= width:
        return ""
    return (
        f"The interval in CTCVR is \N{PLUS-MINUS SIGN}{reached:.4f}; "
        f"\N{PLUS-MINUS SIGN}{width:g} would take "
        f"{seeds_for_width(deviation, width):,} seeds, so smaller effects remain "
        "undecided. "
    )


def _verdict(sure: pl.DataFrame) -> str:
    """What is significant, for PWiseR and for its rivals alike."""
    parts = [
        f"{arm_title(row['loss'])} {'raises' if row['difference'] > 0 else 'lowers'} "
        f"{row['task'].upper()} AUC significantly ({gap_text(row)})"
        for row in sure.iter_rows(named=True)
    ]
    ours = sure.filter(pl.col("loss").str.starts_with("pwiser"))
    if ours.is_empty():
        no = "no form of PWiseR differs significantly from BCE tuned as carefully"
        return f"{no}; {joined(parts)}" if parts else f"{no}, and no rival does"
    if not (ours["difference"] > 0).any():
        no = "no form of PWiseR is significantly better than BCE tuned as carefully"
        return f"{no}; {joined(parts)}"
    return joined(parts)


EXPERIMENT = Experiment(
    NAME,
    "The fair comparison",
    "Trained to the end and tuned with equal effort, is PWiseR better than "
    "cross-entropy and than its rivals, on which head?",
    find,
    check,
)
