"""Trains a study on a Ray cluster: each part is a task.

Ray places the tasks and starts a task again whose process or node was lost; the part
then resumes from its last checkpoint. The run folders and the data are on a path that
all nodes share. Failures in a part are reported at the end; other parts finish.
"""

import hashlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from pwiser_jax.atomic import InUse, locked
from pwiser_jax.config import Config
from pwiser_jax.errors import UserError, first_line
from pwiser_jax.training.devices.signals import Interrupted, StopSignals
from pwiser_jax.version import __version__

# Seconds: to reach the cluster, for an answer of a node, for the lock of a run that a
# lost process held, between two messages of a part, between two looks at all parts.
CONNECT, ANSWER, LOCK, NOTE, LOOK = 20, 180, 60, 1.0, 0.5
RETRIES = 3  # of a part whose process or node was lost


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
        address: "local": a cluster of this machine, for this call; "auto": the one that
            this machine belongs to; HOST:PORT of another's head.
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
    runs = {Path(os.path.abspath(folder)): _absolute(runs[folder]) for folder in runs}
    jax.config.update("jax_platforms", "cpu")
    with _connected(address) as ray:
        with writing(output):
            output.mkdir(parents=True, exist_ok=True)
        with locked(output, "running a sweep"):
            data = {Path(config.data.path) for config in runs.values()}
            nodes = _checked_nodes(ray, output, data)
            if gpus is None:
                gpus = int(any(node["Resources"].get("GPU") for node in nodes))
            slots = _slots(nodes, cpus, gpus)
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
            failures = _gather(ray, task, todo, runs, split)
    if failures:
        raise RunsFailed(failures, len(runs))


def _absolute(config: Config) -> Config:
    if not config.data.path:
        raise UserError("data.path is needed: a folder that `pwiser prepare` wrote")
    path = os.path.abspath(config.data.path)
    return replace(config, data=replace(config.data, path=path))


@contextmanager
def _connected(address: str) -> Iterator[Any]:
    """Ray, joined to a cluster."""
    local, nobody = address == "local", f"--cluster {address}: there is no cluster"
    if not local and address != "auto":
        host, colon, port = address.rpartition(":")
        if not colon or not port.isdecimal() or "/" in host:
            raise UserError(
                f"--cluster is {address}; expected auto, local or the HOST:PORT of a "
                "cluster's head"
            )
        try:
            socket.create_connection((host, int(port)), timeout=CONNECT).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"{nobody} ({first_line(error)})") from None
        local = host in ("localhost", "127.0.0.1")
    # Ray reads these when it is imported.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if local:  # else Ray takes another address of this machine for 127.0.0.1
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    try:
        ray: Any = import_module("ray")
    except ModuleNotFoundError:
        raise UserError(
            "--cluster needs Ray, which is not installed: "
            "pip install 'pwiser-jax[cluster]'"
        ) from None
    options = {"include_dashboard": False} if address == "local" else {}
    # Ray tries for minutes, in compiled code that no exception interrupts.
    late = threading.Timer(CONNECT, _end, [f"{nobody} (no answer in {CONNECT} s)"])
    try:
        if address != "local":
            late.start()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(f"{nobody} ({first_line(error)})") from None
    finally:
        late.cancel()
    try:
        yield ray
    finally:
        ray.shutdown()


def _end(sentence: str) -> None:
    print(f"pwiser: error: {sentence}", file=sys.stderr, flush=True)
    os._exit(2)


def _versions() -> dict[str, str]:
    """What must be the same on all nodes. Ray itself compares Ray and Python."""
    return {"pwiser-jax": __version__, "jax": version("jax")}


def _seen(token: Path, data: Sequence[Path]) -> dict[str, Any]:
    """What a node has and sees; runs on the node."""
    from pwiser_jax.data.prepared.manifest import FILE

    def read(path: Path) -> bytes | None:
        return path.read_bytes() if path.is_file() else None

    manifests = {str(folder): read(folder / FILE) for folder in data}
    return {
        "host": socket.gethostname(),
        "versions": _versions(),
        "token": read(token),
        "data": {
            path: text and hashlib.sha256(text).hexdigest()[:8]
            for path, text in manifests.items()
        },
    }


def _checked_nodes(ray: Any, output: Path, data: set[Path]) -> list[dict[str, Any]]:
    """The cluster's nodes, each with the same package, output and data as here.

    Raises:
        UserError: one has others, or does not answer.
    """
    nodes = [node for node in ray.nodes() if node["Alive"]]
    token = output / f".seen-{secrets.token_hex(4)}"
    strategy = import_module("ray.util.scheduling_strategies")
    token.write_text(token.name)
    try:
        ours = _seen(token, sorted(data))
        answers = [
            ray.remote(_seen)
            .options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=strategy.NodeAffinitySchedulingStrategy(
                    node["NodeID"], soft=False
                ),
            )
            .remote(token, sorted(data))
            for node in nodes
        ]
        for node, answer in zip(nodes, answers, strict=True):
            address = node["NodeManagerAddress"]
            try:
                theirs = ray.get(answer, timeout=ANSWER)
            except ray.exceptions.RayError as error:
                what = getattr(error, "cause", None) or error
                raise UserError(
                    f"the cluster's node {address} cannot run pwiser-jax "
                    f"{__version__}: {_last_line(what)}"
                ) from None
            _compare(f"the cluster's node {theirs['host']} ({address})", ours, theirs)
            if theirs["token"] != ours["token"]:
                raise UserError(
                    f"--output {output} is not the same folder on the cluster's node "
                    f"{theirs['host']} ({address}): name a path that all nodes share"
                )
    finally:
        token.unlink(missing_ok=True)
    return nodes


