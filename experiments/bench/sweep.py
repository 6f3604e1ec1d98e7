"""How much faster are runs in one program than one after another?

    python -m experiments.bench.sweep --data data/kuairand --configs configs/kuairand

For each model and number of runs R, R runs (half of them BCE, half PWiseR, in pairs of
one seed) are trained for one epoch and validated, once to compile and once more to
time; R = 0 stands for solo runs, one after another. A full run is so many epochs.
"""

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl
from rich.console import Console

from experiments.lib.grid import Grid
from experiments.lib.measure import machine
from pwiser_jax.atomic import write_whole
from pwiser_jax.config import Config
from pwiser_jax.errors import UserError
from pwiser_jax.models.config import ModelName
from pwiser_jax.options import Parser
from pwiser_jax.reports.tables import to_markdown, to_rich, write_csv
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.progress import Silent
from pwiser_jax.training.sweep import train_sweep


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        data: a folder written by `pwiser prepare`.
        configs: a folder with MODEL_bce.yaml for each model.
        models: the models to time.
        runs: numbers of runs in a sweep; 0: two solo runs, one after another.
        output: the folder of NAME.csv and NAME.md.
        name: of the table's files.
    """

    data: Path
    configs: Path
    models: tuple[ModelName, ...] = ("single_task", "shared_bottom", "mmoe", "ple")
    runs: tuple[int, ...] = (0, 2, 8, 16)
    output: Path = Path("experiments/results")
    name: str = "sweep"


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = Parser(prog="experiments.bench.sweep")
    parser.add_class_arguments(Options, as_group=False)
    made = parser.instantiate(parser.parse(argv))
    options = Options(**vars(made))
    try:
        table = bench(options)
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return 2
    texts = table.with_columns(pl.col(pl.Float64).round(2)).cast(pl.String)
    write_csv(table, options.output / f"{options.name}.csv")
    page = f"{machine()}, {options.data.name}\n\n{to_markdown(texts)}"
    write_whole(options.output / f"{options.name}.md", page)
    Console().print(to_rich(texts, f"Sweeps: {machine()}"))
    return 0


def bench(options: Options) -> pl.DataFrame:
    """A row a model and number of runs."""
    rows = []
    for model in options.models:
        for runs in options.runs:
            grid = Grid(
                options.configs,
                options.data,
                [model],
                ["bce", "pwiser"],
                max(runs // 2, 1),
                ("--train.epochs=1",),
            )
            configs = [
                replace(c.config, data=replace(c.config.data, path=str(options.data)))
                for c in grid.cells()
            ][: runs or 2]
            first, second = (_seconds(configs, solo=not runs) for _ in range(2))
            full = Grid(options.configs, options.data, [model], ["bce"], 1)
            epochs = next(iter(full.cells())).config.train.epochs
            each = second / len(configs)
            rows.append(
                {
                    "model": model,
                    "runs": runs,
                    "compile_s": first - second,
                    "epoch_s_per_run": each,
                    "epochs": epochs,
                    "run_s": each * epochs,
                }
            )
    return pl.DataFrame(rows)


def _seconds(configs: list[Config], *, solo: bool) -> float:
    with TemporaryDirectory() as folder:
        outputs = [Path(folder) / f"run{i}" for i in range(len(configs))]
        started = time.perf_counter()
        if solo:
            for config, output in zip(configs, outputs, strict=True):
                train(config, output, Silent())
        else:
            train_sweep(configs, outputs, Silent())
        return time.perf_counter() - started


if __name__ == "__main__":
    sys.exit(main())
