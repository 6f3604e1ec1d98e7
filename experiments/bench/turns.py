"""Measures training steps in turns, to compare them.

The speed of a shared machine drifts by a third within minutes. The cells of a group
therefore run at the same time, each in its own process, and are measured one after
another, round by round: a ratio is the median of its rounds' ratios.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from experiments.bench.training_cell import Cell, compiled, prepared
from experiments.lib.measure import KEEP_MEMORY, on_accelerator

ALLOCATORS = {"usual": {}, "keep": KEEP_MEMORY}
MOST_MEMORY = 0.6  # share of the machine's, for the cells of a group


@dataclass(frozen=True)
class Measured:
    """Seconds per step by round, and operations and bytes per step, if known. Seconds
    are empty if the process died, usually out of memory.
    """

    seconds: list[float]
    flops: float | None = None
    bytes: float | None = None


class Group(dict[Cell, Measured]):
    """The measurements of cells that are compared."""

    def best(self, *cells: Cell) -> Cell | None:
        """The fastest of these cells."""
        measured = [cell for cell in cells if cell in self and self[cell].seconds]
        return min(measured, key=lambda cell: median(self[cell].seconds), default=None)

    def seconds(self, *cells: Cell) -> float | None:
        """The median seconds of the fastest of these cells."""
        best = self.best(*cells)
        return median(self[best].seconds) if best else None

    def ratios(self, slow: Sequence[Cell], fast: Cell) -> list[float]:
        """Ratio of the time of the best of some cells to that of another cell, by
        round; empty if one has no time."""
        one, other = self.best(*slow), self.best(fast)
        if not (one and other):
            return []
        rounds = zip(self[one].seconds, self[other].seconds, strict=True)
        return [a / b for a, b in rounds]

    def ratio(self, slow: Sequence[Cell], fast: Cell) -> float | None:
        """The median of the rounds' ratios."""
        ratios = self.ratios(slow, fast)
        return median(ratios) if ratios else None

    def shares(self, what: str, cell: Cell, ceiling: Cell) -> list[float]:
        """A cell's rate of operations ("flops") or bytes, relative to the ceiling, by
        round."""
        ratios = self.ratios([ceiling], cell)
        if not ratios:
            return []
        value, full = getattr(self[cell], what), getattr(self[ceiling], what)
        return [times * value / full for times in ratios] if value and full else []

    def share(self, what: str, cell: Cell, ceiling: Cell) -> float | None:
        """The median of the rounds' shares."""
        shares = self.shares(what, cell, ceiling)
        return median(shares) if shares else None


class Measurements:
    """Groups by name; each is written as a line of a file when it is measured."""

    def __init__(self, work: Path, rounds: int) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._path, self._rounds = work / "groups.jsonl", rounds
        self.groups: dict[str, Group] = {}
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            tree = json.loads(line)
            self.groups[tree["group"]] = Group(
                {Cell(**one["cell"]): Measured(**one["found"]) for one in tree["cells"]}
            )

    def make(self, name: str, cells: Sequence[Cell]) -> None:
        """Measures a group unless it is measured already."""
        if set(cells) <= self.groups.get(name, Group()).keys():
            return
        group = self.groups[name] = Group()
        for some in chunks(cells):
            group.update(in_turns(some, self._rounds))
        lines = [{"cell": asdict(c), "found": asdict(m)} for c, m in group.items()]
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"group": name, "cells": lines}) + "\n")
        texts = [f"{1e3 * (group.seconds(cell) or 0):.1f}" for cell in cells]
        Console(stderr=True, highlight=False).print(f"{name} [ms]:", *texts)

    def rows(self) -> list[dict[str, Any]]:
        return [
            {"group": name}
            | asdict(cell)
            | {
                "seconds": group.seconds(cell),
                "fastest": min(measured.seconds, default=None),
                "slowest": max(measured.seconds, default=None),
                "rounds": len(measured.seconds),
                "flops": measured.flops,
                "bytes": measured.bytes,
            }
            for name, group in self.groups.items()
            for cell, measured in group.items()
        ]


def chunks(cells: Sequence[Cell]) -> Iterator[list[Cell]]:
    """Splits the cells, in order, into chunks that fit into memory."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") * MOST_MEMORY
    chunk: list[Cell] = []
    for cell in cells:
        if chunk and sum(one.memory for one in [*chunk, cell]) > memory:
            yield chunk
            chunk = []
        chunk.append(cell)
    if chunk:
        yield chunk


def in_turns(cells: Sequence[Cell], rounds: int) -> dict[Cell, Measured]:
    """All cells in each round, one after another."""
    times: dict[Cell, list[float]] = {cell: [] for cell in cells}
    with ExitStack() as stack:
        if on_accelerator():
            measurers = of_here(cells)
        else:
            measurers = {cell: of_process(cell, stack) for cell in cells}
        for _ in range(rounds):
            for cell, (again, _) in measurers.items():
                seconds = again()
                if seconds is not None:
                    times[cell].append(seconds)
    return {
        # A cell whose process died has no time, even if some rounds succeeded.
        cell: Measured(times[cell] if len(times[cell]) == rounds else [], **work)
        for cell, (_, work) in measurers.items()
    }


Measurer = tuple[Callable[[], float | None], dict[str, float]]


def of_here(cells: Sequence[Cell]) -> dict[Cell, Measurer]:
    """Measures in this process, which is accurate on an accelerator.

    Several programs compile at the same time.
    """
    ours = [cell for cell in cells if cell.engine == "jax"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        programs = dict(zip(ours, threads.map(compiled, ours), strict=True))
    measurers: dict[Cell, Measurer] = {}
    for cell in cells:
        try:
            measurers[cell] = prepared(
                cell, *([programs[cell]] if cell in programs else [])
            )
        except RuntimeError:  # out of memory
            measurers[cell] = lambda: None, {}
    return measurers


def of_process(cell: Cell, stack: ExitStack) -> Measurer:
    """Measures in its own process, which ends with the stack."""
    command = [sys.executable, "-m", "experiments.bench.training_cell"]
    process = stack.enter_context(
        subprocess.Popen(
            [*command, json.dumps(asdict(cell))],
            env=os.environ | ALLOCATORS[cell.allocator],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
    )
    assert process.stdin is not None
    assert process.stdout is not None
    asks, answers = process.stdin, process.stdout
    work = answers.readline()

    def again() -> float | None:
        try:
            print(file=asks, flush=True)
        except BrokenPipeError:
            return None
        line = answers.readline()
        return float(line) if line else None

    return (again, json.loads(work)) if work else (lambda: None, {})
