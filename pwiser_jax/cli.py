"""The command line: prepare, inspect, train, evaluate, predict.

A user's mistake ends in one sentence and exit code 2. Commands import what they need
when they are called: help and mistakes are quick, and `prepare` does without jax.
"""

import atexit
import gc
import signal
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse import Namespace

from pwiser_jax.errors import UserError
from pwiser_jax.options import Parser
from pwiser_jax.version import __version__

if TYPE_CHECKING:
    from pwiser_jax.config import Config


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command and returns its exit code."""
    if argv is None:  # this process is the command's alone
        # Imported code is no garbage. To look for some in it, time and again and once
        # more at the end, would be a third of the time of small commands.
        gc.set_threshold(100_000)
        atexit.register(gc.freeze)
        if sys.argv[1:3] == ["prepare", "aliccp"]:
            # Numba would load its linear algebra, for which that reader has no use.
            sys.modules["scipy"] = None  # pyright: ignore[reportArgumentType]
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning(warnings.showwarning)
            given = sys.argv[1:] if argv is None else argv
            parser = _parser(given)
            options = parser.parse(given)
            return _COMMANDS[options.command](parser, options)
    except UserError as error:
        print(f"pwiser: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("pwiser: interrupted", file=sys.stderr)
        return 130


def _show_warning(default: Callable[..., None]) -> Callable[..., None]:
    """Our own warnings as one line; those of libraries as Python shows them."""

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        if category.__module__.startswith("pwiser_jax."):
            print(f"pwiser: warning: {message}", file=sys.stderr)
        else:
            default(message, category, *rest, **more)

    return show


def _parser(argv: Sequence[str]) -> Parser:
    """The options of all commands; only those that `argv` names get all of theirs."""
    named = [word for word in argv if not word.startswith("-")][:2]
    parser = Parser(
        prog="pwiser",
        description="PWiseR: pairwise ranking for multi-task recommenders.",
        version=__version__,
    )
    commands = parser.add_subcommands(required=True, dest="command")

    prepare = Parser(description="Raw files to Parquet and a manifest.")
    commands.add_subcommand("prepare", prepare, help=prepare.description)
    datasets = prepare.add_subcommands(required=True, dest="dataset")
    for name in _chosen(named):
        function = _preparer(name)
        about = (function.__doc__ or "").split("\n\n")[0]
        dataset = Parser(description=about)
        if named == ["prepare", name]:
            dataset.add_function_arguments(function, as_group=False)
        datasets.add_subcommand(name, dataset, help=about)

    inspect = Parser(description="What a prepared folder holds, with pictures.")
    inspect.add_argument("folder", type=Path, help="a folder written by prepare")
    inspect.add_argument(
        "--batch_size", type=int, default=2048, help="rows of the batches to look at"
    )
    inspect.add_argument(
        "--output", type=Path | None, help="of the PNG files; default: FOLDER/inspect"
    )
    commands.add_subcommand("inspect", inspect, help=inspect.description)

    train = Parser(description="Train one run, or go on with it.")
    if named[:1] == ["train"]:
        from pwiser_jax.config import Config

        train.add_argument(
            "--config", action="config", help="a YAML file of the options"
        )
        train.add_class_arguments(Config, as_group=False)
    train.add_argument("--output", type=Path, required=True, help="the run's folder")
    train.add_argument(
        "--profile", type=bool, default=False, help="trace a few steps: OUTPUT/profile"
    )
    train.add_argument(
        "--distributed",
        type=bool,
        default=False,
        help="one of several processes, which the cluster's environment tells of",
    )
    train.add_argument(
        "--coordinator",
        type=str | None,
        help="one of several processes; HOST:PORT of the first of them",
    )
    train.add_argument(
        "--num_processes", type=int | None, help="how many, beside --coordinator"
    )
    train.add_argument(
        "--process_id", type=int | None, help="which one this is, from 0 on"
    )
    commands.add_subcommand("train", train, help=train.description)

    evaluate = Parser(description="Measure a run's best checkpoint on a split.")
    evaluate.add_argument("--run", type=Path, required=True, help="the run's folder")
    evaluate.add_argument("--split", choices=["valid", "test"], default="valid")
    evaluate.add_argument(
        "--data", type=Path | None, help="a prepared folder; default: the run's own"
    )
    commands.add_subcommand("evaluate", evaluate, help=evaluate.description)

    predict = Parser(description="Probabilities by task for every row of a file.")
    predict.add_argument("--run", type=Path, required=True, help="the run's folder")
    predict.add_argument(
        "--input",
        type=Path,
        required=True,
        help="prepared Parquet, or a raw CSV or Parquet with the fields' columns",
    )
    predict.add_argument("--output", type=Path, required=True, help="a Parquet file")
    commands.add_subcommand("predict", predict, help=predict.description)
    return parser


def _chosen(named: Sequence[str]) -> Iterable[str]:
    """The datasets that this command line may be about: their code takes a while."""
    if named[:1] != ["prepare"]:
        return ()
    return named[1:] if named[1:] and named[1] in _DATASETS else _DATASETS


def _preparer(name: str) -> Callable[..., Any]:
    """The function `prepare_NAME` of a dataset."""
    module = _DATASETS[name]
    return getattr(import_module(f"pwiser_jax.data.{module}"), f"prepare_{name}")


def _prepare(parser: Parser, options: Namespace) -> int:
    chosen = options.prepare
    # Not vars(): an option with the name of a method ("items") has another key there.
    given = chosen[chosen.dataset].as_dict()
    manifest = _preparer(chosen.dataset)(**given)
    for name, split in manifest.splits.items():
        labels = ", ".join(
            f"{count:,} {label}s" for label, count in split.labels.items()
        )
        print(f"{name}: {split.rows:,} rows, {labels}")
    for reason, count in manifest.dropped.items():
        print(f"{reason.replace('_', ' ')}: {count:,} rows")
    for what, count in manifest.options.get("counted", {}).items():
        print(f"{what.replace('_', ' ')}: {count:,}")
    return 0


def _inspect(parser: Parser, options: Namespace) -> int:
    from rich.console import Console

    from pwiser_jax.reports.inspection.show import inspect

    chosen = options.inspect
    output = chosen.output or chosen.folder / "inspect"
    inspect(chosen.folder, chosen.batch_size, output, Console())
    return 0


def _train(parser: Parser, options: Namespace) -> int:
    from pwiser_jax.config import make_config
    from pwiser_jax.host import prepare_host
    from pwiser_jax.training.devices import processes
    from pwiser_jax.training.devices.signals import Interrupted

    prepare_host()
    config = make_config(parser, options, "train")
    chosen = options.train
    explicit = chosen.coordinator, chosen.num_processes, chosen.process_id
    if any(v is not None for v in explicit) and any(v is None for v in explicit):
        raise UserError(
            "--coordinator, --num-processes and --process-id are given together"
        )
    several = chosen.distributed or chosen.coordinator is not None
    joined = processes.joined(*explicit) if several else nullcontext()
    try:
        with joined:
            _train_here(config, chosen.output, chosen.profile)
    except Interrupted as stop:
        print(f"pwiser: {stop}", file=sys.stderr)
        return 0 if stop.signum == signal.SIGTERM else 130
    return 0


def _train_here(config: "Config", output: Path, profile: bool) -> None:
    """The first of several processes is the one that speaks."""
    from pwiser_jax.inference.evaluate import evaluate_run, summary
    from pwiser_jax.training.devices import processes
    from pwiser_jax.training.loop import train
    from pwiser_jax.training.run.progress import ProgressBar, Silent
    from pwiser_jax.training.run.protocol import CHOSEN, NAMES

    if processes.first():
        with ProgressBar() as bar:
            result = train(config, output, bar, profile=profile)
    else:
        result = train(config, output, Silent())
    split = CHOSEN[config.protocol]
    report = evaluate_run(output, split)
    if processes.first():
        print(f"best epoch {result['best']['epoch'] + 1}, on {NAMES[split]}:")
        print(summary(report))


def _evaluate(parser: Parser, options: Namespace) -> int:
    import json

    from pwiser_jax.inference.evaluate import evaluate_run

    chosen = options.evaluate
    report = evaluate_run(chosen.run, chosen.split, data=chosen.data)
    print(json.dumps(report, indent=2, allow_nan=False))
    return 0


def _predict(parser: Parser, options: Namespace) -> int:
    from pwiser_jax.inference.predict import predict_file

    chosen = options.predict
    rows = predict_file(chosen.run, chosen.input, chosen.output)
    print(f"{rows:,} rows to {chosen.output}")
    return 0


# Module of `prepare_NAME`, by dataset.
_DATASETS = {
    "synthetic": "datasets.synthetic",
    "kuairand": "datasets.kuairand",
    "aliexpress": "datasets.aliexpress",
    "aliccp": "aliccp.prepare",
    "table": "datasets.table",
}
_COMMANDS: dict[str, Callable[[Parser, Namespace], int]] = {
    "prepare": _prepare,
    "inspect": _inspect,
    "train": _train,
    "evaluate": _evaluate,
    "predict": _predict,
}
