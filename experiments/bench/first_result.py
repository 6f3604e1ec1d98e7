"""How long does a user wait for the first result, and how much memory does it take?

    python -m experiments.bench.first_result --work /tmp/bench

From the command to its end: `pwiser train` of one epoch of AliExpress-shaped rows, with
validation, checkpoints and the measures that it prints. "first": there are no compiled
programs and no cache of rows; "again": both are kept from the first. "PyTorch": one
epoch and validation of a plain network from CSV files, as MTReclib's script does it
(`experiments.bench.plain.torch_epoch`). They take turns, each in a process of its own,
whose peak memory is given: resident pages, without those of PyTorch's loading
processes.

Most of what "first" adds to "again" is the program of a training step. The second table
gives the seconds of tracing and of compiling it, at AliExpress' sizes, by model.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import polars as pl
from matplotlib.figure import Figure
from rich.console import Console

from experiments.bench import compiling
from experiments.bench.raw import make_raw
from experiments.bench.tables import origin, spread, write_results
from experiments.bench.training_cell import Cell
from experiments.lib.measure import Cost, run
from pwiser_jax.config import load_config
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.models import MODELS as ALL_MODELS
from pwiser_jax.models.from_torch import BODIES
from pwiser_jax.options import Parser, PositiveInt
from pwiser_jax.reports.plots import GREY, PALETTE, WIDTH, styled, to_png
from pwiser_jax.reports.tables import to_markdown, to_rich

TORCH, FIRST, AGAIN = "PyTorch", "first", "again"
STEP = ("tracing", "compiling")  # the stages of a step's program
COLOURS = {TORCH: GREY, FIRST: PALETTE[0], AGAIN: PALETTE[5]}
MODELS = tuple(name for name, cls in ALL_MODELS.items() if cls in BODIES)
CONFIGS = Path(__file__).parents[2] / "configs" / "aliexpress"
NEEDED = ("torch", "pandas", "sklearn")
VALID_SHARE = 0.2


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        work: a folder for the generated files, runs and compiled programs.
        output: path of the results, without a suffix.
        rows: about so many train rows.
        models: the models to train; two by default, which take about ten minutes.
        compiled: the models whose step is compiled.
        rounds: number of measurements of each.
        torch_python: a Python that has torch, pandas and scikit-learn.
        set: options of every run, such as model.embedding_dim=16.
    """

    work: Path
    output: Path = Path("experiments/results/first_result")
    rows: PositiveInt = 100_000
    models: tuple[str, ...] = ("shared_bottom", "mmoe")
    compiled: tuple[str, ...] = MODELS
    rounds: PositiveInt = 3
    torch_python: Path = Path(sys.executable)
    set: tuple[str, ...] = ()


def missing_packages(python: Path) -> list[str]:
    """Of the packages that `torch_epoch` needs, those that a Python lacks."""
    code = "import importlib.util as u, sys; print([n for n in sys.argv[1:] if not "
    done = subprocess.run(
        [python, "-c", code + "u.find_spec(n)])", *NEEDED],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.replace("'", '"'))


def prepared_rows(options: Options) -> Path:
    """Generates and prepares the rows, and writes them as MTReclib's CSV files."""
    work, folder = options.work, options.work / "prepared"
    raw, total = work / "raw", round(options.rows / (1 - VALID_SHARE))
    places = [f"--source={raw}", f"--output={folder}", "--overwrite"]
    share = f"--valid_fraction={VALID_SHARE}"
    run(make_raw.__name__, "aliexpress", f"--rows={total}", f"--output={raw}")
    run("pwiser_jax", "prepare", "aliexpress", *places, share)
    prepared = Prepared(folder)
    schema = prepared.schema
    ids, numbers = (
        [field.name for field in fields]
        for fields in (schema.categorical, schema.numerical)
    )
    for split in ("train", "valid"):
        rows = prepared.load(split)
        frame = pl.concat(
            [
                pl.DataFrame({"search_id": rows.group}),
                pl.DataFrame(rows.categorical, schema=ids),
                pl.DataFrame(rows.numerical, schema=numbers),
                pl.DataFrame(rows.labels, schema=["click", "conversion"]),
            ],
            how="horizontal",
        )
        frame.write_csv(work / f"{split}.csv")
    return folder


def train(options: Options, model: str, how: str, folder: Path) -> Cost:
    """One run of `pwiser train`."""
    programs, output = options.work / "compiled", options.work / "run"
    shutil.rmtree(output, ignore_errors=True)
    if how == FIRST:
        shutil.rmtree(programs, ignore_errors=True)
        shutil.rmtree(folder / "cache", ignore_errors=True)
    return run(
        "pwiser_jax",
        "train",
        f"--config={CONFIGS / model}.yaml",
        f"--data.path={folder}",
        f"--output={output}",
        "--train.epochs=1",
        *_overrides(options),
        environment=_uncached() | {"PWISER_COMPILATION_CACHE": str(programs)},
    )


def train_torch(options: Options, model: str, folder: Path) -> Cost:
    """One run of PyTorch."""
    config = load_config(CONFIGS / f"{model}.yaml", _overrides(options))
    task = {
        "model": model,
        "config": asdict(config.model),
        "sizes": [field.size for field in Prepared(folder).schema.categorical],
        "train": str(options.work / "train.csv"),
        "valid": str(options.work / "valid.csv"),
        "batch_size": config.data.batch_size,
        "learning_rate": config.optimizer.learning_rate,
        "l2": config.optimizer.l2,
    }
    module, python = "experiments.bench.plain.torch_epoch", str(options.torch_python)
    return run(module, json.dumps(task), python=python)


