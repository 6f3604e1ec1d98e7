"""One run on many hosts of a Ray cluster, a process on each.

Ray places the processes, `jax.distributed` connects them, and each trains as `train`
with `--coordinator` does. When one is lost, all others are ended and all start again
from the last checkpoint.
"""

import os
import socket
import sys
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from pwiser_jax.atomic import InUse, locked
from pwiser_jax.config import Config
from pwiser_jax.errors import UserError, first_line
from pwiser_jax.training.cluster.connect import actor_here, checked_nodes, connected
from pwiser_jax.training.cluster.progress import NOTE
from pwiser_jax.training.cluster.study import LOCK, LOOK, RETRIES, absolute
from pwiser_jax.training.devices.signals import Interrupted, StopSignals
from pwiser_jax.training.run.progress import Reporter

# Seconds: until the nodes that replace lost ones must have come, for the processes to
# end when one has failed.
NODES, FAIL = 300, 10


class HostsLost(Exception):
    """Processes of the run were lost, more often than they are started again."""


class NotBegun(Interrupted):
    """The run was asked to stop before its first step in this call."""

    def __init__(self, signum: int) -> None:
        Exception.__init__(
            self, "stopped before the first step; run the same command again to go on"
        )
        self.signum = signum


@dataclass(frozen=True)
class Ended:
    """How a process ended: done, or with a user's error, a checkpoint at a step, or
    the traceback of another error."""

    error: str | None = None
    stopped_at: int | None = None
    fault: str | None = None


def train_on_hosts(
    config: Config,
    output: Path,
    address: str,
    hosts: int,
    split: str,
    reporter: Reporter,
    *,
    cpus: int = 1,
    gpus: int | None = None,
    profile: bool = False,
    logger: str = "tensorboard",
) -> None:
    """Trains a run on several hosts and evaluates it, or resumes it.

    Args:
        config: the configuration; `data.path` is the same on all hosts.
        output: the run's folder, on a path that all nodes share.
        address: see `connected`.
        hosts: number of nodes; each runs one process.
        split: the rows to evaluate on.
        reporter: receives the steps, epochs and lines of process 0.
        cpus, gpus: of each process; `gpus` None: as many as `hosts` nodes have each.
        profile, logger: as in `loop.train`.
    Raises:
        UserError: the cluster does not fit, or the run cannot train.
        HostsLost: too many processes were lost.
        Interrupted: stopped by a signal, after saving.
    """
    import jax

    from pwiser_jax.training.run.folder import check_run, writing

    output, config = Path(os.path.abspath(output)), absolute(config)
    jax.config.update("jax_platforms", "cpu")  # devices are the processes'
    with connected(address) as ray:
        check_run(output, config, Path(config.data.path))
        with writing(output):
            output.parent.mkdir(parents=True, exist_ok=True)
            nodes = checked_nodes(ray, output.parent, {Path(config.data.path)})
        if gpus is None:
            counts = [int(node["Resources"].get("GPU", 0)) for node in nodes]
            gpus = sorted(counts, reverse=True)[min(hosts, len(counts)) - 1]
        missing = _missing(nodes, hosts, cpus, gpus)
        if missing:
            raise UserError(missing)
        events = actor_here(ray, Events)
        work = (config, output, split, profile, logger, events)
        lost = ""
        with StopSignals(reporter.line) as signals:
            for attempt in range(RETRIES + 1):
                processes = _Processes(ray, hosts, cpus, gpus, reporter, signals)
                try:
                    lost = processes.run(work, events, LOCK if attempt else 0) or ""
                except ray.exceptions.RayError as error:
                    lost = first_line(error)
                finally:
                    processes.end()
                if not lost:
                    return
                if attempt < RETRIES:
                    why = lost.splitlines()[-1]
                    reporter.line(
                        f"a process was lost ({why}); all go on from the last "
                        "checkpoint"
                    )
    print(lost, file=sys.stderr)
    raise HostsLost(f"processes were lost {RETRIES + 1} times; see the message above")


