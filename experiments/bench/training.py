"""How fast is a training step, and what does each part of it cost or save?

    python -m experiments.bench.training --work /tmp/bench

The models at AliExpress' and Ali-CCP's sizes, as they are and in plain form. Where
PyTorch is installed, plain PyTorch networks too: the faster of two runs, with glibc's
default allocator and with one set to keep freed memory (our training sets it itself).
What a line compares is measured in turns `--rounds` times, in processes that run at the
same time where memory allows. A figure is the median of the rounds, a ratio the median
of their ratios. A stopped benchmark resumes from the lines in its work folder.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import polars as pl

from experiments.bench.tables import origin, spread, write_results
from experiments.bench.training_cell import Cell
from experiments.bench.turns import ALLOCATORS, Group, Measurements
from experiments.lib.measure import KEEP_MEMORY, on_accelerator
from pwiser_jax.models import MODELS as ALL_MODELS
from pwiser_jax.models.from_torch import BODIES
from pwiser_jax.options import Parser, PositiveInt
from pwiser_jax.reports.tables import to_markdown
from pwiser_jax.training.devices.several import MOST_STEPS

# The models that have a PyTorch form.
MODELS = tuple(name for name, cls in ALL_MODELS.items() if cls in BODIES)
DIMS = (16, 128)
IDS = (30_000, 300_000, 3_000_000)
LARGE_BATCH = 65_536
RUNS = 16
SEVERAL = MOST_STEPS  # in one call
PartName = Literal[
    "models", "large_batches", "runs", "tables", "ids", "losses", "switches", "split"
]
BEST_PRODUCT, BEST_COPY = Cell(engine="product"), Cell(engine="copy")

PLAIN = json.dumps({"small_rows": 0})
# Settings of the host.
MEMORY, THREADS = "freed memory given back", "calls in a thread of XLA's"
SWITCHES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "without tables projected": {"changes": PLAIN},
    "experts and towers one by one": {"plain": "experts"},
    "batch norm by Flax": {"plain": "batch_norm"},
    "dropout by jax.random": {"plain": "dropout"},
    MEMORY: {"plain": "memory"},
    THREADS: {"plain": "threads"},
    "without dropout (another function)": {"changes": json.dumps({"dropout": 0.0})},
    "bfloat16 (rounded products)": {"changes": json.dumps({"compute": "bfloat16"})},
    "8 steps a call": {"steps": SEVERAL},
}


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        work: a folder for single measurements; existing ones are used again.
        output: path of the results, without a suffix.
        large_models: the models of the part "tables", the longest.
        dims: widths of an embedded field in the parts "tables" and "ids".
        parts: which of the parts, in this order: models, large_batches and runs (both
            on an accelerator alone), tables, ids, losses, switches, split.
        rounds: number of measurements of each cell.
    """

    work: Path
    output: Path = Path("experiments/results/training")
    parts: tuple[PartName, ...] = get_args(PartName)
    large_models: tuple[str, ...] = MODELS
    dims: tuple[PositiveInt, ...] = DIMS
    rounds: PositiveInt = 8


def in_torch(cell: Cell) -> list[Cell]:
    """With each allocator of the host; an accelerator has its own."""
    names = ("usual",) if on_accelerator() else ALLOCATORS
    return [replace(cell, engine="torch", allocator=name) for name in names]


# A part has groups of cells, by name, and a table. The cells of a group are compared.


def model_groups(batch: int = 2048) -> Iterator[tuple[str, list[Cell]]]:
    for model in MODELS:
        cell = Cell(model=model, batch=batch)
        others = [replace(cell, changes=PLAIN), replace(cell, steps=SEVERAL)]
        group = [*in_torch(cell), cell, *(others if batch == 2048 else [])]
        yield f"{model}, batch {batch}", [BEST_PRODUCT, BEST_COPY, *group]


