"""Drift and live use: day by day, warm or from scratch, and how long a request takes.

    python -m experiments.all --only drift --output runs/experiments

Prequential: up to day d is trained (four fifths of day d's groups; the rest chooses the
epoch), day d + 1 is tested. "retrained" starts from new weights on all days so far,
"warm" from yesterday's best weights on day d alone. The stream is synthetic, with other
rates from its eighth day on, and KuaiRand's days where its files are given.
"""

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import polars as pl

from experiments.lib.datasets import CONFIGS, Dataset
from experiments.lib.grid import Cell
from experiments.lib.measure import median_seconds
from experiments.lib.streams import days_of, deal, prepare_days, prepare_shift
from experiments.lib.study import Experiment, Finding, Study
from experiments.lib.words import listed, text_of
from pwiser_jax.data.batches.rows import feature_rows
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import read_manifest
from pwiser_jax.data.raw.frames import scan_parquet
from pwiser_jax.inference.evaluate import evaluate_run, run_config
from pwiser_jax.inference.load import load_best
from pwiser_jax.metrics import Interval, mean_interval
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import interval_lines
from pwiser_jax.tasks import measured
from pwiser_jax.training.logits import predict_logits
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.checkpoint import Checkpoints
from pwiser_jax.training.run.folder import RESULT, config_hash, make_run
from pwiser_jax.training.run.progress import Silent
from pwiser_jax.training.run.record import Progress

NAME = "drift"
MODEL = "mmoe"
LOSSES = ("bce", "pwiser")
MODES = ("warm", "retrained")
BEGIN = 3  # days before the first test day
SIZES = (1, 100, 10_000)


def find(study: Study) -> Finding:
    blocks: list[TableBlock | Picture] = []
    parts, run = [], Path()
    for dataset in _streams(study):
        found, run = _stream(study, dataset)
        parts.append(found)
        blocks += _blocks(found, dataset.name)
    results = pl.concat(parts)
    latency = latencies(run)
    blocks.append(TableBlock(latency, "A call of the compiled model"))
    return Finding(_answer(results, latency), blocks)


def _streams(study: Study) -> list[Dataset]:
    # A day's validation rows must hold conversions.
    rows, place = max(study.scale.rows, 30_000), study.place
    found = [
        Dataset(
            "synthetic shift",
            place / f"shift_{rows}",
            CONFIGS / "synthetic",
            partial(prepare_shift, rows=rows),
        )
    ]
    if study.kuairand is not None:
        found.append(
            Dataset(
                "kuairand, like",
                place / "kuairand_days",
                CONFIGS / "kuairand",
                partial(prepare_days, study.kuairand),
                overrides=study.scale.kuairand,
            )
        )
    return found


def _stream(study: Study, dataset: Dataset) -> tuple[pl.DataFrame, Path]:
    """All days of all cells; the table is written after each stream.

    Returns:
        A row a day, task and metric of every stream, and the last run's folder.
    """
    base = dataset.ready()
    days = days_of(base)[: BEGIN + study.scale.days]
    rows: list[dict[str, Any]] = []
    run = Path()
    cells = study.cells(dataset, [MODEL], LOSSES, min(study.scale.seeds, 3))
    for cell in cells:
        for mode in MODES:
            before = None
            for index in range(BEGIN - 1, len(days) - 1):
                day = days[index]
                first = day if mode == "warm" and before else days[0]
                folder = study.place / f"{dataset.folder.name}_{first}_{day}"
                deal(base, folder, first, day)
                config = replace(
                    cell.config, data=replace(cell.config.data, path=str(folder))
                )
                cell_run = f"{dataset.folder.name}/{cell.name}-{mode}-day{index}"
                run = study.runs / cell_run
                started = before if mode == "warm" else None
                _train(replace(cell, config=config), run, started)
                before = run
                rows += _measures(study, cell, dataset, mode, index + 1, cell_run)
    table = pl.DataFrame(rows)
    study.table(NAME).add(table.drop("mode", "day"))
    return table, run


def _train(cell: Cell, run: Path, before: Path | None) -> None:
    """A run of one day; with `before`, it starts from that run's best weights."""
    config = cell.config
    if before is not None and not (run / RESULT).exists():
        make_run(run, config, Path(config.data.path))
        schema = Prepared(Path(config.data.path)).schema
        state = load_best(before, run_config(before), schema)
        state = state._replace(step=jnp.zeros_like(state.step))
        last = Checkpoints(run, "last")
        if not any((run / "checkpoints" / "last").glob("[0-9]*")):
            last.save(0, state, {"runs": [asdict(Progress())]})
        last.close()
    train(config, run, Silent())