def _missing(
    nodes: Sequence[dict[str, Any]], hosts: int, cpus: int, gpus: int
) -> str | None:
    """A sentence if fewer nodes than hosts have the CPUs and GPUs."""
    resources = [node["Resources"] for node in nodes]
    fit = [r for r in resources if r.get("CPU", 0) >= cpus and r.get("GPU", 0) >= gpus]
    if len(fit) >= hosts:
        return None
    have = ", ".join(
        f"{r.get('CPU', 0):.0f} CPUs and {r.get('GPU', 0):.0f} GPUs" for r in resources
    )
    return (
        f"--hosts is {hosts}, each with {cpus} CPUs and {gpus} GPUs; {len(fit)} of the "
        f"cluster's nodes have them (the nodes: {have}): lower --hosts, "
        "--cpus-per-host or --gpus-per-host"
    )


class Events:
    """What process 0 reports and whether to stop: an actor beside the command."""

    def __init__(self) -> None:
        self._events: list[tuple[str, tuple[Any, ...]]] = []
        self._stop = 0

    def put(self, name: str, values: tuple[Any, ...]) -> int:
        """Adds a call of the reporter; returns the signal to stop with, or 0."""
        self._events.append((name, values))
        return self._stop

    def take(self, stop: int) -> list[tuple[str, tuple[Any, ...]]]:
        """Returns the calls since the last time, and sets the signal."""
        taken, self._events, self._stop = self._events, [], stop
        return taken


class _Reports:
    """The reporter of process 0: sends its calls, those of steps now and then."""

    def __init__(self, ray: Any, events: Any) -> None:
        self._ray, self._actor = ray, events
        self._told, self._count = 0.0, 0

    def epoch(self, epoch: int, steps: int, done: int) -> None:
        self._put("epoch", epoch, steps, done)

    def steps(self, count: int, loss: float, rows_per_second: float) -> None:
        self._count += count
        if time.monotonic() - self._told > NOTE:
            self._told = time.monotonic()
            signum = self._put("steps", self._count, loss, rows_per_second)
            self._count = 0
            if signum and StopSignals.current is not None:
                StopSignals.current.received = signum

    def line(self, text: str) -> None:
        self._put("line", text)

    def _put(self, name: str, *values: Any) -> int:
        try:
            return self._ray.get(self._actor.put.remote(name, values))
        except self._ray.exceptions.RayError:  # the command's node was lost
            return 0


