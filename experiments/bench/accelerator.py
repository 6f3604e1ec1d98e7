"""Measures on an accelerator what is claimed of it: the loss and training steps.

    python -m experiments.bench.accelerator

Writes accelerator_DEVICE.csv and .md, which set each figure beside its goal. Sized for
8 minutes on an H100 with 16 CPU cores, most of them to compile.
"""

import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import polars as pl
from rich.console import Console

from experiments.bench.losses import ALL_RATES, Case, batch, fits, loss_of
from experiments.bench.tables import origin, write_results
from experiments.bench.training import BEST_COPY, BEST_PRODUCT, MODELS, RUNS
from experiments.bench.training_cell import Cell
from experiments.bench.turns import Group, in_turns
from experiments.lib.measure import median_seconds
from pwiser_jax.losses.pairs import FORMS, PairOptions, form_name
from pwiser_jax.options import Parser, PositiveInt
from pwiser_jax.reports.tables import to_markdown

PartName = Literal["loss", "steps"]
SHARES = ("few", "rare", "many", "half")  # of conversions: 0.1% to 50%
BUDGET = 0.2  # seconds for a measurement of the loss
STEPS = (1, 8, 32)  # in a call
BFLOAT16 = '{"compute": "bfloat16"}'
Row = dict[str, Any]


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        output: folder of the results.
        parts: loss, steps.
        sizes: rows of the loss.
        calls: calls of the loss in one program, for the device's own time.
        models: models of the steps.
        batch: rows of a step.
        large_batch: rows of a large step.
        rounds: number of measurements of each step, in turns.
    """

    output: Path = Path("experiments/results")
    parts: tuple[PartName, ...] = get_args(PartName)
    sizes: tuple[PositiveInt, ...] = (1024, 4096, 16_384, 65_536)
    calls: PositiveInt = 50
    models: tuple[str, ...] = MODELS
    batch: PositiveInt = 2048
    large_batch: PositiveInt = 65_536
    rounds: PositiveInt = 3


def loss_rows(options: Options) -> Iterator[Row]:
    """PWiseR, forward and backward: one call, and one of many in a program."""
    cases = [
        Case(form, "squared_hinge", rows, "rare", "usual")
        for form, rows in product(FORMS, options.sizes)
    ]
    due = [(case, calls) for case in cases for calls in (1, options.calls)]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        compiled = threads.map(lambda one: loss_program(*one), due)
        programs = dict(zip(due, compiled, strict=True))
    for case, share in product(cases, SHARES):
        here = replace(case, rates=share)
        if not fits(here):
            continue
        arguments = jax.device_put(batch(here))
        one, many = (
            _seconds(programs[case, calls], arguments) for calls in (1, options.calls)
        )
        yield {
            "part": "loss",
            "program": case.engine,
            "rows": case.rows,
            "conversions": ALL_RATES[share][0],
            "auto": case.engine == form_name(PairOptions(), case.rows),
            "seconds": one,
            "of many": many and many / options.calls,
        }


def loss_program(case: Case, calls: int) -> Callable[..., Any]:
    """Calls of the loss, each at scores moved by the gradient of the one before."""
    gradient = jax.value_and_grad(loss_of(case))

    def run(scores: Any, *labels: Any) -> Any:
        if calls == 1:
            return gradient(scores, *labels)

        def call(_: Any, carry: Any) -> Any:
            _, slopes, scores = carry
            scores = scores - 1e-6 * slopes
            return *gradient(scores, *labels), scores

        start = jnp.zeros(()), jnp.zeros_like(scores), scores
        return jax.lax.fori_loop(0, calls, call, start)[:2]

    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in batch(case)]
    return jax.jit(run).lower(*shapes).compile()


def _seconds(program: Callable[..., Any], arguments: Any) -> float | None:
    try:
        return median_seconds(
            lambda: jax.block_until_ready(program(*arguments)), budget=BUDGET
        )
    except RuntimeError:  # out of memory
        return None


def step_groups(options: Options) -> Iterator[tuple[str, list[Cell]]]:
    """Cells that are measured in turns, by name."""
    for model in options.models:
        cell = Cell(model=model, batch=options.batch)
        yield f"{model}, steps in a call", [replace(cell, steps=k) for k in STEPS]
        large = replace(cell, batch=options.large_batch)
        rounded = replace(large, changes=BFLOAT16)
        yield f"{model}, large", [BEST_PRODUCT, BEST_COPY, large, rounded]
    for model in options.models[:2]:
        one = Cell(model=model, batch=options.batch, steps=8)
        yield f"{model}, runs", [one, replace(one, runs=RUNS)]


def step_rows(groups: dict[str, Group]) -> Iterator[Row]:
    for name, group in groups.items():
        for cell, measured in group.items():
            yield {
                "part": name,
                "program": cell.model if cell.engine == "jax" else cell.engine,
                "rows": cell.batch,
                "steps": cell.steps,
                "runs": cell.runs,
                "compute": "bfloat16" if cell.changes == BFLOAT16 else "float32",
                "seconds": group.seconds(cell),
                "fastest": min(measured.seconds, default=None),
                "slowest": max(measured.seconds, default=None),
                "share of the copy": group.share("bytes", cell, BEST_COPY)
                if BEST_COPY in group
                else None,
            }


def goals(losses: Sequence[Row], groups: dict[str, Group]) -> pl.DataFrame:
    """Each claim about an accelerator, its goal, and what was measured."""
    lines = []

    def add(claim: str, goal: str, figure: float | None, digits: int = 2) -> None:
        text = "-" if figure is None else f"{figure:.{digits}f}"
        lines.append({"Claim": claim, "goal": goal, "measured": text})

    sizes = sorted({row["rows"] for row in losses})
    chosen = {
        (row["rows"], row["conversions"]): row["seconds"]
        for row in losses
        if row["auto"] and row["seconds"]
    }
    few = ALL_RATES["rare"][0]
    for rows in sizes:
        goal = {4096: "at most 0.15", 65_536: "at most 0.3"}.get(rows, "none")
        seconds = chosen.get((rows, few))
        name = f"loss, {rows:,} rows, {few:.1%} conversions, `auto` [ms]"
        add(name, goal, seconds and 1e3 * seconds, 3)
        every = [chosen[key] for key in chosen if key[0] == rows]
        name = f"loss, {rows:,} rows: the slowest share of conversions over {few:.1%}"
        add(name, "at most 3", max(every) / seconds if seconds else None)
        fastest = [
            seconds / min(_times(losses, rows, share))
            for (size, share), seconds in chosen.items()
            if size == rows
        ]
        name = f"loss, {rows:,} rows: `auto` over the fastest form, at any share"
        add(name, "about 1", max(fastest, default=None))
    for name, group in groups.items():
        cells = list(group)
        if name.endswith("steps in a call"):
            for cell in cells[1:]:
                claim = f"{cell.model}, {cell.batch:,} rows: {cell.steps} steps in a"
                ratio = group.ratio([cell], cells[0])
                add(f"{claim} call over one, a step", "below 1", ratio)
        elif name.endswith("large"):
            plain, rounded = cells[-2:]
            share = group.share("bytes", plain, BEST_COPY)
            claim = f"{plain.model}, {plain.batch:,} rows"
            add(f"{claim}: share of the copy's bandwidth", "at least 0.80", share)
            ratio = group.ratio([plain], rounded)
            add(f"{claim}: bfloat16, times float32", "at least 1.30", ratio)
        else:
            one, many = cells
            ratio = group.ratio([many], one)
            claim = f"{one.model}: {many.runs} runs in one program over one"
            add(claim, "at most 4", ratio)
    return pl.DataFrame(lines)


def _times(losses: Sequence[Row], rows: int, share: float) -> list[float]:
    """Of each form at a size and share of conversions."""
    return [
        row["seconds"]
        for row in losses
        if (row["rows"], row["conversions"]) == (rows, share) and row["seconds"]
    ]


def loss_table(losses: Sequence[Row]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "Form": row["program"] + (" (auto)" if row["auto"] else ""),
            "rows": f"{row['rows']:,}",
            "conversions": f"{row['conversions']:.1%}",
            "one call [ms]": _ms(row["seconds"]),
            "one of many in a program [ms]": _ms(row["of many"]),
        }
        for row in losses
    )


def step_table(steps: Sequence[Row]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "Program": row["program"],
            "rows": f"{row['rows']:,}",
            "steps in a call": str(row["steps"]),
            "runs": str(row["runs"]),
            "compute": row["compute"],
            "step [ms]": _ms(row["seconds"]),
            "rounds [ms]": f"{_ms(row['fastest'])} to {_ms(row['slowest'])}",
        }
        for row in steps
    )


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.3f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.bench.accelerator", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(argv))))
    if unknown := set(options.models) - set(MODELS):
        parser.error(f"--models: {min(unknown)} is none of {', '.join(MODELS)}")
    console = Console(stderr=True, highlight=False)
    made = origin("accelerator", ("jax",))
    kind = jax.devices()[0].device_kind
    name = re.sub(r"\W+", "_", kind).strip("_").lower()
    losses = list(loss_rows(options)) if "loss" in options.parts else []
    groups: dict[str, Group] = {}

    def write() -> None:
        """After each part, so that finished parts can be read."""
        steps = list(step_rows(groups))
        sections = ["# On an accelerator", f"{note(kind)} {made}", "## Goals"]
        sections += [to_markdown(goals(losses, groups)).rstrip()]
        if losses:
            table = to_markdown(loss_table(losses)).rstrip()
            sections += ["## The loss, forward and backward", table]
        if steps:
            table = to_markdown(step_table(steps)).rstrip()
            sections += ["## Training steps", table]
        path = options.output / f"accelerator_{name}"
        rows = pl.DataFrame(losses + steps, infer_schema_length=None)
        write_results(path, rows, "\n\n".join(sections))

    if losses:
        write()
    for group, cells in step_groups(options) if "steps" in options.parts else ():
        groups[group] = Group(in_turns(cells, options.rounds))
        console.print(group, *(f"{groups[group].seconds(c)}" for c in cells))
        write()
    return 0


def note(kind: str) -> str:
    return (
        "'one of many': the device's own time, in a program of many calls, each at "
        "scores moved by the gradient of the one before; its difference to one call is "
        "the time to start it. Steps: AliExpress' sizes, cross-entropy, medians of "
        "rounds in turns. 'share of the copy's bandwidth': bytes a second that the "
        "compiler counts for a step, over those of a large array read and written. "
        f"Device: {kind}."
    )


if __name__ == "__main__":
    sys.exit(main())
