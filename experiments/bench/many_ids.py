"""Time, memory and disk of `prepare table` where a column has millions of ids.

    python -m experiments.bench.many_ids --work /tmp/bench --rows 5000000 --ids 2500000

Writes a folder of Parquet parts, prepares it in a process of its own, once with a
vocabulary of all ids and once with ids hashed into buckets, and prints a line of each.
"""

import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from experiments.lib.measure import run
from pwiser_jax.options import Parser, PositiveInt

PART = 500_000
SCHEMA = """\
categorical: [user, item]
numerical: [price]
labels: {click: clicked, conversion: bought}
group: user
split: {by: group, valid: 0.05, test: 0.05}
"""
BUCKETS = "vocabulary: {user: {buckets: 1000000}, item: {buckets: 1000000}}\n"


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        work: a folder for the generated files and the prepared ones.
        rows: rows of the table.
        ids: users; there is an item for five of them.
    """

    work: Path
    rows: PositiveInt = 5_000_000
    ids: PositiveInt = 2_500_000


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


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.bench.many_ids", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(argv))))
    raw = options.work / f"parts-{options.rows}-{options.ids}"
    if not raw.exists():
        make_parts(raw, options.rows, options.ids)
    print(f"{options.rows:,} rows, {options.ids:,} users, {bytes_of(raw) / 1e6:.0f} MB")
    for name, schema in (("vocabulary", SCHEMA), ("buckets", SCHEMA + BUCKETS)):
        (options.work / f"{name}.yaml").write_text(schema, encoding="utf-8")
        output = options.work / f"prepared-{name}"
        shutil.rmtree(output, ignore_errors=True)
        cost = run(
            *("pwiser_jax", "prepare", "table", f"--source={raw}"),
            *(f"--schema={options.work / f'{name}.yaml'}", f"--output={output}"),
        )
        print(
            f"{name}: {cost.seconds:.0f} s, peak {cost.peak_mib:.0f} MiB, "
            f"output {bytes_of(output) / 1e6:.0f} MB"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
