"""Computes the measures of every task from logits and labels.

A model gives logits by name. Every joint task (CTR, CTCVR, ...) is measured on all rows
and every conditional task (CVR, ...) on the rows that reached the previous label, for
all models. In the space "ctcvr" no head gives P(rung | rung before): it is the ratio of
two joint probabilities. The ratio may exceed 1: rows are ranked by its unclipped
logarithm, and the probability is clipped at 1.

Measures are entries of a table, `MEASURES`: a function of `TaskRows` and a name. An
undefined measure is None and comes with its reason.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, is_dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pwiser_jax import metrics
from pwiser_jax.tasks import CvrSpace, Task, joint_task, measured, trained

Logits = Mapping[str, np.ndarray]
Tree = dict[str, Any]

SPREADLESS = "too few rows, or no variance, to estimate an interval"


@dataclass(frozen=True)
class Prediction:
    """A model's predictions for one task: scores that rank rows, and probabilities.

    `scores_are_logits`: the scores are the logits of exactly these probabilities.
    """

    scores: NDArray[np.floating]
    probabilities: NDArray[np.float64]
    scores_are_logits: bool


@dataclass(frozen=True)
class RankedRows:
    """Rows, lowest score first, so that measures of ranking need not sort them.

    Args:
        positive: bool[N], the labels.
        scores: f[N], ascending.
        groups: int[N], codes of the groups.
    """

    positive: NDArray[np.bool_]
    scores: NDArray[np.floating]
    groups: NDArray[np.integer]


@dataclass(frozen=True)
class TaskRows:
    """The rows on which one task is defined: the argument of every measure.

    Args:
        positive: bool[N], the labels.
        scores: f[N], to rank by.
        probabilities: f64[N].
        groups: int[N], codes of the groups, which are the sampling units.
        scores_are_logits: as in `Prediction`.
        ranked: the same rows in the order of their scores.
    """

    positive: NDArray[np.bool_]
    scores: NDArray[np.floating]
    probabilities: NDArray[np.float64]
    groups: NDArray[np.integer]
    scores_are_logits: bool
    ranked: RankedRows

    @property
    def missing(self) -> str | None:
        """Why measures of ranking are undefined, or None."""
        positives = int(self.positive.sum())
        return _missing_class(positives, len(self.positive) - positives)


@dataclass(frozen=True)
class Auc:
    """AUC with its 95% interval over groups."""

    value: float | None
    low: float | None
    high: float | None
    reason: str | None = None


@dataclass(frozen=True)
class PairAuc(Auc):
    """AUC of the rows of one level (positives) against those of a lower one."""

    positives: int = 0
    negatives: int = 0


@dataclass(frozen=True)
class Calibration:
    """Predicted over observed positives, and expected calibration error."""

    predicted_over_observed: float | None
    ece: float | None
    reason: str | None = None


@dataclass(frozen=True)
class Gauc:
    """Mean AUC within groups, weighted by rows; see `metrics.grouped_auc`."""

    value: float | None
    groups: int
    rows: int
    reason: str | None = None


@dataclass(frozen=True)
class SessionMean:
    """A measure of sessions, with its 95% interval over them.

    `sessions`: the number of sessions that have the measure.
    """

    value: float | None
    low: float | None
    high: float | None
    sessions: int
    reason: str | None = None


@dataclass(frozen=True)
class TaskMeasures:
    """The measures of one task; each is also an attribute: `ctr.auc.value`.

    Args:
        rows: rows on which the task is defined.
        positives: number of these rows with the label.
        values: by name, as in `MEASURES`: a number, None, or a dataclass.
        reason: why measures are None, if they hold no reason.
    """

    rows: int
    positives: int
    values: Mapping[str, Any]
    reason: str | None = None

    def __getattr__(self, name: str) -> Any:
        if name != "values" and name in self.values:
            return self.values[name]
        raise AttributeError(name)


@dataclass(frozen=True)
class Evaluation:
    """All measures of one split.

    Args:
        split: name of the split.
        rows: number of rows.
        groups: number of groups.
        label_names: the ladder, lowest rung first.
        tasks: measures by task: "ctr", "ctcvr", "cvr", ...
        pairs: by task and pair of levels ("conversion_over_click_only").
        note: caution that must accompany every figure of the split, if any.
        sessions: what `session_measures` returns, if it was asked for.
    """

    split: str
    rows: int
    groups: int
    label_names: tuple[str, ...]
    tasks: Mapping[str, TaskMeasures]
    pairs: Mapping[str, Mapping[str, PairAuc]]
    note: str | None = None
    sessions: Mapping[str, SessionMean] | None = None

    def to_dict(self) -> Tree:
        """The tree of evaluation_SPLIT.json; undefined measures are None.

        {"split", "rows", "groups", task: {"rows", "positives", measure: ...},
        "pairs": {task: {pair: ...}}, "sessions": {measure: ...}}, with a "reason"
        beside each None.
        """
        note = {} if self.note is None else {"note": self.note}
        tasks = {
            name: {
                "rows": task.rows,
                "positives": task.positives,
                **{key: _tree(value) for key, value in task.values.items()},
                **({} if task.reason is None else {"reason": task.reason}),
            }
            for name, task in self.tasks.items()
        }
        pairs = {
            name: {pair: _tree(value) for pair, value in aucs.items()}
            for name, aucs in self.pairs.items()
        }
        counts = {"split": self.split, "rows": self.rows, "groups": self.groups}
        tree = note | counts | tasks | {"pairs": pairs}
        if self.sessions is not None:
            tree["sessions"] = {k: _tree(v) for k, v in self.sessions.items()}
        return tree

    @classmethod
    def from_dict(cls, tree: Tree, label_names: tuple[str, ...]) -> "Evaluation":
        """The inverse of `to_dict`; an added measure's dataclass stays a tree."""
        types = {"auc": Auc, "calibration": Calibration, "gauc": Gauc}

        def measures(
            rows: int, positives: int, reason: str | None = None, **values: Any
        ) -> TaskMeasures:
            values |= {k: types[k](**v) for k, v in values.items() if k in types}
            return TaskMeasures(rows, positives, values, reason)

        names = [task.name for task in measured(label_names)]
        pairs = {
            name: {pair: PairAuc(**value) for pair, value in by_pair.items()}
            for name, by_pair in tree["pairs"].items()
        }
        sessions = tree.get("sessions")
        if sessions is not None:
            sessions = {name: SessionMean(**value) for name, value in sessions.items()}
        return cls(
            **{name: tree[name] for name in ("split", "rows", "groups")},
            label_names=label_names,
            tasks={name: measures(**tree[name]) for name in names},
            pairs=pairs,
            note=tree.get("note"),
            sessions=sessions,
        )


