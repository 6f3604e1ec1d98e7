"""Train runs over values of options and over seeds, and compare them seed by seed."""

import json
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from jsonargparse import Namespace

from pwiser_jax.errors import UserError
from pwiser_jax.options import Parser
from pwiser_jax.typed import shown

if TYPE_CHECKING:
    from pwiser_jax.config import Config

COMPILES = True

Cell = tuple[tuple[str, Any], ...]
"""A value of each option that varies."""


def add_options(parser: Parser, argv: Sequence[str]) -> None:
    from pwiser_jax.config import add_options
    from pwiser_jax.training.run.loggers import LOGGERS

    add_options(parser)
    parser.add_argument(
        "--over",
        type=str,
        nargs="+",
        required=True,
        help="options and their values, such as loss.lambdas=0,0.1 optimizer.l2=0,1e-6;"
        " the first values are the baseline",
    )
    parser.add_argument(
        "--seeds", type=int, default=3, help="seeds of each cell, from train.seed on"
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the folder of the runs' folders"
    )
    parser.add_argument(
        "--split", choices=["valid", "test"], default="valid", help="rows to measure on"
    )
    parser.add_argument(
        "--part_size",
        type=int | None,
        help="at most so many runs in one program; default: as many as fit into memory,"
        " and on a cluster enough parts for all its devices",
    )
    parser.add_argument(
        "--cluster",
        type=str | None,
        help="train on a Ray cluster: local (this machine), auto (the one that this"
        " machine belongs to) or HOST:PORT of its head; needs the extra [cluster]",
    )
    parser.add_argument(
        "--cpus_per_part",
        type=int,
        default=1,
        help="CPUs of each program on the cluster",
    )
    parser.add_argument(
        "--gpus_per_part",
        type=int | None,
        help="GPUs of each program on the cluster; default: 1 where it has some",
    )
    parser.add_argument(
        "--logger",
        choices=list(LOGGERS),
        default="tensorboard",
        help="what gets the metrics besides metrics.jsonl; mlflow and wandb are extras",
    )


def run(options: Namespace, given: Namespace) -> int:
    from pwiser_jax.config import config_of
    from pwiser_jax.host import prepare_host
    from pwiser_jax.training.devices.signals import Interrupted, answered

    least = {"seeds": 1, "part_size": 1, "cpus_per_part": 1, "gpus_per_part": 0}
    for name, number in least.items():
        if (value := options[name]) is not None and value < number:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is {value}; expected {number} or more")
    base = config_of(given)
    axes = [axis(text) for text in options.over]
    if len({name for name, _ in axes}) < len(axes):
        raise UserError("--over names an option twice")
    cells: list[Cell] = [
        tuple(zip((name for name, _ in axes), values, strict=True))
        for values in product(*(values for _, values in axes))
    ]
    seeds = range(base.train.seed, base.train.seed + options.seeds)
    runs = {
        options.output / folder_name(cell, seed): varied(base, cell, seed)
        for cell in cells
        for seed in seeds
    }
    try:
        if options.cluster is not None:
            if options.logger != "tensorboard":
                raise UserError(
                    f"--logger {options.logger} is not for --cluster: leave one out"
                )
            from pwiser_jax.training.cluster.study import train_study

            train_study(
                runs,
                options.output,
                options.cluster,
                options.split,
                cpus=options.cpus_per_part,
                gpus=options.gpus_per_part,
                part_size=options.part_size,
            )
        else:
            prepare_host()
            with answered():
                _train(runs, options.output, options.part_size, options.logger)
    except Interrupted as stop:
        print(f"pwiser: {stop}", file=sys.stderr)
        return stop.exit_code
    aucs = {
        cell: [
            _aucs(options.output / folder_name(cell, s), options.split) for s in seeds
        ]
        for cell in cells
    }
    print(
        f"AUC on {options.split}, {options.seeds} seeds; differences to the first row"
    )
    print(comparison(aucs))
    return 0


