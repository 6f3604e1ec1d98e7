"""Deep models against logistic regression and boosted trees, on the same columns.

    python -m experiments.all --full --only classical --kuairand DIR --output runs/deep

`plan.md` has the spaces and rules. A classical model has one fit a head and is chosen
by that head's AUC on validation; a deep model, trained with cross-entropy, has both
heads and is chosen by the mean of both. On KuaiRand all is done anew for several
numbers of train rows. Needs scikit-learn.
"""

import hashlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import polars as pl
from scipy import sparse, special

from experiments.lib.arms import COMMON
from experiments.lib.datasets import Dataset, kuairand
from experiments.lib.result_table import tag_text
from experiments.lib.runs import Run
from experiments.lib.search import Point, Space, at, point_text, sobol_points
from experiments.lib.study import (
    TUNING_SEED,
    Experiment,
    Finding,
    Measures,
    Outcome,
    Study,
)
from experiments.lib.words import counted, text_of
from pwiser_jax import metrics
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import FILE, read_manifest
from pwiser_jax.errors import UserError
from pwiser_jax.metrics import Interval
from pwiser_jax.reports.html import TableBlock
from pwiser_jax.reports.tables import p_text
from pwiser_jax.schema import Schema

if TYPE_CHECKING:
    from pwiser_jax.config import Config

NAME = "classical"
HEADS = ("ctr", "ctcvr")
SEEDS = 8  # final runs of a deep model
TREES = 200  # at most
EVERY = 10  # trees between two looks at validation
CURVE_ROWS = (5_000, 20_000, None)  # train rows of KuaiRand; None: all
GAP = ("rows_difference", "rows_error")
# The two halves of a deep model's trials.
HALVES = (
    ("--model.embedding_dim=8", "--model.dropout=0.2"),
    (
        *("--model.embedding_dim=16", "--model.dropout=0.5"),
        *("--optimizer.schedule=cosine", "--train.epochs=10", "--train.patience=10"),
    ),
)


@dataclass(frozen=True)
class Deep:
    """A model of the package: its config file, options and settings of its own."""

    name: str
    config: str
    options: tuple[str, ...] = ()
    space: Space = field(default_factory=dict)


DEEP = (
    Deep("shared bottom", "shared_bottom"),
    Deep("MMoE", "mmoe"),
    Deep(
        "wide MMoE",
        "mmoe",
        ("--model.wide=true", "--optimizer.wide_l2=1e-4"),
        {"wide_l2": (1e-5, 1e-2)},
    ),
)


class Table:
    """The splits of a prepared folder."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.prepared = folder, Prepared(folder)

    @property
    def schema(self) -> Schema:
        return self.prepared.schema

    @cached_property
    def train(self) -> Rows:
        return self.prepared.load("train")

    @cached_property
    def valid(self) -> Rows:
        return self.prepared.load("valid")

    def labels(self, rows: Rows, head: str) -> np.ndarray:
        return rows.labels[:, HEADS.index(head)]


Scores = Callable[[Rows], np.ndarray]  # the probability of each row
FitModel = Callable[[Table, str, Point], Scores]


class Classical(NamedTuple):
    """A model of scikit-learn."""

    name: str
    space: Space
    fit: FitModel


def one_hot(rows: Rows, schema: Schema) -> sparse.csr_matrix:
    """f32[N, sum of field rows + numericals]."""
    sizes = [field.rows for field in schema.categorical]
    offsets = np.cumsum([0, *sizes[:-1]])
    count, fields = rows.categorical.shape
    columns = (rows.categorical + offsets[None, :]).ravel()
    starts = np.arange(0, count * fields + 1, fields)
    ones = np.ones(count * fields, np.float32)
    ids = sparse.csr_matrix((ones, columns, starts), shape=(count, sum(sizes)))
    return sparse.csr_matrix(sparse.hstack([ids, sparse.csr_matrix(rows.numerical)]))


def fit_logistic(table: Table, head: str, point: Point) -> Scores:
    """One-hot logistic regression of one head."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    x, y = one_hot(table.train, table.schema), table.labels(table.train, head)
    with warnings.catch_warnings():
        # 300 iterations are enough for the AUC, but not for all digits of the weights.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=point["C"], max_iter=300).fit(x, y)

    def scores(rows: Rows) -> np.ndarray:
        return special.expit(model.decision_function(one_hot(rows, table.schema)))

    return scores


