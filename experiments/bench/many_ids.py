"""Time, memory and disk of `prepare table` where a column has millions of ids.

    python -m experiments.bench.many_ids --work /tmp/bench

Each size is a folder of Parquet parts, prepared in a process of its own: with exact
vocabularies, and with a budget of 64 MiB for them, beyond which columns are hashed.
"Scratch" is the most that is on the disk beside the raw parts meanwhile. CPU seconds
are those of all threads.
"""

import shutil
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
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
SCHEMA = """\
categorical: [user, item]
numerical: [price]
labels: {click: clicked, conversion: bought}
group: user
split: {by: group, valid: 0.05, test: 0.05}
"""
WAYS = {"exact": 1_000_000, "budget of 64 MiB": 64}  # MiB of vocabularies


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        work: a folder for the generated files and the prepared ones.
        output: the folder of many_ids.csv and many_ids.md.
        rows: rows of the tables, two or more.
        rows_per_user: rows of a user; there is an item for five users.
    """

    work: Path
    output: Path = Path("experiments/results")
    rows: tuple[PositiveInt, ...] = (1_000_000, 3_000_000, 6_000_000)
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
                "item": pl.Series(rng.integers(0, max(ids // 5, 1), count)),
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


def measured(options: Options, rows: int, way: str) -> dict[str, Any]:
    users = max(rows // options.rows_per_user, 1)
    raw = options.work / f"parts-{rows}-{users}"
    if not raw.exists():
        make_parts(raw, rows, users)
    place = options.work / "prepared"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    (options.work / "schema.yaml").write_text(SCHEMA, encoding="utf-8")
    with largest(place) as most:
        cost = run(
            *("pwiser_jax", "prepare", "table", f"--source={raw}"),
            *(f"--schema={options.work / 'schema.yaml'}", f"--output={place / 'out'}"),
            f"--vocabulary-mib={WAYS[way]}",
        )
    line = {
        "vocabularies": way,
        "rows": rows,
        "users": users,
        "items": max(users // 5, 1),
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


def estimate(lines: Sequence[dict[str, Any]], way: str) -> str:
    """What LARGE rows would take, by the straight line through the two largest."""
    small, large = [line for line in lines if line["vocabularies"] == way][-2:]
    step = (LARGE - large["rows"]) / (large["rows"] - small["rows"])

    def at(name: str) -> float:
        return large[name] + step * (large[name] - small[name])

    return (
        f"{LARGE:,} rows, {way}, by the line through the two largest sizes: "
        f"{at('cpu_seconds') / 60:.0f} minutes of a core, {at('peak_mib') / 1024:.1f} "
        f"GiB of memory, {at('scratch_mb') / 1e3:.1f} GB of disk meanwhile, "
        f"{at('output_mb') / 1e3:.1f} GB at the end."
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.bench.many_ids", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(argv))))
    made = origin("many_ids --work DIR", ("numpy", "polars"))
    sizes = sorted(options.rows)
    lines = [measured(options, rows, way) for rows in sizes for way in WAYS]
    frame = pl.DataFrame(lines).sort("vocabularies", "rows", descending=[True, False])
    shown = frame.drop("hashed").with_columns(
        pl.selectors.float().round(0).cast(pl.Int64)
    )
    estimates = [estimate(lines, way) for way in WAYS] if len(sizes) > 1 else []
    text = "\n\n".join(
        (
            (__doc__ or "").strip(),
            made,
            *estimates,
            to_markdown(shown),
        )
    )
    write_results(options.output / "many_ids", frame, text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
