"""Measures time and memory of the loss, forward and backward.

    python -m experiments.bench.losses --output experiments/results/losses

Each case runs in its own process, with glibc's default allocator and with one set to
keep freed memory; the cases take turns, `--rounds` times. If installed, PyTorch
(boolean indexing of conversions x others) and rax (its hinge, all pairs) are measured
too. Cases with too many pairs are skipped.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import polars as pl
from rich.console import Console

from experiments.bench.tables import origin, write_results
from experiments.lib.measure import (
    KEEP_MEMORY,
    median_seconds,
    on_accelerator,
    peak_bytes,
    reset_peak,
)
from pwiser_jax.options import Parser, PositiveInt
from pwiser_jax.reports.tables import to_markdown

SIZES = (1024, 4096, 16_384, 65_536, 1_048_576)
RATES = {"rare": (0.005, 0.03), "half": (0.5, 0.75)}  # conversions; clicks or more
# Further shares of conversions, which the benchmark of accelerators measures.
ALL_RATES = RATES | {"few": (0.001, 0.006), "many": (0.05, 0.3)}
ALLOCATORS: dict[str, dict[str, str]] = {"usual": {}, "kept": KEEP_MEMORY}
MARGINS = (0.1, 0.2)
# Maximum number of pairs (conversions x others, or all rows x all rows) of a case.
MOST_PAIRS = {
    "broadcast": 3e8,
    "blocked": 2e10,
    "torch": 2e9,
    "rax": 3e8,
}
ON_ACCELERATOR = {"broadcast": 2e10, "blocked": 6e11}


@dataclass(frozen=True)
class Case:
    """One measurement."""

    engine: str
    surrogate: str
    rows: int
    rates: str
    allocator: str

    @property
    def pairs(self) -> float:
        conversions = ALL_RATES[self.rates][0]
        if self.engine in ("rax", "broadcast"):
            return float(self.rows) ** 2
        return conversions * (1 - conversions) * self.rows**2


# The ladder loss by number of levels, a term for each pair of levels: at one size, with
# few rows on the upper levels.
LADDERS = {f"ladder of {levels}": levels for levels in (3, 4, 5, 6)}
LADDER_ROWS, RUNG = 65_536, 0.4

# Engines by surrogate, and the engines measured with both allocators. Both hinges take
# the same time except in sorted form; rax has only the hinge.
ENGINES = {
    "squared_hinge": (
        *("bce", "auto", "sorted", "broadcast", "blocked", "torch"),
        *LADDERS,
    ),
    "hinge": ("sorted", "torch", "rax"),
}
WITH_BOTH = ("bce", "sorted", "torch")


def cases(sizes: Sequence[int]) -> Iterator[Case]:
    """All cases, size by size, engines in turns."""
    for rows, rates in product(sizes, RATES):
        for surrogate, engines in ENGINES.items():
            for engine, allocator in product(engines, ALLOCATORS):
                case = Case(engine, surrogate, rows, rates, allocator)
                wanted = allocator == "usual" or (
                    engine in WITH_BOTH and not on_accelerator()
                )
                installed = engine not in ("torch", "rax") or find_spec(engine)
                if engine in LADDERS:
                    wanted &= (rows, rates) == (LADDER_ROWS, "rare")
                # "auto" is one of these forms, by a rule based on these measurements.
                wanted &= not (engine == "auto" and on_accelerator())
                if installed and wanted and fits(case):
                    yield case


def fits(case: Case) -> bool:
    """Whether the case has few enough pairs."""
    most = MOST_PAIRS | (ON_ACCELERATOR if on_accelerator() else {})
    return case.pairs <= most.get(case.engine, np.inf)


def batch(case: Case) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores (probabilities), clicks and conversions."""
    rng = np.random.default_rng(0)
    conversion_rate, click_rate = ALL_RATES[case.rates]
    scores = 1 / (1 + np.exp(2 - rng.normal(size=case.rows)))
    uniform = rng.random(case.rows)
    return (
        scores.astype(np.float32),
        uniform < click_rate,
        uniform < conversion_rate,
    )