def fit_trees(table: Table, head: str, point: Point) -> Scores:
    """Boosted trees of one head, as many as are best on validation; ids are numbers."""
    from sklearn import ensemble

    # Its declared types are narrower than what it takes.
    trees: Any = ensemble.HistGradientBoostingClassifier

    def columns(rows: Rows) -> np.ndarray:
        return np.hstack([rows.categorical, rows.numerical])

    model = trees(
        learning_rate=point["learning_rate"],
        max_iter=TREES,
        max_leaf_nodes=round(point["leaves"]),
        min_samples_leaf=round(point["leaf_rows"]),
        l2_regularization=point["l2"],
        early_stopping=False,
        random_state=0,
    ).fit(columns(table.train), table.labels(table.train, head))

    def after(rows: Rows) -> Iterator[np.ndarray]:
        """Probabilities after each tree."""
        for stage in model.staged_predict_proba(columns(rows)):
            yield stage[:, 1]

    labels = table.labels(table.valid, head)
    aucs = [
        metrics.auc(labels, stage) if k % EVERY == EVERY - 1 else -np.inf
        for k, stage in enumerate(after(table.valid))
    ]
    best = int(np.argmax(aucs))

    def scores(rows: Rows) -> np.ndarray:
        return next(stage for k, stage in enumerate(after(rows)) if k == best)

    return scores


CLASSICAL_MODELS = (
    Classical("logistic regression", {"C": (1e-4, 10.0)}, fit_logistic),
    Classical(
        "boosted trees",
        {
            "learning_rate": (0.02, 0.3),
            "leaves": (4.0, 64.0),
            "leaf_rows": (10.0, 300.0),
            "l2": (0.01, 100.0),
        },
        fit_trees,
    ),
)


@dataclass(frozen=True)
class Tuned:
    """A model's choice on validation and its measures on test.

    Args:
        name: of the model.
        trials: settings tried.
        chosen: settings by head, as text.
        valid: AUC on validation by head.
        finals: seed, task, auc, log_loss, run.
        scores: of a classical model, of the chosen fit of a head.
    """

    name: str
    trials: int
    chosen: dict[str, str]
    valid: dict[str, float]
    finals: pl.DataFrame
    scores: Callable[[str], Scores] | None = None


def tune_classical(study: Study, dataset: Dataset, model: Classical) -> Tuned:
    points = sobol_points(model.space, study.scale.trials, seed=0)
    table = Table(dataset.ready()) if study.tables is None else None
    chosen, valid, parts = {}, {}, []
    for head in HEADS:
        searched = [
            measured(study, dataset, table, model, head, point, "valid")
            for point in points
        ]
        aucs = [measure["auc"] for measure in searched]
        best = int(np.argmax(aucs))
        chosen[head], valid[head] = point_text(points[best]), aucs[best]
        final = measured(study, dataset, table, model, head, points[best], "test")
        parts.append({"seed": 0, "task": head, **final, "run": ""})

    def scores(head: str) -> Scores:
        assert table is not None
        point = next(p for p in points if point_text(p) == chosen[head])
        return model.fit(table, head, point)

    return Tuned(model.name, len(points), chosen, valid, pl.DataFrame(parts), scores)


def measured(
    study: Study,
    dataset: Dataset,
    table: Table | None,
    model: Classical,
    head: str,
    point: Point,
    split: str,
) -> dict[str, float]:
    """AUC and log loss of a fit of one head; fitted where the table lacks it."""
    results, tags = study.table(NAME), tag_text(point)
    of_fit = {
        "dataset": dataset.name,
        "model": model.name,
        "tags": tags,
        "split": split,
        "task": head,
    }
    if table is not None:
        data = hashlib.sha256((table.folder / FILE).read_bytes()).hexdigest()[:8]
        point_hash = hashlib.sha256(tags.encode()).hexdigest()[:8]
        of_fit["run"] = f"{data}/{model.name}-{head}-{point_hash}"
    known = results.frame.filter(**of_fit)
    if known.is_empty():
        if table is None:
            raise UserError(f"{results.path} lacks {model.name} of {dataset.name}")
        rows = table.prepared.load(split)
        labels = table.labels(rows, head)
        p = model.fit(table, head, point)(rows)
        values = {
            "auc": metrics.auc(labels, p),
            "log_loss": metrics.log_loss(labels, p),
        }
        common = {**of_fit, "loss": "bce", "seed": 0, "config_hash": ""}
        results.add(
            pl.DataFrame(
                [common | {"metric": k, "value": v} for k, v in values.items()]
            )
        )
        known = results.frame.filter(**of_fit)
    return dict(known.select("metric", "value").iter_rows())