@dataclass(frozen=True)
class MeanAuc:
    """AUC of the trained tasks, for early stopping.

    Args:
        mean: mean over the tasks with a defined AUC; None if there are none.
        auc: by task; None where the rows lack a class.
        reasons: why an AUC is None, by task.
    """

    mean: float | None
    auc: dict[str, float | None]
    reasons: dict[str, str] = field(default_factory=dict)


def evaluate(
    logits: Logits,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    label_names: tuple[str, ...],
    space: CvrSpace,
    split: str,
    note: str | None = None,
) -> Evaluation:
    """All measures of one split.

    Args:
        logits: f[rows] by name, as a model gives them: its heads, and in the spaces
            "click" and "product" also their joint products.
        labels: 0 or 1, [rows, label], nested, in the order of label_names.
        groups: int[rows], sampling units of the intervals, and groups of GAUC.
        label_names: the ladder, lowest rung first.
        space: space of the heads after the first; see `tasks`.
        split: name of the split, for the result.
        note: caution, for the result.

    Raises:
        ValueError: a logit is missing or not finite, shapes differ, or labels are not
            nested.
    """
    labels = _checked_labels(labels, label_names)
    level = labels.sum(axis=1, dtype=np.int8)
    codes = metrics.group_codes(groups, len(level))
    group_count = int(np.count_nonzero(np.bincount(codes))) if len(codes) else 0
    tasks, pairs = {}, {}
    for task in measured(label_names):
        prediction = predict_task(task, logits, label_names, space, len(level))
        order = metrics.score_order(prediction.scores)  # one sort for all measures
        by_score = level[order], prediction.scores[order], codes[order]
        del order
        tasks[task.name] = _measures(task, prediction, level, codes, by_score)
        del prediction  # frees a double a row
        pairs[task.name] = _pairs(by_score, label_names)
    return Evaluation(split, len(level), group_count, label_names, tasks, pairs, note)


def session_measures(
    scores: np.ndarray,
    converted: np.ndarray,
    groups: np.ndarray,
    prices: np.ndarray | None = None,
) -> dict[str, SessionMean]:
    """Measures of the ranking within each session, for a score of conversions.

    Args:
        scores: f[rows].
        converted: bool[rows], rows with the highest label.
        groups: int[rows], the session of each row.
        prices: f[rows], at least 0, the price of a conversion.

    Returns:
        gauc: GAUC of conversions; ndcg: mean NDCG, where the gain of a row is its
        revenue: the price of a conversion (1 without prices), 0 for other rows. With
        prices revenue_1 and revenue_3: mean revenue of a session's first 1 or 3 rows.
    """
    revenue = converted * (1.0 if prices is None else prices)
    ranked = scores, groups
    gauc = metrics.gauc_interval(converted, *ranked)
    both = np.isfinite(metrics.session_auc(converted, *ranked))
    result = {
        "gauc": _session_mean(
            gauc, both, "no session has both a conversion and another row"
        )
    }
    each = {"ndcg": metrics.session_ndcg(revenue, *ranked)}
    if prices is not None:
        for k in (1, 3):
            each[f"revenue_{k}"] = metrics.session_revenue(revenue, *ranked, k)
    for name, values in each.items():
        defined = np.isfinite(values)
        mean = metrics.mean_interval(values[defined])
        result[name] = _session_mean(mean, defined, "no session has revenue")
    return result