def _compare(node: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
    for name, here in ours["versions"].items():
        if theirs["versions"][name] != here:
            raise UserError(
                f"{node} has {name} {theirs['versions'][name]}, this machine has "
                f"{here}: install the same on all nodes"
            )
    for path, here in ours["data"].items():
        if here is None:
            raise UserError(f"{path} is no prepared folder")
        if theirs["data"][path] != here:
            there = theirs["data"][path]
            raise UserError(
                f"{node} has {f'other data ({there})' if there else 'no data'} in "
                f"{path}, this machine has {here}: name a path that all nodes share"
            )


def _last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__


def _slots(nodes: Sequence[dict[str, Any]], cpus: int, gpus: int) -> int:
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
    from pwiser_jax.host import use_compilation_cache
    from pwiser_jax.inference.evaluate import evaluate_run
    from pwiser_jax.training.study import train_part

    use_compilation_cache()
    configs, folders = list(runs.values()), list(runs)
    epochs = configs[0].train.epochs
    # The process that had the part before may live a little longer than its node.
    deadline = time.monotonic() + LOCK
    while True:
        try:
            failures = train_part(configs, folders, _Messages(number, epochs, board))
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


class _Messages:
    """The reporter of a part: tells the board now and then how far it is."""

    def __init__(self, number: int, epochs: int, board: Any) -> None:
        self._number, self._epochs, self._board = number, epochs, board
        self._told, self._epoch, self._of = 0.0, 0, 1
        self._step = 0

    def epoch(self, epoch: int, steps: int, done: int) -> None:
        self._epoch, self._of, self._step = epoch, steps, done

    def steps(self, count: int, loss: float, rows_per_second: float) -> None:
        self._step += count
        if time.monotonic() - self._told > NOTE:
            self._told = time.monotonic()
            done = (self._epoch + self._step / self._of) / self._epochs
            self._board.note.remote(self._number, done, rows_per_second)

    def line(self, text: str) -> None:
        pass


class _Board:
    """An actor beside the command: how far each part is, and its rows/s."""

    def __init__(self) -> None:
        self._parts: dict[int, tuple[float, float]] = {}

    def note(self, number: int, done: float, rows_per_second: float) -> None:
        self._parts[number] = done, rows_per_second

    def read(self) -> dict[int, tuple[float, float]]:
        return self._parts


def _gather(
    ray: Any,
    task: Any,
    parts: Sequence[Sequence[Path]],
    runs: Mapping[Path, Config],
    split: str,
) -> dict[Path, str]:
    """Runs one task per part and waits for all; returns the errors of failed runs."""
    strategy = import_module("ray.util.scheduling_strategies")
    here = strategy.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    board = (
        ray.remote(_Board)
        .options(num_cpus=0, max_restarts=-1, scheduling_strategy=here)
        .remote()
    )
    pending = {
        task.options(name=f"part {number}: {part[0].name}").remote(
            number, {folder: runs[folder] for folder in part}, split, board
        ): number
        for number, part in enumerate(parts)
    }
    failures: dict[Path, str] = {}
    progress: dict[int, tuple[float, float]] = {}
    stopping = False
    with _Line(len(runs), parts) as line, StopSignals(line.say) as signals:
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
        return dict.fromkeys(part, _last_line(error))
    except errors.RayError as error:
        lost = f"its process was lost {RETRIES + 1} times ({first_line(error)})"
        return dict.fromkeys(part, lost)


class _Line(Progress):
    """One line for the study: runs done, running and failed, rows/s, time left."""

    def __init__(self, runs: int, parts: Sequence[Sequence[Path]]) -> None:
        console = Console(stderr=True, highlight=False)
        super().__init__(
            TextColumn("{task.description}"),
            BarColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._count, self._parts = runs, parts
        self._over = runs - sum(map(len, parts))
        self._bar = self.add_task("starting", total=runs, completed=self._over)
        self._shown = ""

    def say(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def show(
        self, pending: Any, progress: Mapping[int, tuple[float, float]], failed: int
    ) -> None:
        """Shows the state of the parts; on a file a line each time it changes."""
        pending = list(pending)
        size = [len(part) for part in self._parts]
        open_runs = sum(size[number] for number in pending)
        running = [number for number in pending if number in progress]
        rows = sum(progress[number][1] for number in running)
        counts = (
            f"{self._count - open_runs - failed} of {self._count} runs done, "
            f"{sum(size[n] for n in running)} running, {failed} failed"
        )
        share = sum(size[number] * min(progress[number][0], 1.0) for number in running)
        done = self._count - open_runs + share
        speed = f", {rows:,.0f} rows/s" if rows else ""
        self.update(self._bar, description=counts + speed, completed=done)
        if counts != self._shown and not self.console.is_terminal:
            self.say(counts)
        self._shown = counts