def models_table(of: dict[str, Group], batch: int = 2048) -> pl.DataFrame:
    lines = []
    for model, (name, _) in zip(MODELS, model_groups(batch), strict=True):
        group, cell = of[name], Cell(model=model, batch=batch)
        torch, several = in_torch(cell), replace(cell, steps=SEVERAL)
        line = {
            "Model": model,
            "PyTorch, rows/s": _rate(batch, group.seconds(*torch)),
            "plain, rows/s": _rate(batch, group.seconds(replace(cell, changes=PLAIN))),
            "rows/s": _rate(batch, group.seconds(cell)),
            "step [ms]": _ms(group.seconds(cell)),
            "times PyTorch": _times(group.ratios(torch, cell)),
            f"step, {SEVERAL} in a call [ms]": _ms(group.seconds(several)),
            f"times PyTorch, {SEVERAL} in a call": _times(group.ratios(torch, several)),
            "of the best product": _share(group.shares("flops", cell, BEST_PRODUCT)),
        }
        if on_accelerator():
            of_copy = group.shares("bytes", cell, BEST_COPY)
            line |= {"of the best copy": _share(of_copy)}
        lines.append(line)
    return pl.DataFrame(lines)


def large_batch_groups() -> Iterator[tuple[str, list[Cell]]]:
    """The paper's 2,048 rows do not fill an accelerator."""
    return model_groups(LARGE_BATCH)


def large_batches_table(of: dict[str, Group]) -> pl.DataFrame:
    return models_table(of, LARGE_BATCH)


def run_groups() -> Iterator[tuple[str, list[Cell]]]:
    """Several runs as one program, which helps where one does not fill the device."""
    for model, steps in product(("shared_bottom", "mmoe"), (1, SEVERAL)):
        cells = [Cell(model=model, runs=n, steps=steps) for n in (1, RUNS)]
        yield f"{model}, runs, {steps} in a call", cells


def runs_table(of: dict[str, Group]) -> pl.DataFrame:
    lines = []
    for name, (one, many) in run_groups():
        group = of[name]
        lines.append(
            {
                "Model": one.model,
                "steps in a call": str(one.steps),
                "1 run [ms]": _ms(group.seconds(one)),
                f"{RUNS} runs in one program [ms]": _ms(group.seconds(many)),
                "over one": _times(group.ratios([many], one)),
            }
        )
    return pl.DataFrame(lines)


def table_groups() -> Iterator[tuple[str, list[Cell]]]:
    for dim, model in product(DIMS, MODELS):
        cell = Cell(model=model, data="aliccp", dim=dim)
        lazy, others = replace(cell, embedding="lazy_adam"), ("rowwise_adagrad", "adam")
        yield (
            f"{model}, dim {dim}",
            [
                *(BEST_PRODUCT, *in_torch(cell), lazy, replace(lazy, steps=SEVERAL)),
                *in_torch(replace(cell, embedding="sparse_adam")),
                *(replace(cell, embedding=embedding) for embedding in others),
            ],
        )


def tables_table(of: dict[str, Group]) -> pl.DataFrame:
    lines = []
    for name, cells in table_groups():
        if name not in of:
            continue
        group, dense = of[name], cells[-1]
        cell = replace(dense, embedding="lazy_adam")
        torch = in_torch(dense)
        sparse = in_torch(replace(cell, embedding="sparse_adam"))
        several = replace(cell, steps=SEVERAL)

        def rate(*some: Cell, group: Group = group) -> str:
            return _rate(some[0].batch, group.seconds(*some))

        times = group.ratios(torch, cell)
        shares = group.shares("flops", cell, BEST_PRODUCT)
        lines.append(
            {
                "Model": cell.model,
                "dim": str(cell.dim),
                "PyTorch Adam": rate(*torch),
                "PyTorch SparseAdam": rate(*sparse),
                "adam": rate(dense),
                "rowwise_adagrad": rate(replace(cell, embedding="rowwise_adagrad")),
                "lazy_adam": rate(cell),
                "times PyTorch Adam": _times(times),
                "times SparseAdam": _times(group.ratios(sparse, cell)),
                f"lazy_adam, {SEVERAL} in a call": rate(several),
                f"times PyTorch Adam, {SEVERAL} in a call": _times(
                    group.ratios(torch, several)
                ),
                "of the best product": _share(shares),
                "products alone would be times PyTorch Adam": _times(
                    [a / b for a, b in zip(times, shares, strict=False)]
                ),
            }
        )
    return pl.DataFrame(lines)


def id_groups() -> Iterator[tuple[str, list[Cell]]]:
    for dim, embedding in product(DIMS, ("adam", "lazy_adam")):
        cell = Cell(data="aliccp", dim=dim, embedding=embedding)
        yield f"ids, {embedding}, dim {dim}", [replace(cell, ids=ids) for ids in IDS]