def _session_mean(
    interval: metrics.Interval, defined: NDArray[np.bool_], missing: str
) -> SessionMean:
    ends = {k: _number(getattr(interval, k)) for k in ("value", "low", "high")}
    reason = None
    if ends["value"] is None:
        reason = missing if len(defined) else "no rows"
    elif ends["low"] is None:
        reason = SPREADLESS
    return SessionMean(**ends, sessions=int(defined.sum()), reason=reason)


def mean_auc(
    logits: Logits, labels: np.ndarray, label_names: tuple[str, ...], space: CvrSpace
) -> MeanAuc:
    """Mean AUC of the tasks that are trained, and AUC by task: for early stopping.

    Args, Raises: as `evaluate`.
    """
    labels = _checked_labels(labels, label_names)
    level = labels.sum(axis=1, dtype=np.int64)
    each, reasons = {}, {}
    for task in trained(label_names, space):
        scores = _logit(task, logits, len(level))
        rows = level >= task.given
        positive = level[rows] >= task.rung
        each[task.name] = _number(metrics.auc(positive, scores[rows]))
        if each[task.name] is None:
            positives = int(positive.sum())
            missing = _missing_class(positives, len(positive) - positives)
            reasons[task.name] = missing or "not defined"
    values = [value for value in each.values() if value is not None]
    return MeanAuc(sum(values) / len(values) if values else None, each, reasons)


def probabilities(
    logits: Logits, label_names: tuple[str, ...], space: CvrSpace
) -> dict[str, NDArray[np.float64]]:
    """Probability of every measured task for every row.

    Args, Raises: as `evaluate`.
    """
    rows = len(next(iter(logits.values()))) if logits else 0
    return {
        task.name: predict_task(task, logits, label_names, space, rows).probabilities
        for task in measured(label_names)
    }


def predict_task(
    task: Task,
    logits: Logits,
    label_names: tuple[str, ...],
    space: CvrSpace,
    rows: int,
) -> Prediction:
    """Scores and probabilities of one measured task, f[rows] each.

    A logit z of the task gives σ(z). In the space "ctcvr" a conditional task takes the
    logits z of its rung and y of the rung before: the score is log σ(z) - log σ(y) in
    float64, and the probability its exponential, at most 1.

    Raises:
        ValueError: a logit is missing, of another shape, or not finite.
    """
    if task.given == 0 or space != "ctcvr":
        z = _logit(task, logits, rows)
        return Prediction(z, special.expit(z.astype(np.float64)), True)
    upper = _logit(joint_task(label_names, task.rung), logits, rows)
    lower = _logit(joint_task(label_names, task.given), logits, rows)
    log_ratio = special.log_expit(upper.astype(np.float64))
    log_ratio -= special.log_expit(lower.astype(np.float64))
    return Prediction(log_ratio, np.exp(np.minimum(log_ratio, 0)), False)


def level_name(level: int, label_names: tuple[str, ...]) -> str:
    """Name of a level's rows: "no_click", "click_only", "conversion"."""
    if level == 0:
        return f"no_{label_names[0]}"
    label = label_names[level - 1]
    return label if level == len(label_names) else f"{label}_only"


def _logit(task: Task, logits: Logits, rows: int) -> NDArray[np.floating]:
    if task.name not in logits:
        raise ValueError(f"logits have no {task.name}, only {', '.join(logits)}")
    z = np.asarray(logits[task.name])
    if z.shape != (rows,):
        raise ValueError(f"logits of {task.name} must be ({rows},), not {z.shape}")
    bad = ~np.isfinite(z)
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(f"logit of {task.name} in row {row} is not finite: {z[row]}")
    return z


def _checked_labels(labels: np.ndarray, label_names: tuple[str, ...]) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 2 or labels.shape[1] != len(label_names):
        raise ValueError(
            f"labels must be [rows, {len(label_names)}], not {labels.shape}"
        )
    if ((labels != 0) & (labels != 1)).any():
        raise ValueError("labels must be 0 or 1")
    skipped = (labels[:, 1:] > labels[:, :-1]).any(axis=1)
    if skipped.any():
        row = int(np.argmax(skipped))
        raise ValueError(f"labels of row {row} hold a rung without the one below it")
    return labels


