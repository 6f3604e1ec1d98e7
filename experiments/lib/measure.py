"""What benchmarks share: the machine in a line, time and memory of calls."""

import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

PACKAGES = ("numpy", "polars", "jax")

# glibc gives large arrays back to the system and takes them again, page by page, at
# every call. These settings make it keep them.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "60000000000"}


@dataclass(frozen=True)
class Cost:
    """Wall-clock seconds and peak resident memory of a command, and what it printed.

    `cpu_seconds` are those of all its threads, which other processes change less.
    """

    seconds: float
    peak_mib: float
    output: str
    cpu_seconds: float


def machine(packages: Sequence[str] = PACKAGES) -> str:
    """The machine and the versions that a figure was made with."""
    cores = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    parts = [
        f"{cores} CPU cores ({_processor()})",
        f"{memory:.0f} GiB of memory",
        platform.system(),
        f"Python {platform.python_version()}",
    ]
    for name in packages:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)


def on_accelerator() -> bool:
    """Whether jax computes on another device than the CPU."""
    import jax

    return jax.default_backend() != "cpu"


def product_operations(jaxpr: Any) -> float:
    """Floating-point operations of a traced program's matrix products; loop bodies are
    counted once. (A compiled program may hide them in library calls.)"""
    total = 0.0
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (summed, _), _ = equation.params["dimension_numbers"]
            shape = equation.invars[0].aval.shape
            terms = math.prod(shape[axis] for axis in summed)
            total += 2.0 * math.prod(equation.outvars[0].aval.shape) * terms
        for inner in _inner(equation.params.values()):
            total += product_operations(inner)
    return total


def _inner(values: Iterable[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, tuple | list):
            yield from _inner(value)
        elif hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.machine()


def run(
    module: str,
    *arguments: str,
    python: str = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> Cost:
    """Runs `python -m module arguments` in a new process; raises where it fails."""
    command: Sequence[str] = [python, "-m", module, *arguments]
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    with process.stdout as printed:
        output = printed.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}")
    seconds = time.perf_counter() - started
    busy = usage.ru_utime + usage.ru_stime
    return Cost(seconds, usage.ru_maxrss / 2**10, output, busy)


def median_seconds(
    call: Callable[[], Any], *, budget: float = 1.0, least: int = 3, most: int = 200
) -> float:
    """The median time of a call: as many as fit into the budget, after one to warm up.

    A call that alone takes more than five budgets is measured once more only.
    """
    started = time.perf_counter()
    call()
    first = time.perf_counter() - started
    runs = 1 if first > 5 * budget else least
    times: list[float] = []
    while len(times) < runs or (sum(times) < budget and len(times) < most):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return median(times)


def reset_peak() -> int:
    """Resets the process's peak memory; returns its current memory in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most memory that the process has held since `reset_peak`."""
    return _status("VmHWM")


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")
