"""How fast is a training step, and what does each part of it cost or save?

    python -m experiments.bench_training --work /tmp/bench

The four models at AliExpress' and Ali-CCP's sizes, as they are and in plain form, and
where PyTorch is installed the same networks written plainly in it, with glibc's usual
allocator and one told to keep its memory: the better counts (our training tells it so
itself). Each measurement is a process of its own, all in turns, `--repeats` times over;
a figure is the median. A benchmark that was stopped goes on from the measurements in
its work folder.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import polars as pl
from rich.console import Console

from experiments.measure import KEEP_MEMORY, machine, on_accelerator, peaks
from experiments.training_cell import Cell, compiled, measure
from pwiser_jax.files import write_whole
from pwiser_jax.options import Parser
from pwiser_jax.reports.tables import to_markdown, write_csv
from pwiser_jax.training.several import MOST_STEPS

MODELS = ("shared_bottom", "mmoe", "ple", "single_task")
DIMS = (16, 128)
IDS = (30_000, 300_000, 3_000_000)
LARGE_BATCH = 65_536
RUNS = 16
SEVERAL = MOST_STEPS  # in one call
PARTS = ("models", "large_batches", "runs", "tables", "ids", "losses", "switches")
ALLOCATORS = {"usual": {}, "keep": KEEP_MEMORY}

# The same function with more work or less, or called in another way.
PLAIN = json.dumps({"small_rows": 0})
EXPERTS, MEMORY = "experts one by one", "freed memory given back"  # the host's
SWITCHES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "without tables projected": {"changes": PLAIN},
    EXPERTS: {"plain": "experts"},
    "batch norm by Flax": {"plain": "batch_norm"},
    "dropout by jax.random": {"plain": "dropout"},
    MEMORY: {"plain": "memory"},
    "without dropout (another function)": {"changes": json.dumps({"dropout": 0.0})},
    "bfloat16 (rounded products)": {"changes": json.dumps({"compute": "bfloat16"})},
    "8 steps a call": {"steps": SEVERAL},
}


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        work: a folder for single measurements; those there are not made again.
        output: path of the results, without a suffix.
        large_models: the models of the part "tables", the longest.
        dims: widths of an embedded field in the parts "tables" and "ids".
        parts: which of the parts, in this order: models, large_batches and runs (both
            on an accelerator alone), tables, ids, losses, switches.
        repeats: how often everything is measured.
    """

    work: Path
    output: Path = Path("experiments/results/training")
    parts: tuple[str, ...] = PARTS
    large_models: tuple[str, ...] = MODELS
    dims: tuple[int, ...] = DIMS
    repeats: int = 3


def in_torch(cell: Cell) -> Iterator[Cell]:
    """With each allocator of the host; an accelerator has one of its own."""
    for allocator in ("usual",) if on_accelerator() else ALLOCATORS:
        yield replace(cell, engine="torch", allocator=allocator)


def model_cells() -> Iterator[Cell]:
    for model in MODELS:
        cell = Cell(model=model)
        yield from in_torch(cell)
        yield replace(cell, changes=PLAIN)
        yield cell
        yield replace(cell, steps=SEVERAL)


def large_batch_cells() -> Iterator[Cell]:
    """The paper's 2,048 rows are few for an accelerator."""
    for model in MODELS:
        cell = Cell(model=model, batch=LARGE_BATCH)
        yield from in_torch(cell)
        yield cell


def table_cells() -> Iterator[Cell]:
    for dim, model in product(DIMS, MODELS):
        cell = Cell(model=model, data="aliccp", dim=dim)
        for embedding in ("adam", "sparse_adam"):
            yield from in_torch(replace(cell, embedding=embedding))
        for embedding in ("adam", "lazy_adam", "rowwise_adagrad"):
            yield replace(cell, embedding=embedding)
        yield replace(cell, embedding="lazy_adam", steps=SEVERAL)


def id_cells() -> Iterator[Cell]:
    for dim, embedding, ids in product(DIMS, ("adam", "lazy_adam"), IDS):
        yield Cell(data="aliccp", dim=dim, embedding=embedding, ids=ids)


def loss_cells() -> Iterator[Cell]:
    for model, batch in product(("shared_bottom", "mmoe"), (2048, LARGE_BATCH)):
        if (model, batch) != ("mmoe", LARGE_BATCH):
            yield Cell(model=model, batch=batch, lambda_=0.1)
    for batch, lambda_ in product((2048, LARGE_BATCH), (0.0, 0.1)):
        yield Cell(engine="loss", batch=batch, lambda_=lambda_)


def switches() -> Iterator[tuple[str, Cell]]:
    for model, name in product(("shared_bottom", "mmoe"), SWITCHES):
        without = model == "shared_bottom" and name == EXPERTS
        if not without and not (on_accelerator() and name == MEMORY):
            yield name, Cell(model=model, **SWITCHES[name])


