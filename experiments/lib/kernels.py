"""What a compiled program launches: kernels, the bytes that they move, and sorts.

XLA's own cost analysis counts the body of a loop once, and of branches the largest one.
Here loops count as often as they run, and of branches the one that is taken counts.
"""

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

# Instructions that compute nothing: views, arguments, and those that call others.
FREE = {
    *("parameter", "constant", "tuple", "get-tuple-element", "bitcast"),
    *("opt-barrier", "after-all", "partition-id", "replica-id", "reshape"),
    *("while", "conditional", "call"),
}
BYTES = {"pred": 1, "bf16": 2}  # of other types: the digits of their names are bits
COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
NAME = re.compile(r"%([\w.\-]+)")
ARRAY = re.compile(r"\b(pred|[a-z]+\d+)\[([\d,]*)\]")


class Instruction(NamedTuple):
    """A line of a compiled program."""

    opcode: str
    shape: str
    operands: tuple[str, ...]
    rest: str  # operands and attributes

    def called(self, attribute: str) -> list[str]:
        """The computations that an attribute names."""
        match = re.search(rf"\b{attribute}=(\{{[^}}]*\}}|%[\w.\-]+)", self.rest)
        return NAME.findall(match[1]) if match else []


Computation = dict[str, Instruction]


@dataclass
class Work:
    """What a program launches in a call.

    Attributes:
        kernels: instructions that compute or copy something.
        bytes: of their operands and results.
        loops: loops that were entered.
        sorts: the number of elements of each sort.
        scatters: scatters, fused or not.
    """

    kernels: int = 0
    bytes: int = 0
    loops: int = 0
    sorts: list[int] = field(default_factory=list)
    scatters: int = 0


def work(text: str, pack: int = 0) -> Work:
    """The work of one call of a compiled program.

    Args:
        text: the program, as `jax.jit(...).lower(...).compile().as_text()`.
        pack: which branch is taken where there is a choice; inside of a branch it is
            the last one. The losses' outer choice is the size of the pack of
            conversions, 0 the smallest, -1 all rows; the inner one is whether a tile
            of pairs holds any, so that the work of tiles is an upper bound.
    """
    computations, entry = parsed(text)
    result = Work()
    _add(computations, entry, result, 1, pack)
    return result


def parsed(text: str) -> tuple[dict[str, Computation], str]:
    """The computations of a program by name, and the name of the first to run."""
    computations: dict[str, Computation] = {}
    entry, lines = "", {}
    for line in text.splitlines():
        if head := COMPUTATION.match(line):
            lines = computations[head[2]] = {}
            entry = head[2] if head[1] else entry
        elif match := INSTRUCTION.match(line):
            name, shape, opcode, rest = match.groups()
            operands = tuple(NAME.findall(rest.partition(")")[0]))
            lines[name] = Instruction(opcode, shape, operands, rest)
    return computations, entry


def _add(
    computations: dict[str, Computation],
    name: str,
    total: Work,
    times: int,
    branch: int,
) -> None:
    """Adds the work of a computation that runs some times."""
    lines = computations[name]
    for one in lines.values():
        if one.opcode == "while":
            total.loops += times
            trips = re.search(r'"known_trip_count":\{"n":"(\d+)"', one.rest)
            runs = times * int(trips[1]) if trips else times
            # A loop of known length needs no test.
            for part in ("body",) if trips else ("body", "condition"):
                for inner in one.called(part):
                    _add(computations, inner, total, runs, branch)
        elif one.opcode == "conditional":
            branches = one.called("branch_computations") or [
                *one.called("false_computation"),
                *one.called("true_computation"),
            ]
            _add(computations, branches[branch], total, times, -1)
        elif one.opcode == "call":
            _add(computations, one.called("to_apply")[0], total, times, branch)
        elif one.opcode not in FREE:
            total.kernels += times
            shapes = [lines[of].shape for of in one.operands if of in lines]
            total.bytes += times * sum(map(_size, [one.shape, *shapes]))
            for part in (one, *_fused(computations, one)):
                if _is_sort(part):
                    total.sorts += [_elements(part.shape)] * times
                total.scatters += times * (part.opcode == "scatter")


def _fused(
    computations: dict[str, Computation], one: Instruction
) -> Iterator[Instruction]:
    for name in one.called("calls"):
        for inner in computations[name].values():
            yield inner
            yield from _fused(computations, inner)


def _is_sort(one: Instruction) -> bool:
    return one.opcode == "sort" or "cub_sort" in one.rest


def _elements(shape: str) -> int:
    """Of the first array of a shape."""
    match = ARRAY.search(shape)
    return math.prod(int(n) for n in match[2].split(",") if n) if match else 0


def _size(shape: str) -> int:
    """Bytes of all arrays of a shape."""
    total = 0
    for kind, sizes in ARRAY.findall(shape):
        each = BYTES.get(kind) or max(1, int(re.sub(r"\D", "", kind)) // 8)
        total += each * math.prod(int(n) for n in sizes.split(",") if n)
    return total