def ids_table(of: dict[str, Group]) -> pl.DataFrame:
    lines = []
    for name, cells in id_groups():
        if name in of:
            group, first = of[name], cells[0]
            lines.append(
                {"Embedding": first.embedding, "dim": str(first.dim)}
                | {f"{c.ids:,} ids [ms]": _ms(group.seconds(c)) for c in cells}
                | {"most over fewest": _times(group.ratios(cells[-1:], first))}
            )
    return pl.DataFrame(lines)


def loss_groups() -> Iterator[tuple[str, list[Cell]]]:
    for model, batch in (
        ("shared_bottom", 2048),
        ("shared_bottom", LARGE_BATCH),
        ("mmoe", 2048),
    ):
        step = Cell(model=model, batch=batch, lambda_=0.1)
        without, ranked = (
            Cell(engine="loss", batch=batch, lambda_=lambda_) for lambda_ in (0.0, 0.1)
        )
        yield f"losses, {model}, batch {batch}", [step, without, ranked]


def losses_table(of: dict[str, Group]) -> pl.DataFrame:
    lines = []
    for name, (step, without, ranked) in loss_groups():
        group = of[name]
        shares = (group.ratios([one], step) for one in (ranked, without))
        pwiser = [a - b for a, b in zip(*shares, strict=False)]
        lines.append(
            {
                "Model": step.model,
                "batch": f"{step.batch:,}",
                "step [ms]": _ms(group.seconds(step)),
                "loss without PWiseR [ms]": _ms(group.seconds(without)),
                "loss with PWiseR [ms]": _ms(group.seconds(ranked)),
                "PWiseR's share of a step": _share(pwiser),
            }
        )
    return pl.DataFrame(lines)


def switches(model: str) -> dict[str, Cell]:
    """The cells of a model by their names."""
    return {
        name: Cell(model=model, **SWITCHES[name])
        for name in SWITCHES
        if not (name in (MEMORY, THREADS) and on_accelerator())
    }


def switch_groups() -> Iterator[tuple[str, list[Cell]]]:
    for model in ("shared_bottom", "mmoe"):
        yield f"switches, {model}", list(switches(model).values())


def switches_table(of: dict[str, Group]) -> pl.DataFrame:
    lines = []
    for group_name, (as_it_is, *_) in switch_groups():
        group = of[group_name]
        for name, cell in switches(as_it_is.model).items():
            lines.append(
                {
                    "Model": cell.model,
                    "": name,
                    "step [ms]": _ms(group.seconds(cell)),
                    "over as it is": _times(group.ratios([cell], as_it_is)),
                }
            )
    return pl.DataFrame(lines)


SPLIT = ("mmoe", "ple")
NO_DROPOUT = json.dumps({"dropout": 0.0})
# Inputs, tables and a linear head for each task.
NO_LAYERS = json.dumps({"dropout": 0.0, "bottom": [], "tower": []})


def split_groups() -> Iterator[tuple[str, list[Cell]]]:
    """A step of Ali-CCP's models, with parts left out."""
    for model in SPLIT:
        cell = Cell(model=model, data="aliccp", dim=16, embedding="lazy_adam")
        without = (
            replace(cell, plain="no batch norm"),
            replace(cell, changes=NO_DROPOUT),
        )
        tables = replace(cell, model="shared_bottom", changes=NO_LAYERS)
        yield f"split, {model}", [BEST_PRODUCT, cell, *without, tables]


def split_table(of: dict[str, Group]) -> pl.DataFrame:
    """Shares of the parts. The rest: gates, activations, the optimizer, and what
    products take beyond the best's speed."""
    lines = []
    for name, cells in split_groups():
        if name not in of:
            continue
        group, (product, cell, *left_out, tables) = of[name], cells
        steps = [1e3 * seconds for seconds in group[cell].seconds]
        ratios = [group.ratios([one], cell) for one in (*left_out, tables)]
        shares = [
            group.shares("flops", cell, product),
            *([1 - ratio for ratio in some] for some in ratios[:-1]),
            ratios[-1],
        ]
        rest = [1 - sum(some) for some in zip(*shares, strict=False)]
        titles = ("products at the best's speed", "batch norm", "dropout", "tables")
        lines.append(
            {"Model": cell.model, "step [ms]": spread(steps, 1)}
            | {
                title: spread(some, 0, "%")
                for title, some in zip((*titles, "rest"), (*shares, rest), strict=True)
            }
        )
    return pl.DataFrame(lines)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.1f}"