def switch_cells() -> Iterator[Cell]:
    return (cell for _, cell in switches())


def run_cells() -> Iterator[Cell]:
    """Many runs as one program: of use where one does not fill the device."""
    for model, runs in product(("shared_bottom", "mmoe"), (1, RUNS)):
        yield Cell(model=model, runs=runs)


class Measurements:
    """Seconds and work by cell: each line of a file is one process's."""

    def __init__(self, work: Path, repeats: int) -> None:
        work.mkdir(parents=True, exist_ok=True)
        self._path, self._repeats = work / "cells.jsonl", repeats
        self._found: dict[Cell, list[dict[str, Any]]] = {}
        for line in self._path.read_text().splitlines() if self._path.exists() else ():
            tree = json.loads(line)
            self._found.setdefault(Cell(**tree["cell"]), []).append(tree["found"])

    def make(self, cells: Sequence[Cell]) -> None:
        console = Console(stderr=True, highlight=False)
        due = [c for c in cells if len(self._found.get(c, [])) < self._repeats]
        accelerated = on_accelerator()
        made = all_compiled(due) if accelerated else {}
        for repeat in range(self._repeats):
            for cell in cells:
                have = self._found.setdefault(cell, [])
                if len(have) > repeat:
                    continue
                found = here(cell, made) if accelerated else in_own_process(cell)
                have.append(found)
                line = json.dumps({"cell": asdict(cell), "found": found})
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(line + "\n")
                console.print(line)

    def seconds(self, cell: Cell) -> float | None:
        """The median; None where it was not measured, or died."""
        found = self._found.get(cell, [])
        times = [one["seconds"] for one in found if one["seconds"] is not None]
        return median(times) if times else None

    def best(self, cells: Iterator[Cell]) -> float | None:
        """The best of several, as of two allocators."""
        times = [time for cell in cells if (time := self.seconds(cell)) is not None]
        return min(times, default=None)

    def work(self, cell: Cell, what: str) -> float | None:
        found = self._found.get(cell)
        return found[0].get(what) if found else None

    def rows(self, cells: Sequence[Cell]) -> list[dict[str, Any]]:
        return [
            asdict(cell)
            | {"seconds": self.seconds(cell), "measured": len(self._found[cell])}
            | {what: self.work(cell, what) for what in ("flops", "bytes")}
            for cell in cells
            if cell in self._found
        ]


def all_compiled(cells: Sequence[Cell]) -> dict[Cell, Any]:
    """The programs of our cells; the compiler works on several at a time."""
    ours = [cell for cell in cells if cell.engine == "jax"]
    # A plain form lasts for the whole process.
    apart = {cell: compiled(cell) for cell in ours if cell.plain}
    rest = [cell for cell in ours if not cell.plain]
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        return apart | dict(zip(rest, threads.map(compiled, rest), strict=True))


def here(cell: Cell, made: dict[Cell, Any]) -> dict[str, float | None]:
    """As `in_own_process`, in this one: on an accelerator little depends on what the
    host did before, and a process takes longer to start than a cell to measure."""
    try:
        return dict(measure(cell, *([made[cell]] if cell in made else [])))
    except RuntimeError:
        return {"seconds": None}


def in_own_process(cell: Cell) -> dict[str, float | None]:
    """The measures of a cell; None where it dies, as it does for want of memory."""
    done = subprocess.run(
        [sys.executable, "-m", "experiments.training_cell", json.dumps(asdict(cell))],
        env=os.environ | ALLOCATORS[cell.allocator],
        stdout=subprocess.PIPE,
        text=True,
    )
    if done.returncode:
        return {"seconds": None}
    return json.loads(done.stdout.splitlines()[-1])


# Tables of the results.


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{1e3 * seconds:,.1f}"


def _rate(rows: int, seconds: float | None) -> str:
    return "-" if seconds is None else f"{rows / seconds:,.0f}"


def _ratio(slow: float | None, fast: float | None) -> str:
    return "-" if not (slow and fast) else f"{slow / fast:.2f}"


def _share(part: float | None, whole: float | None) -> str:
    return "-" if not (part and whole) else f"{part / whole:.1%}"