def _uncached() -> dict[str, str]:
    """The environment, without a compilation cache of jax's."""
    return {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMP")}


def _overrides(options: Options) -> list[str]:
    return [f"--{item}" for item in options.set]


def bench(options: Options, hows: Sequence[str]) -> pl.DataFrame:
    """A row for each run."""
    folder = prepared_rows(options)
    lines = []
    for turn in range(options.rounds):
        for model in options.models:
            for how in hows:
                if how == TORCH:
                    cost = train_torch(options, model, folder)
                else:
                    cost = train(options, model, how, folder)
                lines.append(
                    {"model": model, "how": how, "round": turn}
                    | {"seconds": cost.seconds, "peak_mib": cost.peak_mib}
                )
                Console(stderr=True).print(lines[-1])
    return pl.DataFrame(lines)


def bench_step(options: Options) -> pl.DataFrame:
    """A row for each stage of compiling a step, model and round."""
    lines = []
    for turn in range(options.rounds):
        for model in options.compiled:
            cell = json.dumps(asdict(Cell(model=model)))
            cost = run(compiling.__name__, cell, environment=_uncached())
            for how, seconds in json.loads(cost.output).items():
                line = {"model": model, "how": how, "round": turn, "seconds": seconds}
                lines.append(line)
                Console(stderr=True).print(line)
    return pl.DataFrame(lines)


def formatted_step(table: pl.DataFrame) -> pl.DataFrame:
    """A line for each model: seconds of each stage of compiling a step, and of both."""
    lines = []
    for (model,), part in table.group_by("model", maintain_order=True):
        stages = part.pivot("how", index="round", values="seconds").select(STEP)
        seconds = stages.with_columns(both=pl.sum_horizontal(STEP))
        texts = {name: spread(seconds[name].to_list(), 1) for name in seconds.columns}
        lines.append({"Model": model} | {f"{k}, seconds": v for k, v in texts.items()})
    return pl.DataFrame(lines)


def formatted(table: pl.DataFrame) -> pl.DataFrame:
    """A line for each model and way: medians, and in brackets minimum and maximum."""
    lines = []
    for (model, how), part in table.group_by("model", "how", maintain_order=True):
        of_torch = table.filter((pl.col("model") == model) & (pl.col("how") == TORCH))
        both = part.join(of_torch, on=("model", "round"), suffix="_torch")
        times = both["seconds_torch"] / both["seconds"]
        memory = both["peak_mib"] / both["peak_mib_torch"]
        lines.append(
            {
                "Model": model,
                "": how,
                "seconds": spread(part["seconds"].to_list(), 1),
                "times as fast as PyTorch": spread(times.to_list()),
                "peak MiB": f"{median(part['peak_mib']):,.0f}",
                "times PyTorch's memory": spread(memory.to_list()),
            }
        )
    return pl.DataFrame(lines)


@styled
def plot(table: pl.DataFrame) -> Figure:
    """Seconds from the command to its end: medians, and lines from least to most."""
    models = table["model"].unique(maintain_order=True).to_list()
    hows = [how for how in COLOURS if how in table["how"]]
    figure = Figure(figsize=(WIDTH, 1.0 + 0.8 * len(models)), layout="constrained")
    axes = figure.subplots()
    for k, how in enumerate(hows):
        offset = (k - (len(hows) - 1) / 2) * 0.8 / len(hows)
        for at, model in enumerate(models):
            cells = (pl.col("model") == model) & (pl.col("how") == how)
            seconds = table.filter(cells)["seconds"].to_list()
            low, middle, high = min(seconds), median(seconds), max(seconds)
            axes.barh(
                at + offset,
                middle,
                0.75 / len(hows),
                color=COLOURS[how],
                label=how if at == 0 else None,
                xerr=[[middle - low], [high - middle]],
            )
    axes.set_yticks(range(len(models)), models)
    axes.invert_yaxis()
    axes.set_xlabel("seconds from the command to its end")
    axes.legend()
    return figure


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.bench.first_result", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(argv))))
    for option in ("models", "compiled"):
        if unknown := set(getattr(options, option)) - set(MODELS):
            names = ", ".join(MODELS)
            parser.error(f"--{option}: {min(unknown)} is none of {names}")
    missing = missing_packages(options.torch_python)
    hows, without = [TORCH, FIRST, AGAIN], ""
    if missing:
        hows.remove(TORCH)
        without = f" No PyTorch: {options.torch_python} lacks {', '.join(missing)}."
    made = origin("first_result --work DIR", rounds=options.rounds)
    options.work.mkdir(parents=True, exist_ok=True)
    table, step = bench(options, hows), bench_step(options)
    texts = formatted(table)
    head = f"{__doc__}\n{made} {options.rows:,} train rows.{without}\n\n"
    tables = [to_markdown(texts), to_markdown(formatted_step(step))]
    both = pl.concat([table, step], how="diagonal")
    write_results(options.output, both, head + "\n".join(tables))
    options.output.with_suffix(".png").write_bytes(to_png(plot(table)))
    Console().print(to_rich(texts, "From the command to the first result"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
