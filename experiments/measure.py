"""What benchmarks share: the machine in words, medians, peak memory, result files."""

import csv
import os
import platform
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from pwiser_jax.files import write_whole

# glibc gives large arrays back to the system and takes them again, page by page, at
# every call. These settings make it keep them.
KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "60000000000"}


def machine(packages: Sequence[str]) -> str:
    """Cores, processor, Python and versions, in a line; no name of a host."""
    parts = [f"{len(os.sched_getaffinity(0))} CPU cores ({_processor()})"]
    parts.append(f"Python {platform.python_version()}")
    for name in packages:
        try:
            parts.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return ", ".join(parts)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(names, platform.machine())


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
    """Forgets the process's peak memory; returns its memory now, in bytes (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak_bytes() -> int:
    """The most memory that the process has held since `reset_peak`, or ever."""
    try:
        return _status("VmHWM")
    except OSError:
        return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _status(name: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return 1024 * int(line.split()[1])
    raise OSError(f"/proc/self/status has no {name}")


def write_results(
    stem: Path, rows: Sequence[Mapping[str, Any]], tables: str, *, title: str, note: str
) -> None:
    """STEM.csv with every row, and STEM.md with the title, a note and the tables."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    names = list(dict.fromkeys(name for row in rows for name in row))
    with stem.with_suffix(".csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    write_whole(stem.with_suffix(".md"), f"# {title}\n\n{note}\n\n{tables}\n")


def markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table: the first column to the left, the others to the right."""
    lines = [list(header), ["---", *["---:"] * (len(header) - 1)], *map(list, rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
