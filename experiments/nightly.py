"""Nightly updates by two commands: a warm start on a day's rows, or all days anew.

    python -m experiments.all --only nightly --output runs/experiments

A stream to which new users and items come every day. Each night both ways train, a
fifth of the day's sessions chooses the epoch, and the next day is the test. "warm" runs
`prepare --extend RUN` on the day's rows and `train --warm-start RUN`, where RUN is that
of the night before; "retrained" runs `prepare` on the rows of all days so far and
`train`. Both begin with one run on the first days. Runs of one seed are a pair.
"""

import io
from contextlib import redirect_stdout
from dataclasses import replace
from itertools import product
from pathlib import Path

import polars as pl

from experiments.drift import auc_gap, day_pictures, measures
from experiments.lib.datasets import CONFIGS, Dataset
from experiments.lib.grid import in_turn
from experiments.lib.runs import Run, fixed
from experiments.lib.streams import GROWING, growing, night
from experiments.lib.study import Experiment, Finding, Study, with_tags
from experiments.lib.words import change, text_of
from pwiser_jax import cli
from pwiser_jax.atomic import write_whole
from pwiser_jax.data.prepared.manifest import FILE, read_manifest
from pwiser_jax.host import free_programs
from pwiser_jax.reports.html import TableBlock
from pwiser_jax.training.run.folder import RESULT, config_tree, write_json

NAME = "nightly"
MODEL = "mmoe"
LOSS = "bce"
BEGIN = 3  # days of the first run
PAIR = ((LOSS, "warm"), (LOSS, "retrained"))


def find(study: Study) -> Finding:
    if study.tables is None:
        _stream(study)
    results = with_tags(study.table(NAME).frame)
    results = results.with_columns(pl.col("day").cast(pl.Int64))
    gap = auc_gap(results, *PAIR)
    rows = {
        mode: float(results.filter(pl.col("mode") == mode)["rows"].to_numpy().mean())
        for mode in ("warm", "retrained")
    }
    share = rows["warm"] / rows["retrained"]
    answer = (
        f"On the next day a nightly warm start {change('CTCVR AUC', gap)} against "
        f"training anew on all days so far, with {share:.0%} of the rows."
    )
    blocks = [
        TableBlock(_by_task(results), "Warm start minus training anew, next day"),
        TableBlock(_by_day(results), "What a night adds"),
        *day_pictures(results, "growing stream"),
    ]
    return Finding(answer, blocks)


def _stream(study: Study) -> None:
    """Trains every night both ways, through the commands."""
    count = max(study.scale.rows, 30_000)
    place = study.place / f"nightly_{count}"
    stream = growing(count)
    place.mkdir(parents=True, exist_ok=True)
    schema = place / "schema.yaml"
    write_whole(schema, GROWING)
    days = range(BEGIN, BEGIN + study.scale.days)
    dataset = Dataset("growing stream", "growing stream", place, CONFIGS / "synthetic")
    results = []
    with in_turn(study.runs / place.name):
        planned = study.grid(dataset, [MODEL], [LOSS], study.scale.seeds)
        last = {}
        for each in planned:
            first = study.runs / place.name / each.name / "first"
            last[each.name] = _night(each, stream, schema, first, 0, BEGIN - 1, None)
        for day in days:
            for each, mode in product(planned, ("warm", "retrained")):
                warm = mode == "warm"
                begin, before = (day, last[each.name]) if warm else (0, None)
                run = study.runs / place.name / each.name / f"{mode}-day{day}"
                _night(each, stream, schema, run, begin, day, before)
                made, name = _tagged(each, run, day, mode), run.relative_to(study.runs)
                results += measures(made, run, name.as_posix())
                if warm:
                    last[each.name] = run
            free_programs()
    types = {"value": pl.Float64, "reason": pl.String}
    table = pl.DataFrame(results, schema_overrides=types, infer_schema_length=None)
    study.table(NAME).add(table.with_columns(pl.lit(dataset.name).alias("dataset")))


def _night(
    planned: Run,
    stream: pl.DataFrame,
    schema: Path,
    run: Path,
    first: int,
    day: int,
    before: Path | None,
) -> Path:
    """Prepares and trains days `first` to `day`, from the run `before` if any."""
    folder = run.with_name(f"{run.name}-data")
    if not (folder / FILE).is_file():
        raw = run.with_name(f"{run.name}.parquet")
        raw.parent.mkdir(parents=True, exist_ok=True)
        night(stream, first, day).write_parquet(raw)
        extend = () if before is None else (f"--extend={before}",)
        prepare = f"--source={raw}", f"--schema={schema}", f"--output={folder}"
        _command("prepare", "table", *prepare, *extend)
        raw.unlink()
    if not (run / RESULT).is_file():
        config = run.with_name(f"{run.name}.json")  # which is YAML too
        write_json(config, config_tree(planned.config))
        start = () if before is None else (f"--warm-start={before}",)
        train = f"--config={config}", f"--data.path={folder}", f"--output={run}"
        _command("train", *train, *start)
    return run


def _command(*words: str) -> None:
    """A command of `pwiser`, in this process; raises where it fails."""
    with redirect_stdout(io.StringIO()):
        code = cli.main(list(words))
    if code:
        raise RuntimeError(f"pwiser {' '.join(words)} ended with {code}")


def _tagged(planned: Run, run: Path, day: int, mode: str) -> Run:
    """The run with its day, its way, its rows and the ids that the day added."""
    manifest = read_manifest(run / "data")
    config = planned.config
    data = replace(config.data, path=str(run.with_name(f"{run.name}-data")))
    sizes = {field.name: field.size for field in manifest.schema.categorical}
    tags = {
        "day": day + 1,
        "mode": mode,
        "rows": manifest.splits["train"].rows,
        "users": sizes["user_id"],
        "items": sizes["item_id"],
    }
    return replace(planned, configure=fixed(replace(config, data=data)), tags=tags)


def _by_task(results: pl.DataFrame) -> pl.DataFrame:
    tasks = results["task"].unique(maintain_order=True)
    return pl.DataFrame(
        [
            {"Task": task.upper(), "AUC": text_of(auc_gap(results, *PAIR, task=task))}
            for task in tasks
        ]
    )


def _by_day(results: pl.DataFrame) -> pl.DataFrame:
    """Rows and ids of each night, which are the same for all seeds."""
    nights = results.select("day", "mode", "rows", "users", "items").unique()
    warm, anew = (nights.filter(pl.col("mode") == m) for m in ("warm", "retrained"))
    joined = warm.join(anew, on="day", suffix="_anew").sort("day")
    return joined.select(
        pl.col("day").alias("Test day"),
        pl.col("rows").alias("Rows, warm"),
        pl.col("rows_anew").alias("Rows, anew"),
        pl.col("users").alias("Users with an id, warm"),
        pl.col("items").alias("Items with an id, warm"),
    )


EXPERIMENT = Experiment(
    NAME,
    "Nightly updates",
    "New users and items come every day: is a warm start by `prepare --extend` and "
    "`train --warm-start` on the day's rows as good as training anew on all rows?",
    find,
)
