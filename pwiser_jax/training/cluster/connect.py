"""Joins a Ray cluster, and checks that its nodes are like this machine."""

import hashlib
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pwiser_jax.errors import UserError, first_line
from pwiser_jax.version import __version__

# Seconds: to reach the cluster, for an answer of a node, between two looks at the head,
# until a silent head is lost (Ray's own bound is 60).
CONNECT, ANSWER, LOOK_AT_HEAD, HEAD_LOST = 20, 180, 3, 40
UNANSWERED = (
    f"no answer in {CONNECT} s; one that asks for a token needs RAY_AUTH_MODE=token "
    "and its ~/.ray/auth_token here"
)


@contextmanager
def connected(address: str) -> Iterator[Any]:
    """Joins a cluster and yields Ray; within another `connected` yields it at once.

    Args:
        address: "local": a cluster of this machine, for this context; "auto": the one
            that this machine belongs to; HOST:PORT of another's head.
    Raises:
        UserError: Ray is absent, or there is no such cluster.
    """
    ray = sys.modules.get("ray")
    if ray is not None and ray.is_initialized():
        yield ray
        return
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
        ray = import_module("ray")
    except ModuleNotFoundError:
        raise UserError(
            "--cluster needs Ray, which is not installed: "
            "pip install 'pwiser-jax[cluster]'"
        ) from None
    options = {"include_dashboard": False} if address == "local" else {}
    # Ray tries for minutes, in compiled code that no exception interrupts.
    late = threading.Timer(CONNECT, _end, [f"{nobody} ({UNANSWERED})", 2])
    try:
        if address != "local":
            late.start()
        ray.init(address=address, log_to_driver=False, logging_level="ERROR", **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        raise UserError(f"{nobody} ({first_line(error)})") from None
    finally:
        late.cancel()
    over = threading.Event()
    head = ray.get_runtime_context().gcs_address
    threading.Thread(target=_watch, args=(head, over), daemon=True).start()
    try:
        yield ray
    finally:
        over.set()
        ray.shutdown()


def _watch(head: str, over: threading.Event) -> None:
    """Ends the command when the head does not answer any more; Ray would with a trace.

    A head that is restarted with its state (Ray's external Redis) may come back before.
    """
    host, _, port = head.rpartition(":")
    answered = time.monotonic()
    while not over.wait(LOOK_AT_HEAD):
        try:
            socket.create_connection((host, int(port)), LOOK_AT_HEAD).close()
            answered = time.monotonic()
        except OSError:
            if time.monotonic() - answered > HEAD_LOST:
                _end(
                    f"the head of the cluster, {head}, was lost, and all tasks end "
                    "with it: start a cluster and run the same command again to go on "
                    "from the checkpoints",
                    1,
                )


def _end(sentence: str, code: int) -> None:
    print(f"pwiser: error: {sentence}", file=sys.stderr, flush=True)
    os._exit(code)


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


def actor_here(ray: Any, cls: type) -> Any:
    """An actor of a class on the command's own node; it uses no CPU."""
    strategy = import_module("ray.util.scheduling_strategies")
    here = strategy.NodeAffinitySchedulingStrategy(
        ray.get_runtime_context().get_node_id(), soft=True
    )
    options = {"num_cpus": 0, "max_restarts": -1, "scheduling_strategy": here}
    return ray.remote(cls).options(**options).remote()


def checked_nodes(ray: Any, output: Path, data: set[Path]) -> list[dict[str, Any]]:
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
                why = last_line(getattr(error, "cause", None) or error)
                raise UserError(
                    f"the cluster's node {address} cannot run pwiser-jax "
                    f"{__version__}: {why}"
                ) from None
            compare(f"the cluster's node {theirs['host']} ({address})", ours, theirs)
            if theirs["token"] != ours["token"]:
                raise UserError(
                    f"{output} (--output) is not the same folder on the cluster's node "
                    f"{theirs['host']} ({address}): name a path that all nodes share"
                )
    finally:
        token.unlink(missing_ok=True)
    return nodes


def compare(node: str, ours: dict[str, Any], theirs: dict[str, Any]) -> None:
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


def last_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