def _measures(
    task: Task,
    prediction: Prediction,
    level: NDArray,
    codes: NDArray,
    by_score: tuple[NDArray, NDArray, NDArray],
) -> TaskMeasures:
    """Measures of one task on the rows where it is defined.

    Args:
        by_score: levels, scores and groups of all rows, lowest score first.
    """
    rows = slice(None) if task.given == 0 else np.flatnonzero(level >= task.given)
    at = TaskRows(
        positive=level[rows] >= task.rung,
        scores=prediction.scores[rows],
        probabilities=prediction.probabilities[rows],
        groups=codes[rows],
        scores_are_logits=prediction.scores_are_logits,
        ranked=_ranked(by_score, by_score[0] >= task.given, task.rung),
    )
    values = {name: measure(at) for name, measure in MEASURES.items()}
    values = {k: _number(v) if isinstance(v, float) else v for k, v in values.items()}
    count, positives = len(at.positive), int(at.positive.sum())
    return TaskMeasures(count, positives, values, None if count else "no rows")


def auc_measure(at: TaskRows) -> Auc:
    """AUC with its interval."""
    return Auc(**_interval(at.ranked, at.missing))


def log_loss_measure(at: TaskRows) -> float:
    """Mean cross-entropy."""
    if at.scores_are_logits:
        return metrics.log_loss_from_logits(at.positive, at.scores)
    return metrics.log_loss(at.positive, at.probabilities)


def calibration_measure(at: TaskRows) -> Calibration:
    """Predicted over observed, and ECE."""
    ratio = _number(metrics.predicted_over_observed(at.positive, at.probabilities))
    error = _number(metrics.expected_calibration_error(at.positive, at.probabilities))
    reason = "no positive rows" if len(at.positive) else "no rows"
    return Calibration(ratio, error, reason if ratio is None or error is None else None)


def gauc_measure(at: TaskRows) -> Gauc:
    """GAUC."""
    rows = at.ranked
    mean = metrics.grouped_auc(rows.positive, rows.scores, rows.groups)
    value = _number(mean.value)
    reason = at.missing or "no group has both positive and negative rows"
    return Gauc(value, mean.groups, mean.rows, reason if value is None else None)


MEASURES: dict[str, Callable[[TaskRows], Any]] = {
    "auc": auc_measure,
    "log_loss": log_loss_measure,
    "calibration": calibration_measure,
    "gauc": gauc_measure,
}
"""Name -> function that returns a number (NaN if undefined) or a dataclass."""


def register_measure(name: str, measure: Callable[[TaskRows], Any]) -> None:
    """Adds a measure of every task to what `evaluate` returns and writes."""
    MEASURES[name] = measure


def _pairs(
    by_score: tuple[NDArray, NDArray, NDArray], label_names: tuple[str, ...]
) -> dict[str, PairAuc]:
    """AUC of the rows of each level against those of each lower level."""
    result = {}
    for upper in range(len(label_names), 0, -1):
        for lower in range(upper - 1, -1, -1):
            above, below = (level_name(k, label_names) for k in (upper, lower))
            level = by_score[0]
            rows = _ranked(by_score, (level == upper) | (level == lower), upper)
            positives = int(rows.positive.sum())
            negatives = len(rows.positive) - positives
            reason = _missing_class(
                positives, negatives, f"{above} rows", f"{below} rows"
            )
            result[f"{above}_over_{below}"] = PairAuc(
                **_interval(rows, reason), positives=positives, negatives=negatives
            )
    return result


def _ranked(
    by_score: tuple[NDArray, NDArray, NDArray], rows: NDArray[np.bool_], rung: int
) -> RankedRows:
    """Some of the rows; those that reached the rung are positive."""
    level, scores, groups = by_score if rows.all() else (x[rows] for x in by_score)
    return RankedRows(level >= rung, scores, groups)


def _interval(rows: RankedRows, reason: str | None) -> Tree:
    """The fields of `Auc`."""
    interval = metrics.auc_interval(rows.positive, rows.scores, rows.groups)
    ends = {k: _number(getattr(interval, k)) for k in ("value", "low", "high")}
    missing = None in ends.values()
    return ends | {"reason": (reason or SPREADLESS) if missing else None}


def _missing_class(
    positives: int,
    negatives: int,
    positive_name: str = "positive rows",
    negative_name: str = "negative rows",
) -> str | None:
    if positives and negatives:
        return None
    if not positives and not negatives:
        return "no rows"
    return f"no {negative_name if positives else positive_name}"


def _number(value: float) -> float | None:
    """None for an undefined measure: JSON has no NaN."""
    return value if math.isfinite(value) else None


def _tree(value: Any) -> Any:
    """A measure as JSON types, without an empty reason."""
    if not is_dataclass(value) or isinstance(value, type):
        return value
    tree = asdict(value)
    if tree.get("reason") is None:
        tree.pop("reason", None)
    return tree
