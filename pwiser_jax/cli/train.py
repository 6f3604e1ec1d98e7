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
    from pwiser_jax.evaluation import Evaluation
    from pwiser_jax.training.run.record import TrainResult

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
    parser.add_argument(
        "--cluster",
        type=str | None,
        help="train on hosts of a Ray cluster: local (this machine), auto (the cluster"
        " that this machine belongs to) or HOST:PORT of its head; needs the extra"
        " [cluster]",
    )
    parser.add_argument(
        "--hosts",
        type=int,
        default=1,
        help="the number of hosts, each with a process, with --cluster",
    )
    parser.add_argument(
        "--cpus_per_host",
        type=int,
        default=1,
        help="CPUs of each process on the cluster",
    )
    parser.add_argument(
        "--gpus_per_host",
        type=int | None,
        help="GPUs of each process on the cluster; default: all that each host has",
    )


def run(options: Namespace, given: Namespace) -> int:
    from pwiser_jax.config import config_of
    from pwiser_jax.host import prepare_host
    from pwiser_jax.models.registry import refuse_unread
    from pwiser_jax.training.devices import processes
    from pwiser_jax.training.devices.signals import Interrupted, answered

    config = config_of(given)
    refuse_unread(config.model.name, given.as_dict().get("model") or {})
    if options.cluster is not None:
        return _run_on_cluster(options, config)
    if options.hosts != 1:
        raise UserError("--hosts needs --cluster, which names the cluster")
    prepare_host()
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


def _run_on_cluster(options: Namespace, config: "Config") -> int:
    """Trains on hosts of a cluster, and prints what their process 0 has written."""
    from pwiser_jax.inference.evaluate import read_evaluation
    from pwiser_jax.training.cluster.hosts import HostsLost, train_on_hosts
    from pwiser_jax.training.devices.signals import Interrupted
    from pwiser_jax.training.run.folder import read_result
    from pwiser_jax.training.run.progress import ProgressBar
    from pwiser_jax.training.run.protocol import CHOSEN

    if options.distributed or options.coordinator is not None:
        raise UserError(
            "--cluster starts the processes itself: leave out --distributed and "
            "--coordinator"
        )
    for name, least in {"hosts": 1, "cpus_per_host": 1, "gpus_per_host": 0}.items():
        if (value := options[name]) is not None and value < least:
            option = f"--{name.replace('_', '-')}"
            raise UserError(f"{option} is {value}; expected {least} or more")
    split = CHOSEN[config.protocol]
    try:
        with ProgressBar() as bar:
            train_on_hosts(
                config,
                options.output,
                options.cluster,
                options.hosts,
                split,
                bar,
                cpus=options.cpus_per_host,
                gpus=options.gpus_per_host,
                profile=options.profile,
                logger=options.logger,
            )
    except Interrupted as stop:
        print(f"pwiser: {stop}", file=sys.stderr)
        return stop.exit_code
    except HostsLost as lost:
        print(f"pwiser: error: {lost}", file=sys.stderr)
        return 1
    _print(read_result(options.output), read_evaluation(options.output, split))
    return 0


def _train(config: "Config", output: Path, profile: bool, logger: str) -> None:
    """Trains and prints the measures; of several processes, process 0 prints."""
    from pwiser_jax.host import return_freed_memory
    from pwiser_jax.inference.evaluate import evaluate_run
    from pwiser_jax.training.devices import processes
    from pwiser_jax.training.loop import train
    from pwiser_jax.training.run.progress import ProgressBar, Silent
    from pwiser_jax.training.run.protocol import CHOSEN

    if processes.first():
        with ProgressBar() as bar:
            result = train(config, output, bar, profile=profile, logger=logger)
    else:
        result = train(config, output, Silent(), logger=logger)
    return_freed_memory()
    evaluation = evaluate_run(output, CHOSEN[config.protocol])
    if processes.first():
        _print(result, evaluation)


def _print(result: "TrainResult", evaluation: "Evaluation") -> None:
    from pwiser_jax.inference.evaluate import summary
    from pwiser_jax.training.run.protocol import NAMES

    print(f"best epoch {result.best.epoch + 1}, on {NAMES[evaluation.split]}:")
    print(summary(evaluation))
    if result.warning:
        print(f"pwiser: warning: {result.warning}")