def _rate(rows: int, seconds: float | None) -> str:
    return "-" if seconds is None else f"{rows / seconds:,.0f}"


def _times(ratios: Sequence[float]) -> str:
    return spread(ratios)


def _share(shares: Sequence[float]) -> str:
    return spread(shares, 1, "%")


class Part(NamedTuple):
    """Groups, and the table made of them under a title."""

    groups: Callable[[], Iterator[tuple[str, list[Cell]]]]
    title: str
    table: Callable[[dict[str, Group]], pl.DataFrame]


OF_PARTS = {
    "models": Part(
        model_groups,
        "AliExpress: 16 fields, 144 ids, 63 numerical columns, dim 128",
        models_table,
    ),
    "large_batches": Part(
        large_batch_groups,
        f"The same with batches of {LARGE_BATCH:,} rows",
        large_batches_table,
    ),
    "runs": Part(run_groups, "Runs side by side", runs_table),
    "tables": Part(
        table_groups, "Ali-CCP: 18 fields, 1.28 M ids, rows/s", tables_table
    ),
    "ids": Part(
        id_groups, "SharedBottom by number of ids (Ali-CCP's fields)", ids_table
    ),
    "losses": Part(loss_groups, "PWiseR's own time", losses_table),
    "switches": Part(
        switch_groups, "AliExpress: what each optimisation saves", switches_table
    ),
    "split": Part(
        split_groups,
        "Ali-CCP, dim 16: what a step's time goes to, by leaving parts out",
        split_table,
    ),
}


def wanted(part: str, options: Options) -> dict[str, list[Cell]]:
    """The groups of a part, with the cells that can be measured here."""
    if part in ("large_batches", "runs") and not on_accelerator():
        return {}
    have_torch = find_spec("torch") is not None

    def is_wanted(cell: Cell) -> bool:
        if cell.engine == "torch" and not have_torch:
            return False
        large = cell.data == "aliccp"
        return not large or (
            cell.model in options.large_models and cell.dim in options.dims
        )

    groups = {}
    for name, cells in OF_PARTS[part].groups():
        kept = [cell for cell in cells if is_wanted(cell)]
        if any(cell not in (BEST_PRODUCT, BEST_COPY) for cell in kept):
            groups[name] = kept
    return groups


def note(options: Options) -> str:
    import jax

    command = f"training --work DIR --parts='[{', '.join(options.parts)}]'"
    made = origin(command, ("jax", "torch"), rounds=options.rounds)

    settings = " ".join(f"{key}={value}" for key, value in KEEP_MEMORY.items())
    where, flags = jax.devices()[0].device_kind, os.environ.get("XLA_FLAGS")
    return (
        f"{' '.join((__doc__ or '').split(chr(10) * 2)[2].split())} Batches of 2,048 "
        "rows, MTReclib's sizes of the models, dropout 0.2, Adam with L2 1e-6, "
        "cross-entropy. 'plain': the same function without projected tables; 'of the "
        "best product': operations of a step's matrix products a second, over those of "
        "a large product alone; "
        f"'keep': {settings}. {made} jax device: {where}"
        f"{f', XLA_FLAGS={flags}' if flags else ''}."
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.bench.training", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(argv))))
    if unknown := set(options.large_models) - set(MODELS):
        names = ", ".join(MODELS)
        parser.error(f"--large_models: {min(unknown)} is none of {names}")
    of = Measurements(options.work, options.rounds)
    sections = ["# Training", note(options)]
    for name in options.parts:
        part, groups = OF_PARTS[name], wanted(name, options)
        if not groups:
            continue
        for group, cells in groups.items():
            of.make(group, cells)
        # Written after each part, so that finished parts can be read.
        table = to_markdown(part.table(of.groups)).rstrip()
        sections.append(f"## {part.title}\n\n{table}")
        write_results(options.output, pl.DataFrame(of.rows()), "\n\n".join(sections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
