"""Trains a study on a Ray cluster: each part is a task.

Ray places the tasks and starts a task again whose process or node was lost; the part
then resumes from its last checkpoint. The run folders and the data are on a path that
all nodes share. Failures in a part are reported at the end; other parts finish.
"""

import os
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from pwiser_jax.atomic import InUse, locked
from pwiser_jax.config import Config
from pwiser_jax.errors import UserError, first_line
from pwiser_jax.training.cluster.connect import (
    actor_here,
    checked_nodes,
    connected,
    last_line,
)
from pwiser_jax.training.cluster.progress import Board, Line, Messages
from pwiser_jax.training.devices.signals import Interrupted, StopSignals

# Seconds: for the lock of a run that a lost process held, between two looks at all
# parts.
LOCK, LOOK = 60, 0.5
RETRIES = 3  # of a part whose process or node was lost
PROCESS_BYTES = 2**30  # of a part, besides the runs' states


class StudyInterrupted(Interrupted):
    """The study was asked to stop; its parts saved checkpoints and stopped."""

    def __init__(self, done: int, runs: int, signum: int) -> None:
        Exception.__init__(
            self,
            f"stopped with checkpoints, {done} of {runs} runs are finished; run the "
            "same command again to go on",
        )
        self.signum = signum


def train_study(
    runs: Mapping[Path, Config],
    output: Path,
    address: str,
    split: str,
    *,
    cpus: int = 1,
    gpus: int | None = None,
    part_size: int | None = None,
) -> None:
    """Trains and evaluates runs on a cluster, or resumes them.

    Args:
        runs: the configuration of each run's folder, in `output`.
        output: the study's folder, on a path that all nodes share.
        address: see `connected`.
        split: the rows to evaluate on.
        cpus, gpus: of each part; `gpus` None: 1 where the cluster has some, else 0.
        part_size: at most so many runs in a part, see `study.planned`.
    Raises:
        UserError: Ray is absent; the cluster cannot be reached or does not fit; another
            command works in `output`.
        RunsFailed: some runs failed; all others are finished.
        StudyInterrupted: stopped by a signal, after saving.
    """
    import jax

    from pwiser_jax.training.run.folder import check_run, writing
    from pwiser_jax.training.study import planned
    from pwiser_jax.training.sweep import RunsFailed

    # Tasks may run in other folders. Devices are theirs too, not this process'.
    output = Path(os.path.abspath(output))
    runs = {Path(os.path.abspath(folder)): absolute(runs[folder]) for folder in runs}
    jax.config.update("jax_platforms", "cpu")
    with connected(address) as ray:
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
        with locked(output, "running a sweep"):
            data = {Path(config.data.path) for config in runs.values()}
            nodes = checked_nodes(ray, output, data)
            if gpus is None:
                gpus = int(any(node["Resources"].get("GPU") for node in nodes))
            slots = slots_of(nodes, cpus, gpus)
            parts = planned(runs, output, part_size, slots, gpus)
            for folder, config in runs.items():
                check_run(folder, config, Path(config.data.path))
            todo = [part for part in parts if not all(_over(f, split) for f in part)]
            task = ray.remote(
                num_cpus=cpus,
                num_gpus=gpus,
                max_retries=RETRIES,
                max_calls=1,  # the memory of a device is free again
            )(_train_part)
            memory = [memory_of([runs[folder] for folder in part]) for part in todo]
            check_memory(nodes, max(memory, default=0))
            failures = _gather(ray, task, todo, memory, runs, split)
    if failures:
        raise RunsFailed(failures, len(runs))


def absolute(config: Config) -> Config:
    """The configuration with an absolute `data.path`."""
    if not config.data.path:
        raise UserError("data.path is needed: a folder that `pwiser prepare` wrote")
    path = os.path.abspath(config.data.path)
    return replace(config, data=replace(config.data, path=path))


