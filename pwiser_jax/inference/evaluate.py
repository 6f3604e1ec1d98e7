"""Measuring a run's best checkpoint on a split of its data."""

from pathlib import Path
from typing import Any

from pwiser_jax.config import Config, load_config
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import refuse_other_data
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import evaluate
from pwiser_jax.inference.load import load_best
from pwiser_jax.training.devices import processes
from pwiser_jax.training.logits import predict_logits
from pwiser_jax.training.run import protocol
from pwiser_jax.training.run.folder import CONFIG, write_json


def run_config(run: Path) -> Config:
    """The configuration of a run folder.

    Raises:
        UserError: the folder holds no run.
    """
    if not (run / CONFIG).is_file():
        raise UserError(f"{run} holds no run: {CONFIG} is missing")
    return load_config(run / CONFIG)


def evaluate_run(run: Path, split: str, *, data: Path | None = None) -> dict[str, Any]:
    """Writes evaluation_SPLIT.json into the run's folder and returns its tree.

    Args:
        run: the run's folder.
        split: "valid" or "test".
        data: a prepared folder of the same encoding; by default the run's own.
    Raises:
        UserError: no such run, checkpoint or split, or data of another encoding.
    """
    config = run_config(run)
    folder = data or Path(config.data.path)
    prepared = Prepared(folder)
    refuse_other_data(run, folder, rows=data is None)
    rows = prepared.load(split)
    state = load_best(run, config, prepared.schema)
    logits = predict_logits(config, prepared.schema, state, rows)
    report = evaluate(
        logits,
        rows.labels,
        rows.group,
        label_names=prepared.schema.labels,
        space=config.model.cvr_space,
        split=split,
    )
    if (note := protocol.note(config.protocol, split)) is not None:
        report = {"note": note, **report}
    if processes.first():
        write_json(run / f"evaluation_{split}.json", report)
    return report


def summary(report: dict[str, Any]) -> str:
    """A line a task: AUC with its interval, and log loss; below them any note."""
    lines = []
    for task, found in report.items():
        if not isinstance(found, dict) or "auc" not in found:
            continue
        auc, name = found["auc"], task.upper()
        if auc["value"] is None:
            lines.append(f"{name:8} AUC not defined: {auc['reason']}")
            continue
        interval = "no interval"
        if auc["low"] is not None:
            interval = f"[{auc['low']:.4f}, {auc['high']:.4f}]"
        lines.append(
            f"{name:8} AUC {auc['value']:.4f} {interval}"
            f"   log loss {found['log_loss']:.4f}"
        )
    return "\n".join([*lines, *([report["note"]] if "note" in report else [])])