def torch_call(case: Case) -> Callable[[], Any]:
    torch: Any = import_module("torch")

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    device = "cuda" if on_accelerator() else "cpu"
    scores, clicks, conversions = (
        torch.from_numpy(part).to(device) for part in batch(case)
    )
    scores.requires_grad_()
    squared = case.surrogate == "squared_hinge"

    def term(higher: Any, lower: Any, margin: float) -> Any:
        x = torch.relu(margin + lower[None, :] - higher[:, None])
        return (x.square() if squared else x).mean()

    def call() -> None:
        scores.grad = None
        converted = scores[conversions]
        loss = term(converted, scores[clicks & ~conversions], MARGINS[0])
        loss = loss + term(converted, scores[~clicks & ~conversions], MARGINS[1])
        loss.backward()
        if device == "cuda":
            torch.cuda.synchronize()

    return call


def loss_of(case: Case) -> Callable[..., Any]:
    """The loss of scores, clicks and conversions."""
    import jax.numpy as jnp

    from pwiser_jax.losses import bce_loss, ladder_loss, pwiser_loss

    if case.engine == "rax":
        rax: Any = import_module("rax")

        def loss(s: Any, clicks: Any, conversions: Any) -> Any:
            levels = clicks.astype(np.float32) + conversions
            return rax.pairwise_hinge_loss(s, levels)
    elif case.engine == "bce":

        def loss(s: Any, clicks: Any, conversions: Any) -> Any:
            return bce_loss(s, conversions)
    elif case.engine in LADDERS:
        top = LADDERS[case.engine] - 1
        margins = {(hi, lo): 0.1 for hi in range(top + 1) for lo in range(hi)}
        reached = np.random.default_rng(1).geometric(1 - RUNG, case.rows)

        def loss(s: Any, clicks: Any, conversions: Any) -> Any:
            levels = jnp.where(clicks, np.minimum(reached, top), 0)
            return ladder_loss(s, levels, margins)
    else:
        options: dict[str, Any] = {
            "pairs": case.engine,
            "surrogate": case.surrogate,
            "margins": MARGINS,
        }
        loss = partial(pwiser_loss, **options)
    return loss


def compiled(case: Case) -> tuple[Any, Any]:
    """The compiled program of one of our forms, or of rax, and its arguments."""
    import jax

    arguments = jax.device_put(batch(case))
    gradient = jax.jit(jax.value_and_grad(loss_of(case)))
    return gradient.lower(*arguments).compile(), arguments


def measure(case: Case, pair: tuple[Any, Any] | None = None) -> dict[str, float]:
    """Measures seconds per call, and additional bytes per row.

    Args:
        case: the case to measure.
        pair: the result of `compiled`, if it is compiled already.
    """
    import jax

    if case.engine == "torch":
        call, program = torch_call(case), None
    else:
        program, arguments = pair or compiled(case)
        call = lambda: jax.block_until_ready(program(*arguments))  # noqa: E731
    memory = (device_bytes if on_accelerator() else host_bytes)(call, program)
    return {
        "seconds": median_seconds(call, budget=0.5),
        "bytes_per_row": memory / case.rows,
    }


def host_bytes(call: Callable[[], Any], program: Any) -> int:
    del program
    before = reset_peak()
    call()
    return peak_bytes() - before


def device_bytes(call: Callable[[], Any], program: Any) -> int:
    """Memory as the compiler planned it; for PyTorch (None), as measured."""
    if program is not None:
        return program.memory_analysis().temp_size_in_bytes
    cuda: Any = import_module("torch").cuda
    cuda.reset_peak_memory_stats()
    before = cuda.memory_allocated()
    call()
    return cuda.max_memory_allocated() - before


def all_here(cases: Sequence[Case], rounds: int) -> Iterator[dict[str, Any]]:
    """As `in_processes`, in this process, which is faster on an accelerator.

    Several programs compile at the same time.
    """
    ours = [case for case in cases if case.engine != "torch"]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        programs = dict(zip(ours, threads.map(compiled, ours), strict=True))
    for case in [*cases] * rounds:
        try:
            yield dict(measure(case, programs.get(case)))
        except RuntimeError:
            yield {"seconds": None, "bytes_per_row": None}


def in_processes(cases: Sequence[Case], rounds: int) -> Iterator[dict[str, Any]]:
    """The measures of all cases, one after another, in each round."""
    return map(in_own_process, [*cases] * rounds)


