"""Drift and serving: warm starts or retraining, day by day, and the time of a request.

    python -m experiments.all --only drift --output runs/experiments

Prequential: train on days up to d (a fifth of day d's groups chooses the epoch), then
test on day d + 1. "retrained" trains new weights on all days so far; "warm" trains the
best weights of the previous day on day d only. The streams: a synthetic one whose rates
change on its eighth day, and KuaiRand's days if its files are given.
"""

from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl

from experiments.lib.datasets import CONFIGS, Dataset
from experiments.lib.grid import evaluation, in_turn
from experiments.lib.measure import median_seconds
from experiments.lib.result_table import tag_text
from experiments.lib.runs import Run, fixed
from experiments.lib.streams import days_of, deal, prepare_days, prepare_shift
from experiments.lib.study import Experiment, Finding, Study, with_tags
from experiments.lib.words import change, line_rows, text_of
from pwiser_jax.data.batches.rows import feature_rows
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import read_manifest
from pwiser_jax.data.raw.frames import scan_parquet
from pwiser_jax.inference.load import load_best
from pwiser_jax.metrics import Interval, mean_interval
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import interval_lines
from pwiser_jax.training.logits import predict_logits
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.folder import config_hash, run_config
from pwiser_jax.training.run.progress import Silent

NAME = "drift"
MODEL = "mmoe"
LOSSES = ("bce", "pwiser")
MODES = ("warm", "retrained")
BEGIN = 3  # days before the first test day
SIZES = (1, 100, 10_000)


def find(study: Study) -> Finding:
    if study.tables is not None:
        return _finding(with_tags(study.table(NAME).frame), None)
    tables, run = [], Path()
    for dataset in _streams(study):
        table, run = _stream(study, dataset)
        tables.append(table)
    return _finding(pl.concat(tables), latencies(run))


def _finding(results: pl.DataFrame, latency: pl.DataFrame | None) -> Finding:
    results = results.with_columns(pl.col("day").cast(pl.Int64))
    blocks: list[TableBlock | Picture] = [
        TableBlock(_gaps(results), "CTCVR AUC on the next day, mean over days")
    ]
    for (name,), part in results.group_by("dataset", maintain_order=True):
        blocks += day_pictures(part, str(name))
    if latency is not None:
        blocks.append(TableBlock(latency, "A call of the compiled model"))
    return Finding(_answer(results), blocks)


def _streams(study: Study) -> list[Dataset]:
    # A day's validation rows must hold conversions.
    rows, place = max(study.scale.rows, 30_000), study.place
    streams = [
        Dataset(
            "synthetic shift",
            "synthetic data with a shift",
            place / f"shift_{rows}",
            CONFIGS / "synthetic",
            partial(prepare_shift, rows=rows),
        )
    ]
    if study.kuairand is not None:
        streams.append(
            Dataset(
                "kuairand, like",
                "KuaiRand-Pure (conversions are likes)",
                place / "kuairand_days",
                CONFIGS / "kuairand",
                partial(prepare_days, study.kuairand),
                overrides=study.scale.kuairand,
            )
        )
    return streams


def _stream(study: Study, dataset: Dataset) -> tuple[pl.DataFrame, Path]:
    """All days of a stream; the result table is written at its end.

    Returns:
        One row per day, task and metric, and the last run's folder.
    """
    base = dataset.ready()
    days = days_of(base)[: BEGIN + study.scale.days]
    rows: list[dict[str, Any]] = []
    run = Path()
    planned = study.grid(dataset, [MODEL], LOSSES, min(study.scale.seeds, 3))
    with in_turn(study.runs / dataset.folder.name):
        for first, mode in product(planned, MODES):
            before = None
            for index in range(BEGIN - 1, len(days) - 1):
                day = days[index]
                warm = mode == "warm" and before is not None
                begin = day if warm else days[0]
                folder = study.place / f"{dataset.folder.name}_{begin}_{day}"
                deal(base, folder, begin, day)
                data = replace(first.config.data, path=str(folder))
                start = str(before) if warm else None
                config = replace(first.config, data=data, warm_start=start)
                name = f"{dataset.folder.name}/{first.name}-{mode}-day{index}"
                run = study.runs / name
                train(config, run, Silent())
                before = run
                tags = {"day": index + 1, "mode": mode}
                rows += measures(
                    replace(first, configure=fixed(config), tags=tags), run, name
                )
    types = {"value": pl.Float64, "reason": pl.String}
    table = pl.DataFrame(rows, schema_overrides=types, infer_schema_length=None)
    table = table.with_columns(pl.lit(dataset.name).alias("dataset"))
    study.table(NAME).add(table)
    return with_tags(table), run


