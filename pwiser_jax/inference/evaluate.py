"""Measures a run's best checkpoint on a split of its data."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from pwiser_jax.config import Config
from pwiser_jax.data.batches.rows import Rows, refuse_bad_weights
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import refuse_other_data
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import (
    Auc,
    Evaluation,
    SessionMean,
    evaluate,
    level_name,
    predict_task,
    session_measures,
)
from pwiser_jax.inference.load import load_best
from pwiser_jax.tasks import joint_task, measured, title
from pwiser_jax.training.devices import processes
from pwiser_jax.training.logits import predict_logits
from pwiser_jax.training.run import protocol
from pwiser_jax.training.run.folder import CONFIG, run_config, write_json

Line = tuple[str, ...]


def evaluate_run(
    run: str | Path,
    split: str = "valid",
    *,
    data: str | Path | None = None,
    sessions: bool = False,
    price: str | None = None,
) -> Evaluation:
    """Measures a run's best checkpoint; writes evaluation_SPLIT.json into its folder.

    Args:
        run: the run's folder.
        split: "valid" or "test".
        data: a prepared folder of the same encoding; by default the run's, which must
            still hold the same rows.
        sessions: measure the ranking within each group too: `session_measures`.
        price: an extra column, the price of a conversion, for revenue by session.

    Raises:
        UserError: no such run, checkpoint or split, or data that have changed; rows
            without groups or without that price.
    """
    run = Path(run)
    config = run_config(run)
    folder = _run_data(run, config) if data is None else Path(data)
    refuse_other_data(run, folder, rows=data is None)
    prepared = Prepared(folder)
    rows = prepared.load(split)
    if sessions or price is not None:
        check_sessions(rows, folder, split, price)
    state = load_best(run, config, prepared.schema)
    logits = predict_logits(config, prepared.schema, state, rows)
    evaluation = evaluate(
        logits,
        rows.labels,
        rows.group,
        label_names=prepared.schema.labels,
        space=config.model.cvr_space,
        split=split,
        note=protocol.note(config.protocol, split),
    )
    if sessions or price is not None:
        top = joint_task(prepared.schema.labels, len(prepared.schema.labels))
        space = config.model.cvr_space
        prediction = predict_task(top, logits, prepared.schema.labels, space, len(rows))
        measures = session_measures(
            prediction.scores,
            rows.labels[:, -1] == 1,
            rows.group,
            None if price is None else rows.extra[price],
        )
        evaluation = replace(evaluation, sessions=measures)
    if processes.first():
        path = run / f"evaluation_{split}.json"
        try:
            write_json(path, evaluation.to_dict())
        except OSError as error:
            raise UserError(f"{path} cannot be written: {error.strerror}") from None
    return evaluation


def check_sessions(rows: Rows, folder: Path, split: str, price: str | None) -> None:
    """Raises a UserError where measures by session are not defined."""
    if len(np.unique(rows.group)) == len(rows):
        raise UserError(
            f"no two {split} rows of {folder} share a group: prepare the data with a "
            "group column, or leave out --sessions and --price"
        )
    if price is None:
        return
    if price not in rows.extra:
        raise UserError(
            f"--price {price!r} is no extra column of {folder} (it has "
            f"{', '.join(rows.extra) or 'none'})"
        )
    refuse_bad_weights(f"--price: column {price!r}", rows.extra[price])


def read_evaluation(run: Path, split: str) -> Evaluation:
    """What `evaluate_run` has written into a run's folder."""
    tree = json.loads((run / f"evaluation_{split}.json").read_text(encoding="utf-8"))
    return Evaluation.from_dict(tree, Prepared(run / "data").schema.labels)


def _run_data(run: Path, config: Config) -> Path:
    """The prepared folder that a run was trained on.

    Raises:
        UserError: the folder is missing.
    """
    if not config.data.path:
        raise UserError(f"{run / CONFIG} has no data.path; --data names the folder")
    folder = Path(config.data.path)
    if not folder.is_dir():
        seen = f" from {Path.cwd()}" if not folder.is_absolute() else ""
        raise UserError(
            f"{folder}: no such folder{seen}; --data names the prepared folder of {run}"
        )
    return folder


def summary(evaluation: Evaluation) -> str:
    """A table of the tasks and of conversions over lower levels, then any note.

    Conversions over a level, and rows of a session, are ranked by the score of the
    highest joint task (CTCVR).
    """
    labels = evaluation.label_names
    header = ("", "rows", "positives", "AUC", "95% interval", "log loss", "pred/obs")
    lines: list[Line] = [header]
    for task in measured(labels):
        measures = evaluation.tasks[task.name]
        lines.append(
            (
                title(task, labels),
                f"{measures.rows:,}",
                f"{measures.positives:,}",
                *_auc(measures.auc),
                _number(measures.log_loss),
                _number(measures.calibration.predicted_over_observed, 3),
            )
        )
    top = measured(labels)[len(labels) - 1]
    for name, pair in evaluation.pairs[top.name].items():
        if name.startswith(f"{level_name(len(labels), labels)}_over_"):
            rows = f"{pair.positives + pair.negatives:,}"
            shown = name.replace("_", " ")
            lines.append((shown, rows, f"{pair.positives:,}", *_auc(pair), "", ""))
    note = [] if evaluation.note is None else [evaluation.note]
    return "\n".join([*aligned(lines), *_sessions(evaluation), *note])


def _sessions(evaluation: Evaluation) -> list[str]:
    """A table of the measures by session, below an empty line."""
    if evaluation.sessions is None:
        return []
    lines: list[Line] = [("by session", "sessions", "mean", "95% interval")]
    for name, measure in evaluation.sessions.items():
        shown = name.upper() if name in ("gauc", "ndcg") else name.replace("_", "@")
        lines.append((shown, f"{measure.sessions:,}", *_auc(measure)))
    return ["", *aligned(lines)]


def aligned(lines: list[Line]) -> list[str]:
    """Lines of cells as text, the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = (
        [
            cell.rjust(width) if at else cell.ljust(width)
            for at, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in lines
    )
    return ["  ".join(text).rstrip() for text in texts]


def _auc(auc: Auc | SessionMean) -> tuple[str, str]:
    if auc.value is None:
        return "-", auc.reason or ""
    if auc.low is None:
        return f"{auc.value:.4f}", "no interval"
    return f"{auc.value:.4f}", f"[{auc.low:.4f}, {auc.high:.4f}]"


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