class _Processes:
    """The processes of one attempt, one on each of several nodes."""

    def __init__(
        self,
        ray: Any,
        hosts: int,
        cpus: int,
        gpus: int,
        reporter: Reporter,
        signals: StopSignals,
    ) -> None:
        self._ray, self._reporter, self._signals = ray, reporter, signals
        self._needs = hosts, cpus, gpus
        groups = import_module("ray.util.placement_group")
        self._remove = groups.remove_placement_group
        bundle = {"CPU": cpus, "GPU": gpus} if gpus else {"CPU": cpus}
        self._group = groups.placement_group([bundle] * hosts, strategy="STRICT_SPREAD")
        self._answers: list[Any] = []

    def run(self, work: tuple[Any, ...], events: Any, wait: float) -> str | None:
        """Starts the processes and waits for them.

        Args:
            work: the last arguments of `train_process`.
            events: the actor that process 0 reports to.
            wait: seconds until the run's lock must be free.
        Returns:
            None: the run is finished; else how a process was lost.
        """
        self._wait_for_nodes()
        ray, (hosts, cpus, gpus) = self._ray, self._needs
        coordinator = ray.get(self._on(0, free_address, 0, 0).remote())
        self._answers = [
            self._on(rank, train_process, cpus, gpus).remote(
                coordinator, hosts, rank, wait, *work
            )
            for rank in range(hosts)
        ]
        pending, ended, stepped = self._answers, [], False
        while pending:
            ready, pending = ray.wait(pending, timeout=LOOK)
            signum = self._signals.received or 0
            with suppress(ray.exceptions.RayError):  # the actor's node was lost
                for name, values in ray.get(events.take.remote(signum)):
                    getattr(self._reporter, name)(*values)
                    stepped = stepped or name == "steps"
            ended += ray.get(ready)
            failed = [each for each in ended if each.error or each.fault]
            if failed:
                # All of them may fail, and process 0 still writes its last lines.
                if pending:
                    ray.wait(pending, num_returns=len(pending), timeout=FAIL)
                if failed[0].error:
                    raise UserError(failed[0].error)
                return failed[0].fault
            if signum and not stepped:  # it compiles; there is nothing to save
                raise NotBegun(signum)
        steps = [each.stopped_at for each in ended if each.stopped_at is not None]
        if steps:
            raise Interrupted(steps[0], self._signals.received or 0)
        return None

    def _wait_for_nodes(self) -> None:
        """Until the nodes are free; nodes that exist may be busy for any time."""
        asked = time.monotonic()
        said = False
        while not self._group.wait(1):
            if self._signals.received:
                raise NotBegun(self._signals.received)
            nodes = [node for node in self._ray.nodes() if node["Alive"]]
            missing = _missing(nodes, *self._needs)
            if missing is None:
                asked = time.monotonic()
            elif time.monotonic() - asked > NODES:
                raise UserError(missing)
            if not said:
                self._reporter.line("waiting for nodes of the cluster")
                said = True

    def _on(self, rank: int, function: Any, cpus: int, gpus: int) -> Any:
        """A task on a node. A process trains once; Ray starts none again."""
        strategy = import_module("ray.util.scheduling_strategies")
        return self._ray.remote(max_calls=1)(function).options(
            num_cpus=cpus,
            num_gpus=gpus,
            max_retries=0,
            name=f"{function.__name__} {rank + 1} of {self._needs[0]}",
            scheduling_strategy=strategy.PlacementGroupSchedulingStrategy(
                self._group, placement_group_bundle_index=rank
            ),
        )

    def end(self) -> None:
        """Ends the processes that still run, and gives the nodes back."""
        for answer in self._answers:
            with suppress(self._ray.exceptions.RayError):
                self._ray.cancel(answer, force=True)
        if self._answers:
            count = len(self._answers)
            self._ray.wait(self._answers, num_returns=count, timeout=FAIL)
        self._remove(self._group)


def free_address() -> str:
    """HOST:PORT for jax's coordinator; runs on the node of process 0."""
    host = import_module("ray").util.get_node_ip_address()
    with socket.socket() as free:
        free.bind((host, 0))
        return f"{host}:{free.getsockname()[1]}"


def train_process(
    coordinator: str,
    hosts: int,
    rank: int,
    wait: float,
    config: Config,
    output: Path,
    split: str,
    profile: bool,
    logger: str,
    events: Any,
) -> Ended:
    """Trains as process `rank`; runs on a node."""
    from pwiser_jax.host import prepare_host, use_compilation_cache
    from pwiser_jax.training.devices.processes import joined
    from pwiser_jax.training.run.progress import Silent

    use_compilation_cache()
    prepare_host()
    reporter = Silent() if rank else _Reports(import_module("ray"), events)
    try:
        if not rank:
            _wait_until_free(output, wait)
        with joined(coordinator, hosts, rank):
            return _train(config, output, split, profile, logger, reporter)
    except UserError as error:
        return Ended(error=str(error))


def _train(
    config: Config,
    output: Path,
    split: str,
    profile: bool,
    logger: str,
    reporter: Reporter,
) -> Ended:
    from pwiser_jax.inference.evaluate import evaluate_run
    from pwiser_jax.training.loop import train

    try:
        train(config, output, reporter, profile=profile, logger=logger)
        evaluate_run(output, split)
    except UserError as error:
        return Ended(error=str(error))
    except Interrupted as stop:
        return Ended(stopped_at=stop.step)
    except Exception:  # a collective whose partner is gone raises, too
        return Ended(fault=traceback.format_exc().strip())
    return Ended()


def _wait_until_free(output: Path, seconds: float) -> None:
    """The process that trained before may live a little longer than its node."""
    deadline = time.monotonic() + seconds
    while output.is_dir():
        try:
            with locked(output, "training"):
                return
        except InUse:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