def models_table(of: Measurements, batch: int = 2048) -> pl.DataFrame:
    best = peaks() if on_accelerator() else None
    lines = []
    for model in MODELS:
        cell = Cell(model=model, batch=batch)
        fast, torch = of.seconds(cell), of.best(in_torch(cell))
        plain = of.seconds(replace(cell, changes=PLAIN))
        several = of.seconds(replace(cell, steps=SEVERAL))
        line = {
            "Model": model,
            "PyTorch, rows/s": _rate(cell.batch, torch),
            "plain, rows/s": _rate(cell.batch, plain),
            "rows/s": _rate(cell.batch, fast),
            "step [ms]": _ms(fast),
            "times PyTorch": _ratio(torch, fast),
            f"step, {SEVERAL} in a call [ms]": _ms(several),
            f"times PyTorch, {SEVERAL} in a call": _ratio(torch, several),
        }
        if best:
            operations, moved = (of.work(cell, what) for what in ("flops", "bytes"))
            line |= {
                "of peak product": _share(operations and operations / best[0], fast),
                "of bandwidth": _share(moved and moved / best[1], fast),
            }
        lines.append(line)
    return pl.DataFrame(lines)


def large_batches_table(of: Measurements) -> pl.DataFrame:
    return models_table(of, LARGE_BATCH)


def tables_table(of: Measurements) -> pl.DataFrame:
    lines = []
    for dim, model in product(DIMS, MODELS):
        cell = Cell(model=model, data="aliccp", dim=dim)
        lazy = replace(cell, embedding="lazy_adam")
        torch = of.best(in_torch(cell))
        torch_sparse = of.best(in_torch(replace(cell, embedding="sparse_adam")))
        dense, one = of.seconds(cell), of.seconds(lazy)
        several = of.seconds(replace(lazy, steps=SEVERAL))
        adagrad = of.seconds(replace(cell, embedding="rowwise_adagrad"))
        if not (dense or torch):
            continue
        lines.append(
            {
                "Model": model,
                "dim": str(dim),
                "PyTorch Adam": _rate(cell.batch, torch),
                "PyTorch SparseAdam": _rate(cell.batch, torch_sparse),
                "adam": _rate(cell.batch, dense),
                "rowwise_adagrad": _rate(cell.batch, adagrad),
                "lazy_adam": _rate(cell.batch, one),
                f"lazy_adam, {SEVERAL} in a call": _rate(cell.batch, several),
                "times PyTorch Adam": _ratio(torch, one),
                "times SparseAdam": _ratio(torch_sparse, one),
                f"times PyTorch Adam, {SEVERAL} in a call": _ratio(torch, several),
                f"times SparseAdam, {SEVERAL} in a call": _ratio(torch_sparse, several),
            }
        )
    return pl.DataFrame(lines)


def ids_table(of: Measurements) -> pl.DataFrame:
    lines = []
    for dim, embedding in product(DIMS, ("adam", "lazy_adam")):
        cell = Cell(data="aliccp", dim=dim, embedding=embedding)
        times = [of.seconds(replace(cell, ids=ids)) for ids in IDS]
        lines.append(
            {"Embedding": embedding, "dim": str(dim)}
            | {f"{n:,} ids [ms]": _ms(t) for n, t in zip(IDS, times, strict=True)}
            | {"most over fewest": _ratio(times[-1], times[0])}
        )
    return pl.DataFrame(lines)


def losses_table(of: Measurements) -> pl.DataFrame:
    lines = []
    for cell in loss_cells():
        if cell.engine == "loss":
            continue
        alone = replace(Cell(engine="loss"), batch=cell.batch)
        without, ranked = (
            of.seconds(replace(alone, lambda_=lambda_)) for lambda_ in (0.0, 0.1)
        )
        step = of.seconds(cell)
        pwiser = ranked - without if ranked and without else None
        lines.append(
            {
                "Model": cell.model,
                "batch": f"{cell.batch:,}",
                "step [ms]": _ms(step),
                "loss without PWiseR [ms]": _ms(without),
                "loss with PWiseR [ms]": _ms(ranked),
                "PWiseR's share of a step": _share(pwiser, step),
            }
        )
    return pl.DataFrame(lines)


def switches_table(of: Measurements) -> pl.DataFrame:
    lines = []
    for name, cell in switches():
        seconds = of.seconds(cell)
        as_it_is = of.seconds(Cell(model=cell.model))
        lines.append(
            {
                "Model": cell.model,
                "": name,
                "step [ms]": _ms(seconds),
                "over as it is": _ratio(seconds, as_it_is),
            }
        )
    return pl.DataFrame(lines)


def runs_table(of: Measurements) -> pl.DataFrame:
    lines = []
    for model in ("shared_bottom", "mmoe"):
        one, many = (of.seconds(Cell(model=model, runs=runs)) for runs in (1, RUNS))
        lines.append(
            {
                "Model": model,
                "1 run [ms]": _ms(one),
                f"{RUNS} runs in one program [ms]": _ms(many),
                "over one": _ratio(many, one),
            }
        )
    return pl.DataFrame(lines)


class Part(NamedTuple):
    """Cells, and the table made of them under a title."""

    cells: Callable[[], Iterator[Cell]]
    title: str
    table: Callable[[Measurements], pl.DataFrame]