def _measures(
    study: Study, cell: Cell, dataset: Dataset, mode: str, day: int, run: str
) -> list[dict[str, Any]]:
    path = study.runs / run / "evaluation_test.json"
    if path.exists():
        report = json.loads(path.read_text(encoding="utf-8"))
    else:
        report = evaluate_run(path.parent, "test")
    labels = read_manifest(dataset.folder).schema.labels
    rows = []
    for task in measured(labels):
        found = report[task.name]
        calibration = found["calibration"]["predicted_over_observed"]
        numbers = {
            "auc": found["auc"]["value"],
            "log_loss": found["log_loss"],
            "predicted_over_observed": calibration,
        }
        rows += [
            {
                "dataset": dataset.name,
                "model": cell.model,
                "loss": cell.loss,
                "tags": f'{{"day": {day}, "mode": "{mode}"}}',
                "seed": cell.seed,
                "split": "test",
                "task": task.name,
                "metric": metric,
                "value": value,
                "run": run,
                "config_hash": config_hash(cell.config),
                "mode": mode,
                "day": day,
            }
            for metric, value in numbers.items()
        ]
    return rows


def _blocks(found: pl.DataFrame, name: str) -> list[TableBlock | Picture]:
    texts = {
        "auc": "AUC on the next day",
        "predicted_over_observed": "predicted over observed, 1 is calibrated",
    }
    blocks: list[TableBlock | Picture] = []
    for metric, text in texts.items():
        rows = []
        own = found.filter((pl.col("metric") == metric) & pl.col("value").is_finite())
        keys = ["task", "loss", "mode", "day"]
        for (task, loss, mode, day), part in own.group_by(keys, maintain_order=True):
            mean = mean_interval(part["value"].to_numpy())
            line = f"{loss}, {mode}"
            rows.append((task, line, day, mean.value, mean.low, mean.high))
        names = ["panel", "line", "x", "value", "low", "high"]
        # Intervals of a few seeds would hide the days' own ups and downs.
        lines = pl.DataFrame(rows, schema=names, orient="row").with_columns(
            pl.lit(None, pl.Float64).alias("low"),
            pl.lit(None, pl.Float64).alias("high"),
        )
        figure = interval_lines(lines, "test day", text, baseline="bce, retrained")
        caption = f"{name}: means over seeds, each day tested once."
        blocks.append(Picture(figure, f"{text} by day, {name}.", caption))
    return blocks


def latencies(run: Path) -> pl.DataFrame:
    """Milliseconds from prepared rows to logits, for requests of several sizes."""
    config = run_config(run)
    folder = Path(config.data.path)
    prepared = Prepared(folder)
    schema = prepared.schema
    state = load_best(run, config, schema)
    files = [folder / n for n in prepared.manifest.splits["train"].files]
    frame = scan_parquet(files).head(max(SIZES)).collect()
    rows = []
    for size in SIZES:
        taken = frame.head(size)
        own = replace(config, data=replace(config.data, eval_batch_size=taken.height))
        inputs = feature_rows(taken, schema, None)
        call = partial(predict_logits, own, schema, state, inputs)
        milliseconds = 1e3 * median_seconds(call)
        rows.append((taken.height, milliseconds, 1e3 * milliseconds / taken.height))
    names = ["rows", "milliseconds", "microseconds a row"]
    return pl.DataFrame(rows, schema=names, orient="row")


def _gap(own: pl.DataFrame, a: tuple[str, str], b: tuple[str, str]) -> Interval:
    """Mean over days of (loss, mode) a less b, with its interval over seeds."""
    parts = [
        own.filter((pl.col("loss") == loss) & (pl.col("mode") == mode))
        for loss, mode in (a, b)
    ]
    joined = parts[0].join(parts[1], on=["dataset", "seed", "day"])
    means = joined.group_by("seed").agg(
        (pl.col("value") - pl.col("value_right")).mean().alias("gap")
    )
    return mean_interval(means.sort("seed")["gap"].to_numpy())


def _answer(results: pl.DataFrame, latency: pl.DataFrame) -> str:
    own = results.filter(
        (pl.col("metric") == "auc")
        & (pl.col("task") == "ctcvr")
        & pl.col("value").is_finite()
    )
    texts = []
    for (dataset,), part in own.group_by("dataset", maintain_order=True):
        warm = _gap(part, ("bce", "warm"), ("bce", "retrained"))
        texts.append(f"{dataset}: warm start less retraining, BCE, {text_of(warm)}")
        for mode in MODES:
            gap = _gap(part, ("pwiser", mode), ("bce", mode))
            texts.append(f"PWiseR less BCE, {mode}, {text_of(gap)}")
    times = ", ".join(
        f"{rows:,} {'row' if rows == 1 else 'rows'} {milliseconds:.1f} ms"
        for rows, milliseconds, _ in latency.rows()
    )
    return f"CTCVR AUC on the next day: {listed(texts)}. A call of the model: {times}."


DRIFT = Experiment(
    NAME,
    "Drift and live use",
    "Day by day, is a warm start as good as training anew, does PWiseR's effect last, "
    "what becomes of calibration, and how long does a request take?",
    find,
)
