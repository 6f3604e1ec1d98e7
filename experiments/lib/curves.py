"""Validation AUC while training: is it flat at the end, and who is ahead when?"""

import numpy as np
import polars as pl

from experiments.lib.arms import arm_title
from experiments.lib.study import Measures, Outcome
from experiments.lib.words import (
    average_difference,
    average_differences,
    line_rows,
    text_of,
)
from pwiser_jax import metrics

EPOCHS = 24  # of a curve
CURVE = tuple(f"valid_auc_{epoch}" for epoch in range(1, EPOCHS + 1))
END = ("last_slope", "last_gain", "epochs", "epoch_steps")


def curve(outcome: Outcome) -> Measures:
    """Validation AUC after each of the first epochs; of a shorter run its last."""
    lines = _lines(outcome)
    measures: dict[tuple[str, str], float] = {}
    for k, name in enumerate(CURVE):
        line = lines[min(k, len(lines) - 1)]
        for task, auc in line["auc"].items():
            measures[task, name] = np.nan if auc is None else auc
    return measures


def end(outcome: Outcome) -> Measures:
    """The end of a run, by head.

    `last_slope`: least-squares slope of validation AUC per epoch over the last
    `train.patience` epochs; NaN for a shorter run. `last_gain`: AUC of the kept epoch
    less that of as many epochs before it.
    """
    from pwiser_jax.training.run.folder import run_config  # loads jax

    lines, patience = _lines(outcome), run_config(outcome.folder).train.patience
    means = [line["mean_auc"] or -np.inf for line in lines]
    best = int(np.argmax(means))
    measures: dict[tuple[str, str], float] = {}
    for task in lines[-1]["auc"]:
        aucs = [np.nan if x["auc"][task] is None else x["auc"][task] for x in lines]
        last = np.array(aucs[-1 - patience :])
        long = len(last) > patience > 0
        slope = np.polyfit(np.arange(len(last)), last, 1)[0] if long else np.nan
        measures[task, END[0]] = float(slope)
        measures[task, END[1]] = float(aucs[best] - aucs[max(best - patience, 0)])
        measures[task, END[2]] = float(len(lines))
        measures[task, END[3]] = lines[0]["step"] / (lines[0]["epoch"] + 1)
    return measures


def _lines(outcome: Outcome) -> list[dict]:
    from pwiser_jax.training.run.metrics import read_metrics  # loads jax

    return [line for line in read_metrics(outcome.folder) if "mean_auc" in line]


def area(part: pl.DataFrame) -> pl.DataFrame:
    """Adds the area under each run's curve, divided by its epochs: a mean AUC."""
    mean = pl.mean_horizontal(pl.col(name).fill_nan(None) for name in CURVE)
    return part.with_columns(mean.alias("area"))


def curve_lines(
    part: pl.DataFrame, tasks: tuple[str, ...], losses: list[str]
) -> pl.DataFrame:
    """Mean AUC against steps: rows of `plots.interval_lines`."""
    rows = []
    for task in tasks:
        for loss in losses:
            own = part.filter((pl.col("task") == task) & (pl.col("loss") == loss))
            for epoch, name in enumerate(CURVE, 1):
                values = own.filter(pl.col(name).is_finite())[name].to_numpy()
                mean = metrics.mean_interval(values)
                steps = epoch * own["epoch_steps"][0]
                rows.append((task, loss, steps, mean.value, mean.low, mean.high))
    return line_rows(rows)


def gap_lines(
    part: pl.DataFrame, tasks: tuple[str, ...], losses: list[str]
) -> pl.DataFrame:
    """AUC minus BCE by epoch: rows of `plots.interval_lines`."""
    rows = []
    for task in tasks:
        for loss in losses:
            gaps = average_differences(part, task, loss, "bce", CURVE)
            for epoch, gap in enumerate(gaps, 1):
                rows.append((task, loss, epoch, gap.value, gap.low, gap.high))
    return line_rows(rows)


def ends_table(part: pl.DataFrame, tasks: tuple[str, ...]) -> pl.DataFrame:
    """A row an arm and head: how the mean curve ends, and whether it still rises."""
    rows = []
    for (loss,), own in part.group_by("loss", maintain_order=True):
        for task in tasks:
            of_task = own.filter(pl.col("task") == task)
            slope = metrics.mean_interval(_finite(of_task, END[0]))
            rows.append(
                {
                    "Arm": arm_title(str(loss)),
                    "Head": task.upper(),
                    "Epochs": of_task["epochs"].mean(),
                    "At the cap [%]": own["at_cap"].mean(),
                    "Slope of the last epochs": text_of(slope),
                    "Flat": _flat(slope),
                    "Gain of the epochs before the kept one": text_of(
                        metrics.mean_interval(_finite(of_task, END[1]))
                    ),
                }
            )
    return pl.DataFrame(rows, infer_schema_length=None)


def _flat(slope: metrics.Interval) -> str:
    if np.isnan(slope.low):
        return "unknown"
    return "no" if slope.low > 0 else "yes"


def areas_table(
    part: pl.DataFrame, tasks: tuple[str, ...], losses: list[str]
) -> pl.DataFrame:
    """A row a loss and head: area under the curve, and its difference to BCE's."""
    part, rows = area(part), []
    for task in tasks:
        for loss in losses:
            own = part.filter((pl.col("task") == task) & (pl.col("loss") == loss))
            row = {"Head": task.upper(), "Arm": arm_title(loss)}
            row["Mean AUC of the epochs"] = f"{own['area'].mean():.4f}"
            if loss != "bce":
                for name, column in (
                    ("Minus BCE", "area"),
                    ("After the first epoch", CURVE[0]),
                    (f"After {EPOCHS} epochs", CURVE[-1]),
                ):
                    gap = average_difference(part, task, loss, "bce", column)
                    row[name] = text_of(gap)
                row["In words"] = early_gain(part, task, loss)
            rows.append(row)
    return pl.DataFrame(rows, infer_schema_length=None)


def early_gain(part: pl.DataFrame, task: str, loss: str) -> str:
    """Whether an arm's lead on BCE is one of the first epochs alone."""
    gaps = average_differences(part, task, loss, "bce", CURVE)
    ahead = next((k for k, gap in enumerate(gaps) if not gap.low > 0), len(gaps))
    if ahead == len(gaps):
        return "ahead of BCE from the first epoch to the last"
    if not ahead:
        at_end = "but at the end" if gaps[-1].low > 0 else "nor at the end"
        return f"not ahead of BCE in the first epoch {at_end}"
    epochs = "the first epoch" if ahead == 1 else f"the first {ahead} epochs"
    if gaps[-1].low > 0:
        return f"ahead of BCE in {epochs} and at the end"
    return f"ahead of BCE in {epochs} alone"


def _finite(rows: pl.DataFrame, column: str) -> np.ndarray:
    return rows.filter(pl.col(column).is_finite())[column].to_numpy()
