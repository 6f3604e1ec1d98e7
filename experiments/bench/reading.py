"""Measures how fast rows are prepared and read, and whether training waits.

    python -m experiments.bench.reading --work /tmp/bench

AliExpress files of two sizes are generated in the publisher's format and zipped, then
prepared; the larger one is read in batches and trained on. The measurements take turns,
`--rounds` times, each in its own process that reports its peak memory: resident pages,
including those of mapped files. "cold": the cache's files were dropped from the
system's file cache.
"""

import json
import os
import shutil
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from experiments.bench.tables import origin, spread, write_results
from experiments.lib.measure import run
from pwiser_jax.config import Config, DataConfig, LossConfig
from pwiser_jax.data.batches.batches import Batch, epoch_batches, sequential_batches
from pwiser_jax.data.batches.prefetch import prefetched
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.models.config import ModelConfig
from pwiser_jax.options import Parser, PositiveInt
from pwiser_jax.reports.tables import to_markdown, to_rich

BATCH_SIZES = (2_048, 65_536)
TRAINED = {
    "shared_bottom": {2_048: 60, 65_536: 4},
    "mmoe": {2_048: 20},
}
WARM_UP = 3


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        work: a folder for the generated files; existing files are reused.
        output: the folder of reading.csv and reading.md.
        rows: train rows of the two AliExpress datasets.
        rounds: number of measurements of each.
    """

    work: Path
    output: Path = Path("experiments/results")
    rows: tuple[PositiveInt, PositiveInt] = (1_000_000, 5_000_000)
    rounds: PositiveInt = 3


# One measurement, in a process of its own: `python -m experiments.bench.reading
# --measure read ...` prints a JSON object.


def read(folder: Path, batch_size: int, order: str, cold: bool) -> dict[str, float]:
    """Rows per second of reading batches."""
    if cold:
        _drop(folder)
    rows = Prepared(folder).load("train")
    started = time.perf_counter()
    count = sum(int(batch.mask.sum()) for batch in _batches(rows, batch_size, order))
    seconds = time.perf_counter() - started
    return {"rows": count, "seconds": seconds, "rows_per_second": count / seconds}


def _batches(rows: Rows, batch_size: int, order: str) -> Iterator[Batch]:
    if order == "sequential":
        return sequential_batches(rows, batch_size)
    wanted = 8 if order == "shuffled, 8 conversions" else 0
    return epoch_batches(rows, batch_size, seed=0, epoch=0, min_conversions=wanted)


def _drop(folder: Path) -> None:
    """Asks the system to forget the cached pages of the cache's files."""
    for path in (folder / "cache").rglob("*.npy"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def make_cache(folder: Path) -> dict[str, float]:
    """Makes the cache of the train rows from Parquet."""
    shutil.rmtree(folder / "cache", ignore_errors=True)
    started = time.perf_counter()
    count = len(Prepared(folder).load("train"))
    seconds = time.perf_counter() - started
    return {"rows": count, "seconds": seconds, "rows_per_second": count / seconds}


def train(folder: Path, model: str, batch_size: int, steps: int) -> dict[str, float]:
    """Rows per second of training steps, and the share of time spent waiting."""
    import jax

    from pwiser_jax.training import objective as objectives
    from pwiser_jax.training.devices.programs import replicated, stacked, train_program
    from pwiser_jax.training.state import new_state
    from pwiser_jax.training.step import Hyper, step_spec

    config = Config(
        DataConfig(str(folder), batch_size),
        ModelConfig(name=model),
        LossConfig(ranking="pwiser"),
    )
    prepared = Prepared(folder)
    rows, schema = prepared.load("train"), prepared.schema
    objective, weights = objectives.build(config.loss, schema.labels, "ctcvr")
    spec = step_spec(config, schema, objective)
    program = train_program(spec)
    hyper = Hyper(0, 1e-3, 1e-6, weights)
    state = replicated(new_state(spec, 0))
    batches = epoch_batches(rows, batch_size, seed=0, epoch=0)
    waited = total = 0.0
    with prefetched(stacked([batch], 1) for batch in batches) as ahead:
        for step in range(WARM_UP + steps):
            started = time.perf_counter()
            batch = next(ahead)
            at_hand = time.perf_counter()
            state, values = program(state, batch, 1, hyper)
            jax.block_until_ready(values)
            if step >= WARM_UP:
                waited += at_hand - started
                total += time.perf_counter() - started
    return {
        "rows": steps * batch_size,
        "seconds": total,
        "rows_per_second": steps * batch_size / total,
        "waiting": waited / total,
    }


MEASURES = {"read": read, "cache": make_cache, "train": train}


def _measured(what: str, **arguments: Any) -> dict[str, float]:
    given = {key: str(v) if isinstance(v, Path) else v for key, v in arguments.items()}
    cost = run("experiments.bench.reading", "--measure", what, json.dumps(given))
    return json.loads(cost.output) | {"peak_mib": cost.peak_mib}


# The benchmark: generates, prepares, and measures one thing after another.


def bench(options: Options) -> pl.DataFrame:
    """All measurements of all rounds, one row each."""
    lines: list[dict[str, Any]] = []
    for turn in range(options.rounds):
        lines += [{"round": turn, **line} for line in _round(options)]
    return pl.DataFrame(lines, infer_schema_length=None)


def _round(options: Options) -> list[dict[str, Any]]:
    lines: list[dict[str, Any]] = []

    def note(what: str, how: str, batch: int | None, values: dict[str, Any]) -> None:
        lines.append({"what": what, "how": how, "batch_size": batch, **values})
        Console(stderr=True).print(lines[-1])

    options.work.mkdir(parents=True, exist_ok=True)
    folder = options.work
    for rows in options.rows:
        source, folder = _zipped(options.work, rows), options.work / f"prepared_{rows}"
        arguments = [f"--source={source}", f"--output={folder}", "--overwrite"]
        cost = run("pwiser_jax", "prepare", "aliexpress", *arguments)
        splits = Prepared(folder).manifest.splits.values()
        count = sum(split.rows for split in splits)
        values = {
            "rows": count,
            "seconds": cost.seconds,
            "rows_per_second": count / cost.seconds,
            "peak_mib": cost.peak_mib,
        }
        note("prepare aliexpress", "raw files in a zip", None, values)
    note("make the cache", "of train", None, _measured("cache", folder=folder))
    for batch in BATCH_SIZES:
        for order in ("sequential", "shuffled", "shuffled, 8 conversions"):
            for cold in (False, True):
                values = _measured(
                    "read", folder=folder, batch_size=batch, order=order, cold=cold
                )
                note("read batches", f"{order}, {_heat(cold)}", batch, values)
    for model, sizes in TRAINED.items():
        for batch, steps in sizes.items():
            values = _measured(
                "train", folder=folder, model=model, batch_size=batch, steps=steps
            )
            note("train", model, batch, values)
    return lines


def _heat(cold: bool) -> str:
    return "cold" if cold else "warm"


def _zipped(work: Path, rows: int) -> Path:
    """The zip of a generated country; created once."""
    target, raw = work / f"aliexpress_{rows}.zip", work / f"raw_{rows}"
    if target.exists():
        return target
    run(
        "experiments.bench.raw.make_raw",
        "aliexpress",
        f"--rows={rows}",
        f"--output={raw}",
    )
    partial = target.with_suffix(".partial")
    with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as file:
        for path in sorted(raw.glob("*.csv")):
            file.write(path, f"AliExpress_NL/{path.name}")
    partial.rename(target)
    shutil.rmtree(raw)
    return target


def formatted(table: pl.DataFrame) -> pl.DataFrame:
    """The measurements as texts: medians, in brackets minimum and maximum."""
    lines = []
    key = ("what", "how", "batch_size", "rows")
    for (what, how, batch, rows), of in table.group_by(key, maintain_order=True):
        waiting = of["waiting"].drop_nulls().to_list()
        lines.append(
            {
                "What": what,
                "How": how,
                "Batch": f"{batch:,}" if batch else "",
                "Rows": f"{rows:,}",
                "Seconds": spread(of["seconds"].to_list(), 1),
                "Rows/s": spread(of["rows_per_second"].to_list(), 0),
                "Peak MiB": f"{of['peak_mib'].max():,.0f}",
                "Waiting": spread(waiting, 2, "%") if waiting else "",
            }
        )
    return pl.DataFrame(lines)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["--measure"]:
        given = json.loads(arguments[2])
        given["folder"] = Path(given["folder"])
        print(json.dumps(MEASURES[arguments[1]](**given)))
        return 0
    parser = Parser(prog="experiments.bench.reading", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(arguments))))
    made = origin("reading --work DIR", rounds=options.rounds)
    table = bench(options)
    texts = formatted(table)
    text = f"{__doc__}\n{made}\n\n{to_markdown(texts)}"
    write_results(options.output / "reading", table, text)
    Console().print(to_rich(texts, "Reading"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
