"""Time, memory and disk of `prepare table` where a column has millions of ids.

    python -m experiments.bench.many_ids --work /tmp/bench

Each size is a folder of Parquet parts, prepared in a process of its own: with exact
vocabularies (`--exact_rows`), or with a budget of 64 MiB for them, beyond which columns
are hashed (`--budget_rows`). "Scratch" is the most that is on the disk beside the raw
parts meanwhile. CPU seconds are those of all threads.
"""

import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from experiments.bench.tables import origin, write_results
from experiments.lib.measure import run
from pwiser_jax.options import Parser, PositiveInt
from pwiser_jax.reports.tables import to_markdown

PART = 500_000
LARGE = 100_000_000  # rows that are estimated
FEWEST = 5_000  # users; with fewer the small splits may have no conversion
SCHEMA = """\
categorical: [user, item]
numerical: [price]
labels: {click: clicked, conversion: bought}
group: user
split: {by: group, valid: 0.05, test: 0.05}
"""
MIB = {"exact": 1_000_000, "budget of 64 MiB": 64}  # of vocabularies, by way
OPTIONS = {"exact": "exact_rows", "budget of 64 MiB": "budget_rows"}


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        work: a folder for the generated files and the prepared ones.
        output: the folder of many_ids.csv and many_ids.md.
        exact_rows: rows of each table that gets exact vocabularies.
        budget_rows: rows of each table that is prepared within the budget.
        rows_per_user: rows of a user; there is an item for five users.
    """

    work: Path
    output: Path = Path("experiments/results")
    exact_rows: tuple[PositiveInt, ...] = (1_000_000, 3_000_000, 6_000_000)
    budget_rows: tuple[PositiveInt, ...] = (1_000_000, 3_000_000, 6_000_000)
    rows_per_user: PositiveInt = 2


def make_parts(folder: Path, rows: int, ids: int) -> None:
    """Parts of PART rows; every user appears where there are rows enough."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for at, first in enumerate(range(0, rows, PART)):
        count = min(PART, rows - first)
        click = rng.random(count) < 0.1
        user = (first + np.arange(count)) % ids
        pl.DataFrame(
            {
                "user": pl.Series(user).cast(pl.String),
                "item": pl.Series(rng.integers(0, ids // 5, count)),
                "price": rng.normal(size=count),
                "clicked": click.astype(np.int8),
                "bought": (click & (rng.random(count) < 0.1)).astype(np.int8),
            }
        ).write_parquet(folder / f"part-{at}.parquet")


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


@contextmanager
def largest(folder: Path) -> Iterator[list[int]]:
    """The most bytes below a folder meanwhile, looked up twice a second."""
    most, ended = [0], threading.Event()

    def look() -> None:
        while not ended.wait(0.5):
            total = 0
            for path in folder.rglob("*"):
                try:
                    total += path.stat().st_size if path.is_file() else 0
                except OSError:  # moved meanwhile
                    continue
            most[0] = max(most[0], total)

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def raw_parts(work: Path, rows: int, users: int) -> Path:
    """The folder of the generated parts, which is made where it is not there."""
    folder = work / f"parts-{rows}-{users}"
    if not folder.exists():
        partial = folder.with_name(f"{folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        # In another process: the peak memory of a child includes its parent's.
        maker = get_context("spawn").Process(
            target=make_parts, args=(partial, rows, users)
        )
        maker.start()
        maker.join()
        if maker.exitcode:
            raise RuntimeError(f"{partial} could not be made")
        partial.rename(folder)
    return folder


def measured(options: Options, rows: int, way: str) -> dict[str, Any]:
    users = rows // options.rows_per_user
    raw = raw_parts(options.work, rows, users)
    place = options.work / "prepared"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (options.work / "schema.yaml").write_text(SCHEMA, encoding="utf-8")
    with largest(place) as most:
        cost = run(
            *("pwiser_jax", "prepare", "table", f"--source={raw}"),
            *(f"--schema={options.work / 'schema.yaml'}", f"--output={place / 'out'}"),
            f"--vocabulary-mib={MIB[way]}",
        )
    line = {
        "vocabularies": way,
        "rows": rows,
        "users": users,
        "items": users // 5,
        "seconds": cost.seconds,
        "cpu_seconds": cost.cpu_seconds,
        "peak_mib": cost.peak_mib,
        "raw_mb": bytes_of(raw) / 1e6,
        "scratch_mb": most[0] / 1e6,
        "output_mb": bytes_of(place / "out") / 1e6,
        "hashed": "; ".join(x for x in cost.output.splitlines() if "hashed" in x),
    }
    print(line, file=sys.stderr, flush=True)
    return line


def estimate(small: dict[str, Any], large: dict[str, Any]) -> str:
    """What LARGE rows would take, by the straight line through two exact sizes."""
    step = (LARGE - large["rows"]) / (large["rows"] - small["rows"])

    def at(name: str) -> float:
        return large[name] + step * (large[name] - small[name])

    return (
        f"{LARGE:,} rows, exact, by the line through the two largest sizes: "
        f"{at('cpu_seconds') / 60:.0f} minutes of a core, {at('peak_mib') / 1024:.1f} "
        f"GiB of memory, {at('scratch_mb') / 1e3:.1f} GB of disk meanwhile, "
        f"{at('output_mb') / 1e3:.1f} GB at the end."
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.bench.many_ids", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(argv))))
    rows_of = {way: sorted({*getattr(options, x)}) for way, x in OPTIONS.items()}
    if not any(rows_of.values()):
        parser.error("--exact-rows and --budget-rows are both empty; expected a size")
    for way, sizes in rows_of.items():
        if sizes and sizes[0] < FEWEST * options.rows_per_user:
            parser.error(
                f"--{OPTIONS[way].replace('_', '-')} has {sizes[0]} rows; expected "
                f"{FEWEST * options.rows_per_user} or more, so that there are "
                f"{FEWEST} users for three splits"
            )
    command = "many_ids --work DIR"
    for way, sizes in rows_of.items():
        command += f" --{OPTIONS[way]}='{sizes}'"
    made = origin(command, ("numpy", "polars"))
    lines = [
        measured(options, rows, way) for way, sizes in rows_of.items() for rows in sizes
    ]
    exact = [line for line in lines if line["vocabularies"] == "exact"][-2:]
    estimates = [estimate(*exact)] if len(exact) == 2 else []
    frame = pl.DataFrame(lines)
    shown = frame.drop("hashed").with_columns(
        pl.selectors.float().round(0).cast(pl.Int64)
    )
    about = (__doc__ or "").strip()
    text = "\n\n".join((about, made, *estimates, to_markdown(shown)))
    write_results(options.output / "many_ids", frame, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