def slots_of(nodes: Sequence[dict[str, Any]], cpus: int, gpus: int) -> int:
    """How many parts train at the same time."""
    slots = 0
    for node in nodes:
        has, needs = node["Resources"], {"CPU": cpus, "GPU": gpus}
        slots += int(min(has.get(k, 0) // n for k, n in needs.items() if n))
    if not slots:
        most = [max(n["Resources"].get(k, 0) for n in nodes) for k in ("CPU", "GPU")]
        raise UserError(
            f"a part needs {cpus} CPUs and {gpus} GPUs on one node; the cluster's "
            f"nodes have at most {most[0]:.0f} CPUs and {most[1]:.0f} GPUs: lower "
            "--cpus-per-part or --gpus-per-part"
        )
    return slots


def memory_of(configs: Sequence[Config]) -> int:
    """Bytes of memory of a part: its process, and copies of the runs' states."""
    from pwiser_jax.training.loop import open_data
    from pwiser_jax.training.sweep import STATE_COPIES, state_bytes

    state = state_bytes(configs[0], open_data(configs[0]).schema)
    return PROCESS_BYTES + STATE_COPIES * len(configs) * state


def check_memory(nodes: Sequence[dict[str, Any]], needed: int) -> None:
    """Raises a UserError if no node has so many bytes of memory."""
    most = max(node["Resources"].get("memory", 0) for node in nodes)
    if needed > most:
        raise UserError(
            f"a part needs {needed / 2**30:.1f} GiB of memory on one node; the "
            f"cluster's nodes have at most {most / 2**30:.1f} GiB: lower --part-size"
        )


def _over(folder: Path, split: str) -> bool:
    """Whether a run is finished and evaluated."""
    files = ("result.json", f"evaluation_{split}.json")
    return all((folder / name).exists() for name in files)


def _train_part(
    number: int, runs: dict[Path, Config], split: str, board: Any
) -> dict[Path, str] | None:
    """Trains and evaluates a part's runs; runs on a node.

    Returns:
        The sentence of each run that failed; None: stopped, with a checkpoint.
    """
    from pwiser_jax.host import prepare_host, use_compilation_cache
    from pwiser_jax.inference.evaluate import evaluate_run
    from pwiser_jax.training.study import train_part

    prepare_host()
    use_compilation_cache()
    configs, folders = list(runs.values()), list(runs)
    epochs = configs[0].train.epochs
    # The process that had the part before may live a little longer than its node.
    deadline = time.monotonic() + LOCK
    while True:
        try:
            failures = train_part(configs, folders, Messages(number, epochs, board))
            for folder in folders:
                if folder not in failures and not _over(folder, split):
                    evaluate_run(folder, split)
            return failures
        except InUse as error:
            if time.monotonic() > deadline:
                return dict.fromkeys(folders, str(error))
            time.sleep(1)
        except UserError as error:
            return dict.fromkeys(folders, str(error))
        except Interrupted:
            return None


def _gather(
    ray: Any,
    task: Any,
    parts: Sequence[Sequence[Path]],
    memory: Sequence[int],
    runs: Mapping[Path, Config],
    split: str,
) -> dict[Path, str]:
    """Runs one task per part and waits for all; returns the errors of failed runs."""
    board = actor_here(ray, Board)
    pending: dict[Any, int] = {}
    for number, part in enumerate(parts):
        name = f"part {number}, {len(part)} runs: {part[0].name}"
        of_part = task.options(name=name, memory=memory[number])
        configs = {folder: runs[folder] for folder in part}
        pending[of_part.remote(number, configs, split, board)] = number
    failures: dict[Path, str] = {}
    progress: dict[int, tuple[float, float]] = {}
    stopping = False
    with Line(len(runs), parts) as line, StopSignals(line.say) as signals:
        while pending:
            ready, _ = ray.wait(list(pending), timeout=LOOK)
            with suppress(ray.exceptions.RayError):  # its node was lost: it starts anew
                progress |= ray.get(board.read.remote())
            for answer in ready:
                number = pending.pop(answer)
                failures |= _result(ray, answer, parts[number])
            if not stopping:  # a part that stops is not done
                line.show(pending.values(), progress, len(failures))
            if signals.received and not stopping:
                stopping = True
                for answer, number in pending.items():
                    # A part that compiles would not listen; it has nothing to save.
                    ray.cancel(answer, force=number not in progress, recursive=False)
        done = sum(_over(folder, split) for folder in runs)
        if stopping and done + len(failures) < len(runs):
            raise StudyInterrupted(done, len(runs), signals.received or 0)
    return failures


def _result(ray: Any, answer: Any, part: Sequence[Path]) -> dict[Path, str]:
    """The sentences of a part's failed runs, however its task ended."""
    errors = ray.exceptions
    try:
        return ray.get(answer) or {}
    except (errors.TaskCancelledError, KeyboardInterrupt):
        return {}
    except errors.RayTaskError as error:
        print(error, file=sys.stderr)  # a fault of this package: with its traceback
        return dict.fromkeys(part, last_line(error))
    except errors.RayError as error:
        lost = f"its process was lost {RETRIES + 1} times ({first_line(error)})"
        return dict.fromkeys(part, lost)