def tune_deep(study: Study, dataset: Dataset, model: Deep) -> Tuned:
    scale, planned = study.scale, []
    for half, options in enumerate(HALVES):
        changes = (*scale.to_the_end, *model.options, *options)
        space = {**COMMON, **model.space}
        for point in sobol_points(space, max(scale.trials // 2, 1), seed=half):
            configure = partial(deep_config, study, dataset, model, changes, point)
            tags = {"half": half, **point}
            planned.append(Run(model.name, "bce", 0, configure, tags))

    def runs(which: Sequence[Run], seeds: Sequence[int], split: str) -> pl.DataFrame:
        seeded = [run.seeded(seed) for run in which for seed in seeds]
        results = study.run(NAME, seeded, dataset, split)
        return results.filter(pl.col("task").is_in(HEADS))

    searched = runs(planned, [TUNING_SEED], "valid")
    means = searched.group_by("run", maintain_order=True).agg(pl.col("auc").mean())
    best = int(np.argmax(means["auc"].to_numpy()))
    of_best = searched.filter(pl.col("run") == means["run"][best])
    point = dict(planned[best].tags)
    text = point_text({k: float(v) for k, v in point.items() if k != "half"})
    sizes = ("embedding 8, dropout .2", "embedding 16, dropout .5, cosine")
    finals = runs([planned[best]], range(min(SEEDS, scale.finals)), "test")
    return Tuned(
        model.name,
        len(planned),
        dict.fromkeys(HEADS, f"{sizes[int(point['half'])]}, {text}"),
        dict(of_best.select("task", "auc").iter_rows()),
        finals.select("seed", "task", "auc", "log_loss", "run", *_keys(finals)),
    )


def deep_config(
    study: Study, dataset: Dataset, model: Deep, changes: Sequence[str], point: Point
) -> "Config":
    from pwiser_jax.config import load_config  # loads jax

    path = dataset.configs / f"{model.config}.yaml"
    return at(load_config(path, study.options(dataset, changes)), point)


def _keys(results: pl.DataFrame) -> list[str]:
    """The columns with which `Study.measure` finds runs again."""
    taken = ("seed", "task", "auc", "log_loss", "run")
    return [name for name in results.columns if name not in taken]


def gaps(
    study: Study, dataset: Dataset, deep: Tuned, classical: dict[str, Tuned]
) -> pl.DataFrame:
    """The deep model's AUC minus the classical one's of each head, over test rows.

    Returns:
        A row a run, task and measure of GAP.
    """

    def measure(outcome: Outcome) -> Measures:
        rows, predictions = outcome.rows("test"), outcome.predictions("test")
        measures: dict[tuple[str, str], float] = {}
        for head, labels in zip(HEADS, rows.labels.T, strict=True):
            ours, theirs = predictions[head].scores, scores[head](rows)
            gap = metrics.auc_difference(labels, ours, theirs, rows.group)
            measures[head, GAP[0]] = gap.value
            measures[head, GAP[1]] = gap.standard_error
        return measures

    scores: dict[str, Scores] = {}
    if study.tables is None:
        for head, tuned in classical.items():
            assert tuned.scores is not None
            scores[head] = tuned.scores(head)
    return study.measure(NAME, deep.finals, dataset, GAP, measure)


def datasets_of(study: Study) -> list[Dataset]:
    """The core datasets with two labels, then KuaiRand with other numbers of rows."""
    datasets = list(study.core)
    source = study.kuairand or Path("KUAIRAND_DIR")  # is not read with tables
    if any(dataset.name.startswith("kuairand") for dataset in datasets):
        overrides = study.scale.kuairand
        for rows in CURVE_ROWS:
            sample = kuairand(study.place, source, "like", rows)
            if sample.name not in [dataset.name for dataset in datasets]:
                datasets.append(replace(sample, overrides=overrides))
    return datasets


def unreadable(study: Study, dataset: Dataset) -> str:
    """Why classical models do not run on a dataset; empty where they do."""
    if study.tables is not None:
        return ""
    schema = read_manifest(dataset.ready()).schema
    if schema.multi_valued:
        return f"{schema.multi_valued[0].name} is multi-valued"
    return "" if len(schema.labels) == 2 else f"it has {len(schema.labels)} labels"


def find(study: Study) -> Finding:
    if study.tables is None and importlib.util.find_spec("sklearn") is None:
        return Finding(
            "Did not run: scikit-learn is missing (pip install 'pwiser-jax[classical]')"
            ".",
            [],
        )
    sentences, blocks, tests, curve = [], [], [], []
    for dataset in datasets_of(study):
        reason = unreadable(study, dataset)
        if reason:
            sentences.append(f"Not on {dataset.title}: {reason}.")
            continue
        models = list(tuned_models(study, dataset))
        if not models:
            continue
        caption = f"{dataset.title}: tuned with equal trials; test, mean over seeds"
        blocks.append(TableBlock(models_table(models), caption))
        if dataset.name.startswith("kuairand"):
            curve += [(dataset.title, *row) for row in curve_rows(models)]
        own = [(dataset.title, *row) for row in compared(study, dataset, models)]
        if not own:
            sentences.append(f"On {dataset.title}, not tested: {auc_text(models)}.")
        tests += own
    if tests:
        table, answer = tests_table(tests)
        sentences.append(answer)
        caption = "The best deep model minus the best classical one; over test rows"
        blocks.insert(0, TableBlock(table, caption))
    if curve:
        names = ["Data", "Model", *(f"{head.upper()} AUC" for head in HEADS)]
        table = pl.DataFrame(curve, schema=names, orient="row")
        blocks.append(TableBlock(table, "KuaiRand: test AUC by number of train rows"))
    return Finding(" ".join(sentences), blocks)


def tuned_models(study: Study, dataset: Dataset) -> Iterator[Tuned]:
    """Each model's choice; of result tables, of the models that were finished."""
    finished = set()
    if study.tables is not None:
        own = (pl.col("dataset") == dataset.name) & (pl.col("split") == "test")
        frame = study.table(NAME).frame.filter(own & pl.col("task").is_in(HEADS))
        counts = frame.group_by("model").agg(pl.col("task").n_unique())
        finished = set(counts.filter(pl.col("task") == len(HEADS))["model"])
    for classical in CLASSICAL_MODELS:
        if study.tables is None or classical.name in finished:
            yield tune_classical(study, dataset, classical)
    for deep in DEEP:
        if study.tables is None or deep.name in finished:
            yield tune_deep(study, dataset, deep)


def compared(
    study: Study, dataset: Dataset, models: Sequence[Tuned]
) -> Iterator[tuple[str, str, Interval, float]]:
    """A test for each head: head, names, interval, p; both are best on validation."""
    deep = [tuned for tuned in models if tuned.scores is None]
    classical = [tuned for tuned in models if tuned.scores is not None]
    measured_gaps = study.table(NAME).frame.filter(dataset=dataset.name, metric=GAP[0])
    if study.tables is not None and measured_gaps.is_empty():
        return
    theirs = {
        head: max(classical, key=lambda tuned: tuned.valid[head]) for head in HEADS
    }
    for head in HEADS:
        ours = max(deep, key=lambda tuned: tuned.valid[head])
        long = gaps(study, dataset, ours, theirs).filter(pl.col("task") == head)
        value, error = (
            float(np.mean(long.filter(pl.col("metric") == name)["value"].to_numpy()))
            for name in GAP
        )
        margin = special.ndtri(0.975) * error
        interval = Interval(value, value - margin, value + margin, error)
        p = 2 * special.ndtr(-abs(value / error)) if error > 0 else np.nan
        yield head, f"{ours.name} minus {theirs[head].name}", interval, float(p)


def tests_table(
    tests: Sequence[tuple[str, str, str, Interval, float]],
) -> tuple[pl.DataFrame, str]:
    """The tests as a table, and in a sentence a dataset."""
    adjusted = metrics.holm([p for *_, p in tests])
    rows, texts = [], {}
    for (dataset, head, names, gap, _), p in zip(tests, adjusted, strict=True):
        text = text_of(gap)
        rows.append((dataset, head.upper(), names, text, p_text(p)))
        won = "wins" if gap.value > 0 else "loses"
        verdict = f"deep {won} after Holm" if p < 0.05 else "not significant after Holm"
        texts.setdefault(dataset, []).append(f"{head.upper()}, {names}: {text}")
        texts[dataset][-1] += f" ({verdict})"
    names = ["Data", "Head", "Difference", "AUC", "p after Holm"]
    sentences = [f"On {name}: {'; '.join(parts)}." for name, parts in texts.items()]
    return pl.DataFrame(rows, schema=names, orient="row"), " ".join(sentences)


def models_table(models: Sequence[Tuned]) -> pl.DataFrame:
    rows = []
    for tuned in models:
        row: dict[str, str | float] = {"Model": tuned.name}
        for head in HEADS:
            row[f"{head.upper()} AUC"] = _mean(tuned, head, "auc")
        for head in HEADS:
            row[f"{head.upper()} log loss"] = _mean(tuned, head, "log_loss")
        row["Fits"] = counted(tuned.finals["seed"].n_unique(), "seed")
        row["Chosen"] = "; ".join(dict.fromkeys(tuned.chosen.values()))
        rows.append(row)
    return pl.DataFrame(rows)


def auc_text(models: Sequence[Tuned]) -> str:
    return "; ".join(
        f"{name}, CTR {ctr:.4f} and CTCVR {ctcvr:.4f}"
        for name, ctr, ctcvr in curve_rows(models)
    )


def curve_rows(models: Sequence[Tuned]) -> list[tuple[str, float, float]]:
    ctr, ctcvr = HEADS
    return [(m.name, _mean(m, ctr, "auc"), _mean(m, ctcvr, "auc")) for m in models]


def _mean(tuned: Tuned, head: str, measure: str) -> float:
    return float(tuned.finals.filter(pl.col("task") == head)[measure].to_numpy().mean())


EXPERIMENT = Experiment(
    NAME,
    "Deep and classical models",
    "On the same columns, does a tuned deep model of cross-entropy rank better than "
    "logistic regression and boosted trees?",
    find,
)
