"""From logits and labels to the measures of every task, ready for JSON.

A model gives logits by name. Every joint task (CTR, CTCVR, ...) is measured on all rows
and every conditional one (CVR, ...) on the rows that reached the rung before, whatever
heads the model has. In the space "ctcvr" no head gives P(rung | rung before): it is the
ratio of two joint probabilities. Nothing keeps that ratio below 1, so rows are ranked
by its logarithm as it is, and only the probability is held at 1.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import special

from pwiser_jax import metrics
from pwiser_jax.tasks import CvrSpace, Task, joint_task, measured, trained

Logits = Mapping[str, np.ndarray]
Tree = dict[str, Any]

SPREADLESS = "too few rows, or all of them ordered alike, to estimate an interval from"


@dataclass(frozen=True)
class Prediction:
    """What a model says of one task: scores to rank rows by, and probabilities.

    `scores_are_logits`: the scores are the logits of exactly these probabilities.
    """

    scores: NDArray[np.floating]
    probabilities: NDArray[np.float64]
    scores_are_logits: bool


def evaluate(
    logits: Logits,
    labels: np.ndarray,
    groups: np.ndarray,
    *,
    label_names: tuple[str, ...],
    space: CvrSpace,
    split: str,
) -> Tree:
    """All measures of one split.

    Args:
        logits: f[rows] by name, as a model gives them: its heads, and in the spaces
            "click" and "product" also their joint products.
        labels: 0 or 1, [rows, label], nested, in the order of label_names.
        groups: int[rows], the unit of sampling of the intervals, and of GAUC.
        label_names: the ladder, lowest rung first.
        space: what the heads above the first predict.
        split: name of the split, passed on.

    Returns:
        {"split", "rows", "groups", task: {"rows", "positives", "auc", "log_loss",
        "calibration", "gauc"}, "pairs": {task: {"conversion_over_click_only": ...}}}
        with 95% intervals. `pairs` holds the AUC of rows of one level against rows of
        a lower one. What is not defined is None, with a "reason" beside it.

    Raises:
        ValueError: a logit is missing or not finite, shapes differ, or labels are not
            nested.
    """
    labels = _checked_labels(labels, label_names)
    level = labels.sum(axis=1, dtype=np.int64)
    codes = metrics.group_codes(groups, len(level))
    found = int(np.count_nonzero(np.bincount(codes))) if len(codes) else 0
    result: Tree = {"split": split, "rows": len(level), "groups": found}
    pairs: Tree = {}
    for task in measured(label_names):
        prediction = predict_task(task, logits, label_names, space, len(level))
        result[task.name] = _measures(task, prediction, level, codes)
        pairs[task.name] = _pairs(prediction.scores, level, codes, label_names)
    return result | {"pairs": pairs}


def mean_auc(
    logits: Logits, labels: np.ndarray, label_names: tuple[str, ...], space: CvrSpace
) -> tuple[float, dict[str, float]]:
    """Mean AUC of the tasks that are trained, and AUC by task: for early stopping.

    Args, Raises: as `evaluate`.

    Returns:
        The mean over the tasks that have both classes, NaN where none has, and each
        task's own (NaN without both classes).
    """
    labels = _checked_labels(labels, label_names)
    level = labels.sum(axis=1, dtype=np.int64)
    each = {}
    for task in trained(label_names, space):
        scores = _logit(task, logits, len(level))
        rows = level >= task.given
        each[task.name] = metrics.auc(level[rows] >= task.rung, scores[rows])
    defined = [value for value in each.values() if not math.isnan(value)]
    return (sum(defined) / len(defined) if defined else math.nan), each


def probabilities(
    logits: Logits, label_names: tuple[str, ...], space: CvrSpace
) -> dict[str, NDArray[np.float64]]:
    """Probability of every measured task for every row, whatever its labels.

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
    """ "no_click", "click_only", "conversion": what the rows of a level are called."""
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
    task: Task, prediction: Prediction, level: NDArray, codes: NDArray
) -> Tree:
    """Measures of one task on the rows where it is defined."""
    rows = slice(None) if task.given == 0 else np.flatnonzero(level >= task.given)
    positive = level[rows] >= task.rung
    scores, p = prediction.scores[rows], prediction.probabilities[rows]
    positives, count = int(positive.sum()), len(positive)
    reason = _missing_class(positives, count - positives)
    loss = (
        metrics.log_loss_from_logits(positive, scores)
        if prediction.scores_are_logits
        else metrics.log_loss(positive, p)
    )
    gauc = metrics.grouped_auc(positive, scores, codes[rows])
    calibration: Tree = {
        "predicted_over_observed": metrics.predicted_over_observed(positive, p),
        "ece": metrics.expected_calibration_error(positive, p),
    }
    result: Tree = {
        "rows": count,
        "positives": positives,
        "auc": _interval(positive, scores, codes[rows], reason),
        "log_loss": None if math.isnan(loss) else loss,
        "calibration": _defined(
            calibration, "no positive rows" if count else "no rows"
        ),
        "gauc": _defined(
            {"value": gauc.value, "groups": gauc.groups, "rows": gauc.rows},
            reason or "no group has both positive and negative rows",
        ),
    }
    return result if count else result | {"reason": "no rows"}


def _pairs(
    scores: NDArray, level: NDArray, codes: NDArray, label_names: tuple[str, ...]
) -> Tree:
    """AUC of the rows of each level against those of each lower level."""
    result: Tree = {}
    for upper in range(len(label_names), 0, -1):
        for lower in range(upper - 1, -1, -1):
            above, below = (level_name(k, label_names) for k in (upper, lower))
            rows = np.flatnonzero((level == upper) | (level == lower))
            positive = level[rows] == upper
            positives = int(positive.sum())
            reason = _missing_class(
                positives, len(rows) - positives, f"{above} rows", f"{below} rows"
            )
            result[f"{above}_over_{below}"] = {
                **_interval(positive, scores[rows], codes[rows], reason),
                "positives": positives,
                "negatives": len(rows) - positives,
            }
    return result


def _interval(
    positive: NDArray, scores: NDArray, codes: NDArray, reason: str | None
) -> Tree:
    found = metrics.auc_interval(positive, scores, codes)
    tree = {"value": found.value, "low": found.low, "high": found.high}
    return _defined(tree, reason or SPREADLESS)


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


def _defined(tree: Tree, reason: str) -> Tree:
    """NaN becomes None, and then the reason stands beside it: JSON knows no NaN."""
    missing = {k for k, v in tree.items() if isinstance(v, float) and math.isnan(v)}
    if not missing:
        return tree
    return {k: None if k in missing else v for k, v in tree.items()} | {
        "reason": reason
    }