OF_PARTS = {
    "models": Part(
        model_cells,
        "AliExpress: 16 fields, 144 ids, 63 numerical columns, dim 128",
        models_table,
    ),
    "large_batches": Part(
        large_batch_cells,
        f"The same with batches of {LARGE_BATCH:,} rows",
        large_batches_table,
    ),
    "runs": Part(run_cells, "Runs side by side", runs_table),
    "tables": Part(table_cells, "Ali-CCP: 18 fields, 1.28 M ids, rows/s", tables_table),
    "ids": Part(
        id_cells, "SharedBottom by number of ids (Ali-CCP's fields)", ids_table
    ),
    "losses": Part(loss_cells, "PWiseR's own time", losses_table),
    "switches": Part(switch_cells, "AliExpress: what each idea saves", switches_table),
}


def plot(of: Measurements, path: Path) -> None:
    """Rows/s of the models, and a step's time against the number of ids."""
    import matplotlib.pyplot as plt

    from pwiser_jax.reports.plots import BLACK, MARKERS, PALETTE, STYLE

    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
        for k, name in enumerate(("PyTorch", "plain", "pwiser_jax")):
            speeds = []
            for model in MODELS:
                cell = Cell(model=model)
                seconds = {
                    "PyTorch": of.best(in_torch(cell)),
                    "plain": of.seconds(replace(cell, changes=PLAIN)),
                    "pwiser_jax": of.seconds(cell),
                }[name]
                speeds.append(cell.batch / seconds if seconds else 0)
            places = [m + 0.27 * (k - 1) for m in range(len(MODELS))]
            colour = (BLACK, *PALETTE)[k]
            left.bar(places, speeds, 0.25, label=name, color=colour)
        left.set_xticks(range(len(MODELS)), MODELS)
        left.set_ylabel("rows/s")
        left.set_title("AliExpress, batch 2,048")
        left.legend(fontsize=8)
        for k, (dim, embedding) in enumerate(product(DIMS, ("adam", "lazy_adam"))):
            cell = Cell(data="aliccp", dim=dim, embedding=embedding)
            line = [(n, t) for n in IDS if (t := of.seconds(replace(cell, ids=n)))]
            if line:
                look = {"color": (BLACK, *PALETTE)[k], "marker": MARKERS[k % 6]}
                x, y = zip(*((n, 1e3 * t) for n, t in line), strict=True)
                right.loglog(x, y, label=f"{embedding}, dim {dim}", **look)
        right.set_xlabel("ids")
        right.set_ylabel("step [ms]")
        right.set_title("SharedBottom, batch 2,048")
        right.legend(fontsize=8)
        figure.tight_layout()
        figure.savefig(path, dpi=120)
        plt.close(figure)


def wanted(part: str, options: Options) -> list[Cell]:
    """The cells of a part that can be measured here."""
    if part in ("large_batches", "runs") and not on_accelerator():
        return []
    have_torch = find_spec("torch") is not None
    return [
        cell
        for cell in dict.fromkeys(OF_PARTS[part].cells())
        if (cell.engine != "torch" or have_torch)
        and (cell.data != "aliccp" or cell.model in options.large_models)
        and (cell.data != "aliccp" or cell.dim in options.dims)
    ]


def note(repeats: int) -> str:
    import jax

    settings = " ".join(f"{key}={value}" for key, value in KEEP_MEMORY.items())
    where, flags = jax.devices()[0].device_kind, os.environ.get("XLA_FLAGS")
    return (
        f"{' '.join((__doc__ or '').split(chr(10) * 2)[2].split())} Repeats "
        f"here: {repeats}. Batches of 2,048 rows, MTReclib's sizes of the "
        "models, dropout 0.2, Adam with L2 1e-6, cross-entropy. 'plain': the same "
        "function without projected tables; "
        f"'keep': {settings}. Machine: {machine(('jax', 'torch'))}; jax device: "
        f"{where}{f', XLA_FLAGS={flags}' if flags else ''}. Made by `python -m "
        "experiments.bench_training`."
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.bench_training", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(argv))))
    of = Measurements(options.work, options.repeats)
    cells: list[Cell] = []
    sections = ["# Training", note(options.repeats)]
    for name in options.parts:
        part, new = OF_PARTS[name], wanted(name, options)
        if not new:
            continue
        of.make(new)
        # Part by part: what is measured is there to be read.
        cells = list(dict.fromkeys([*cells, *new]))
        sections.append(f"## {part.title}\n\n{to_markdown(part.table(of)).rstrip()}")
        write_csv(pl.DataFrame(of.rows(cells)), options.output.with_suffix(".csv"))
        text = "\n\n".join(sections) + "\n"
        write_whole(options.output.with_suffix(".md"), text)
        plot(of, options.output.with_suffix(".png"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
