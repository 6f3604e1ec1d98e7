"""Clusters of 127.0.0.1, and commands as a user starts them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WAIT = 900  # seconds, for what takes a few on an idle machine
# Ray's workers give way to all other processes of the machine, by default.
os.environ.setdefault("RAY_worker_niceness", "0")
NODE = {"node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}


@contextmanager
def started() -> Iterator[Any]:
    """A head with one CPU."""
    pytest.importorskip("ray", reason="needs Ray: pip install '.[cluster]'")
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 1, "include_dashboard": False, **NODE}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield cluster
    finally:
        cluster.shutdown()


def add_node(cluster: Any, cpus: int = 1, **options: Any) -> Any:
    return cluster.add_node(num_cpus=cpus, **NODE, **options)


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    """A command of a user, with what it prints in a file."""
    with (folder / "printed.txt").open("a") as printed:
        return subprocess.Popen(
            [sys.executable, "-m", "pwiser_jax", *words],
            cwd=folder,
            stdout=printed,
            stderr=subprocess.STDOUT,
            text=True,
        )


def run(words: list[str], folder: Path) -> tuple[int, str]:
    (folder / "printed.txt").unlink(missing_ok=True)
    code = start(words, folder).wait(WAIT)
    return code, (folder / "printed.txt").read_text()


def wait_for(what: Callable[[], Any], process: subprocess.Popen[str]) -> Any:
    deadline = time.monotonic() + WAIT
    while not (value := what()):
        assert process.poll() is None, "the command ended too soon"
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value