def axis(text: str) -> tuple[str, list[Any]]:
    """ "loss.lambdas=0,0.1" as the option and its values."""
    name, equals, values = text.partition("=")
    try:
        parsed = yaml.safe_load(f"[{values}]")
    except yaml.YAMLError:
        parsed = []
    texts = [shown(value) for value in parsed]
    if not equals or not parsed or len(set(texts)) < len(texts):
        raise UserError(
            f"--over {text}: expected an option and different values, such as "
            "loss.lambdas=0,0.1"
        )
    if name == "train.seed":
        raise UserError("--over train.seed: --seeds N gives each cell N seeds")
    return name, parsed


def varied(config: "Config", cell: Cell, seed: int) -> "Config":
    """The configuration with the cell's values and a seed."""
    tree = config.to_dict()
    for path, value in (*cell, ("train.seed", seed)):
        *sections, name = path.split(".")
        section = tree
        for part in sections:
            section = section.setdefault(part, {})
            if not isinstance(section, dict):
                raise UserError(f"--over {path}: there is no such option")
        section[name] = value
    return type(config).from_dict(tree)


def folder_name(cell: Cell, seed: int) -> str:
    """ "loss.lambdas=0.1,seed=3"."""
    parts = [*(f"{name}={shown(value)}" for name, value in cell), f"seed={seed}"]
    return ",".join(parts).replace("/", "_").replace(" ", "")


def _train(
    runs: "dict[Path, Config]", output: Path, part_size: int | None, logger: str
) -> None:
    """Trains the runs, those of one shape together."""
    from pwiser_jax.training.run.progress import ProgressBar
    from pwiser_jax.training.study import planned, train_part
    from pwiser_jax.training.sweep import RunsFailed

    failures: dict[Path, str] = {}
    for part in planned(runs, output, part_size):
        with ProgressBar() as bar:
            configs = [runs[folder] for folder in part]
            failures |= train_part(configs, part, bar, logger)
    if failures:
        raise RunsFailed(failures, len(runs))


def _aucs(run: Path, split: str) -> dict[str, float | None]:
    """AUC by task's title; measured if it was not yet, or where its file is damaged."""
    from pwiser_jax.data.prepared.folder import Prepared
    from pwiser_jax.inference.evaluate import evaluate_run
    from pwiser_jax.tasks import measured, title

    path = run / f"evaluation_{split}.json"
    labels = Prepared(run / "data").schema.labels

    def read() -> dict[str, float | None]:
        tree = json.loads(path.read_text(encoding="utf-8"))
        values = {t: tree[t.name]["auc"]["value"] for t in measured(labels)}
        return {title(task, labels): value for task, value in values.items()}

    try:
        return read()
    except (OSError, ValueError, KeyError, TypeError):
        evaluate_run(run, split)
        return read()


def comparison(aucs: dict[Cell, list[dict[str, float | None]]]) -> str:
    """One row per cell: mean AUC of each task, and its difference to the first cell's.

    Differences are means over seeds with 95% intervals of Student's t, paired by seed.
    """
    from pwiser_jax.inference.evaluate import aligned

    first = next(iter(aucs.values()))
    tasks = list(first[0])
    names = [name for name, _ in next(iter(aucs))]
    header = (*names, *tasks, *(f"{task} - first" for task in tasks))
    lines = [header]
    for cell, runs in aucs.items():
        columns = {task: [run[task] for run in runs] for task in tasks}
        base = {task: [run[task] for run in first] for task in tasks}
        lines.append(
            (
                *(shown(value) for _, value in cell),
                *(_mean(columns[task]) for task in tasks),
                *(
                    "" if runs is first else _difference(columns[task], base[task])
                    for task in tasks
                ),
            )
        )
    return "\n".join(aligned(lines))


def _mean(values: list[float | None]) -> str:
    defined = [value for value in values if value is not None]
    return f"{sum(defined) / len(defined):.4f}" if len(defined) == len(values) else "-"


def _difference(values: list[float | None], base: list[float | None]) -> str:
    from pwiser_jax.metrics import paired_interval
    from pwiser_jax.reports.tables import difference_text, number_text

    ours, theirs = ([v for v in each if v is not None] for each in (values, base))
    if len(ours) < len(values) or len(theirs) < len(base):
        return "-"
    change = paired_interval(ours, theirs)
    if len(values) == 1:
        return number_text(change.value, "+.4f")
    return difference_text(change.value, change.low, change.high)