def measures(planned: Run, folder: Path, name: str) -> list[dict[str, Any]]:
    """The rows of a run in the result table, measured on its test rows."""
    labels = read_manifest(Path(planned.config.data.path)).schema.labels
    rows = []
    for task, values in evaluation(folder, "test", labels).tasks.items():
        numbers = {
            "auc": values.auc.value,
            "log_loss": values.log_loss,
            "predicted_over_observed": values.calibration.predicted_over_observed,
        }
        rows += [
            {
                "model": planned.model,
                "loss": planned.loss,
                "tags": tag_text(planned.tags),
                "seed": planned.seed,
                "split": "test",
                "task": task,
                "metric": metric,
                "value": value,
                "reason": values.auc.reason if metric == "auc" else None,
                "run": name,
                "config_hash": config_hash(planned.config),
            }
            for metric, value in numbers.items()
        ]
    return rows


def day_pictures(results: pl.DataFrame, name: str) -> list[TableBlock | Picture]:
    """AUC and calibration by day, a line for each loss and mode."""
    texts = {
        "auc": "AUC on the next day",
        "predicted_over_observed": "predicted / observed (calibrated: 1)",
    }
    blocks: list[TableBlock | Picture] = []
    keys = ["task", "loss", "mode", "day"]
    for metric, text in texts.items():
        shown = results.filter(metric=metric).filter(pl.col("value").is_finite())
        # Means without intervals, which few seeds make wider than the days' changes.
        rows = [
            (task, f"{loss}, {mode}", day, part["value"].mean(), None, None)
            for (task, loss, mode, day), part in shown.group_by(
                keys, maintain_order=True
            )
        ]
        lines = line_rows(rows)
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
        batch = frame.head(size)
        data = replace(config.data, eval_batch_size=batch.height)
        inputs = feature_rows(batch, schema, None)
        call = partial(
            predict_logits, replace(config, data=data), schema, state, inputs
        )
        milliseconds = 1e3 * median_seconds(call)
        rows.append((batch.height, milliseconds, 1e3 * milliseconds / batch.height))
    names = ["Rows", "Time [ms]", "Time of a row [µs]"]
    return pl.DataFrame(rows, schema=names, orient="row")


def auc_gap(
    results: pl.DataFrame,
    a: tuple[str, str],
    b: tuple[str, str],
    task: str = "ctcvr",
) -> Interval:
    """Mean over days of (loss, mode) a minus b, with its interval over seeds."""
    part = results.filter(
        (pl.col("metric") == "auc")
        & (pl.col("task") == task)
        & pl.col("value").is_finite()
    )
    parts = [
        part.filter((pl.col("loss") == loss) & (pl.col("mode") == mode))
        for loss, mode in (a, b)
    ]
    joined = parts[0].join(parts[1], on=["dataset", "seed", "day"])
    means = joined.group_by("seed").agg(
        (pl.col("value") - pl.col("value_right")).mean().alias("gap")
    )
    return mean_interval(means.sort("seed")["gap"].to_numpy())


COMPARISONS = {
    "warm start minus retraining, BCE": (("bce", "warm"), ("bce", "retrained")),
    "PWiseR minus BCE, warm start": (("pwiser", "warm"), ("bce", "warm")),
    "PWiseR minus BCE, retrained": (("pwiser", "retrained"), ("bce", "retrained")),
}


def _gaps(results: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame(
        [
            {
                "Dataset": dataset,
                "Comparison": name,
                "Difference": text_of(auc_gap(part, *pair)),
            }
            for (dataset,), part in results.group_by("dataset", maintain_order=True)
            for name, pair in COMPARISONS.items()
        ]
    )


def _answer(results: pl.DataFrame) -> str:
    warm, on_warm, on_retrained = (
        auc_gap(results, *pair) for pair in COMPARISONS.values()
    )
    return (
        f"On the next day a warm start {change('CTCVR AUC', warm)} against retraining "
        f"(BCE), and PWiseR {change('CTCVR AUC', on_warm)} with a warm start and "
        f"{change('it', on_retrained)} retrained, against BCE (mean over streams)."
    )


EXPERIMENT = Experiment(
    NAME,
    "Drift and serving",
    "Day by day: is a warm start as good as retraining, does PWiseR's effect last, how "
    "does calibration change, and how long does a request take?",
    find,
)
