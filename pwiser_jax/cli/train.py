"""Train a run, or resume it."""

import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from jsonargparse import Namespace

from pwiser_jax.errors import UserError
from pwiser_jax.options import Parser

if TYPE_CHECKING:
    from pwiser_jax.config import Config

COMPILES = True


def add_options(parser: Parser, argv: Sequence[str]) -> None:
    from pwiser_jax.config import add_options
    from pwiser_jax.training.run.loggers import LOGGERS

    add_options(parser)
    parser.add_argument("--output", type=Path, required=True, help="the run's folder")
    parser.add_argument(
        "--logger",
        choices=list(LOGGERS),
        default="tensorboard",
        help="what gets the metrics besides metrics.jsonl; mlflow and wandb are extras",
    )
    parser.add_argument(
        "--profile",
        type=bool,
        default=False,
        help="write a trace of a few steps to OUTPUT/profile",
    )
    parser.add_argument(
        "--distributed",
        type=bool,
        default=False,
        help="join the other processes that the cluster's environment describes",
    )
    parser.add_argument(
        "--coordinator",
        type=str | None,
        help="join other processes: HOST:PORT of process 0",
    )
    parser.add_argument(
        "--num_processes",
        type=int | None,
        help="the number of processes, with --coordinator",
    )
    parser.add_argument(
        "--process_id",
        type=int | None,
        help="the number of this process, from 0, with --coordinator",
    )


def run(options: Namespace, given: Namespace) -> int:
    from pwiser_jax.config import config_of
    from pwiser_jax.host import prepare_host
    from pwiser_jax.training.devices import processes
    from pwiser_jax.training.devices.signals import Interrupted, answered

    prepare_host()
    config = config_of(given)
    explicit = options.coordinator, options.num_processes, options.process_id
    if any(v is not None for v in explicit) and any(v is None for v in explicit):
        raise UserError(
            "--coordinator, --num-processes and --process-id are given together"
        )
    several = options.distributed or options.coordinator is not None
    joined = processes.joined(*explicit) if several else nullcontext()
    try:
        with answered(), joined:
            _train(config, options.output, options.profile, options.logger)
    except Interrupted as stop:
        print(f"pwiser: {stop}", file=sys.stderr)
        return stop.exit_code
    return 0


def _train(config: "Config", output: Path, profile: bool, logger: str) -> None:
    """Trains and prints the measures; of several processes, process 0 prints."""
    from pwiser_jax.inference.evaluate import evaluate_run, summary
    from pwiser_jax.training.devices import processes
    from pwiser_jax.training.loop import train
    from pwiser_jax.training.run.progress import ProgressBar, Silent
    from pwiser_jax.training.run.protocol import CHOSEN, NAMES

    if processes.first():
        with ProgressBar() as bar:
            result = train(config, output, bar, profile=profile, logger=logger)
    else:
        result = train(config, output, Silent(), logger=logger)
    split = CHOSEN[config.protocol]
    report = evaluate_run(output, split)
    if processes.first():
        print(f"best epoch {result.best.epoch + 1}, on {NAMES[split]}:")
        print(summary(report))
        if result.warning:
            print(f"pwiser: warning: {result.warning}")