def of_rounds(measures: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The median of a case's rounds, fastest and slowest; None if its process died."""
    seconds = [found["seconds"] for found in measures]
    if None in seconds:
        return dict.fromkeys(("seconds", "fastest", "slowest", "bytes_per_row"))
    return {
        "seconds": median(seconds),
        "fastest": min(seconds),
        "slowest": max(seconds),
        "bytes_per_row": measures[0]["bytes_per_row"],
    }


def in_own_process(case: Case) -> dict[str, float | None]:
    """The measures of a case; None if its process dies, usually out of memory."""
    command = [sys.executable, "-m", "experiments.bench.losses", "--cell"]
    done = subprocess.run(
        [*command, json.dumps(vars(case))],
        env=os.environ | ALLOCATORS[case.allocator],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        return {"seconds": None, "bytes_per_row": None}
    return json.loads(done.stdout.splitlines()[-1])


def tables(rows: Sequence[dict[str, Any]]) -> str:
    """Times and memory by engine (lines) and rows (columns), one table per setting."""
    sizes = list(dict.fromkeys(row["rows"] for row in rows))
    parts = []
    for rates, surrogate in product(RATES, ENGINES):
        lines: dict[str, dict[int, dict[str, Any]]] = {}
        for row in rows:
            if (row["rates"], row["surrogate"]) == (rates, surrogate):
                name = row["engine"]
                if not on_accelerator():
                    name += f", {row['allocator']} allocator"
                lines.setdefault(name, {})[row["rows"]] = row
        texts = [
            {
                "ms (minimum to maximum; bytes a row)": name,
                **{f"{n:,}": _cell_text(of.get(n)) for n in sizes},
            }
            for name, of in lines.items()
        ]
        table = to_markdown(pl.DataFrame(texts))
        parts.append(f"## {_title(rates, surrogate)}\n\n{table}")
    return "\n\n".join(parts)


def _title(rates: str, surrogate: str) -> str:
    conversions, clicks = RATES[rates]
    return f"{surrogate}, {conversions:.1%} conversions, {clicks:.0%} clicks"


def _cell_text(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    if row["seconds"] is None:
        return "died"
    low, middle, high = (1e3 * row[key] for key in ("fastest", "seconds", "slowest"))
    return f"{middle:.3g} ({low:.3g} to {high:.3g}; {row['bytes_per_row']:.0f})"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.bench.losses", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("experiments/results/losses")
    )
    parser.add_argument("--sizes", type=list[PositiveInt], default=list(SIZES))
    parser.add_argument("--rounds", type=PositiveInt, default=3)
    parser.add_argument("--cell", type=str | None, help="one measurement, in JSON")
    options = parser.parse(argv)
    if options.cell:
        print(json.dumps(measure(Case(**json.loads(options.cell)))))
        return 0
    import jax

    from experiments.bench.training_cell import Cell, prepared

    console = Console(stderr=True, highlight=False)
    made = origin("losses", ("jax", "torch", "rax"), rounds=options.rounds)
    rows: list[dict[str, Any]] = []
    copy, work = prepared(Cell(engine="copy"))
    speed = work["bytes"] / copy()
    due = list(cases(options.sizes))
    measured = list(
        (all_here if on_accelerator() else in_processes)(due, options.rounds)
    )
    for at, case in enumerate(due):
        measures = of_rounds(measured[at :: len(due)])
        # Scores and gradient in float32, two labels of a byte: moved once.
        moved = case.rows * (4 + 4 + 1 + 1) / speed
        seconds = measures["seconds"]
        share = {"times_bandwidth": seconds and seconds / moved}
        rows.append(vars(case) | measures | share)
        console.print(f"{case}: {_cell_text(rows[-1])}")
    device = jax.devices()[0].device_kind
    allocators = (
        ""
        if on_accelerator()
        else (
            "Allocator: glibc's default, or with "
            f"{' '.join(f'{k}={v}' for k, v in KEEP_MEMORY.items())}. "
        )
    )
    note = (
        f"Forward and backward of PWiseR alone. {made} jax device: {device}, "
        f"{speed / 1e9:.0f} GB/s measured. {allocators}After the times: peak memory "
        "beyond the inputs and the compiled program, in bytes a row, of the first "
        'call; "died": killed, usually out of memory.'
    )
    text = f"# Cost of the loss\n\n{note}\n\n{tables(rows)}"
    write_results(options.output, pl.DataFrame(rows), text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
