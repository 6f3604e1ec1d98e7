"""How fast is Ali-CCP prepared, in how much memory, and what would all of it take?

    python -m experiments.bench_prepare --work /tmp/bench

Generated raw files of several sizes are prepared, each in a process of its own, and the
smallest ones also read by plain Python (`experiments.plain_reader`). Time, memory and
disk of the published 85 M rows are a straight line through two measured sizes of the
published proportions.
"""

import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

from experiments.make_raw import main as make_raw
from experiments.measure import machine, run
from experiments.raw_aliccp import TEST_ROWS, TRAIN_ROWS
from pwiser_jax.files import write_whole
from pwiser_jax.options import Parser
from pwiser_jax.reports.tables import to_markdown, to_rich, write_csv

FIELDS = (18, 23)
PUBLISHED = "published proportions"


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        work: a folder for the generated files and what has been measured; both are
            used again.
        output: the folder of prepare.csv and prepare.md.
        rows: train rows of the files in the published proportions, two sizes.
        plain_rows: train rows that plain Python reads too, with a common line for ten.
        large_rows: train rows of the largest files.
        large_lines: their common lines.
    """

    work: Path
    output: Path = Path("experiments/results")
    rows: tuple[int, int] = (1_000_000, 3_000_000)
    plain_rows: int = 500_000
    large_rows: int = 5_000_000
    large_lines: int = 200_000


@dataclass(frozen=True)
class Raw:
    """Generated raw files."""

    what: str
    rows: int
    arguments: tuple[str, ...]

    def make(self, work: Path) -> Path:
        folder = work / f"aliccp-{self.rows}{''.join(self.arguments)}"
        if not folder.is_dir():
            partial = folder.with_name(f"{folder.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            options = [f"--output={partial}", f"--rows={self.rows}", *self.arguments]
            make_raw(["aliccp", *options])
            partial.rename(folder)
        return folder


def bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def rows_of(folder: Path) -> int:
    """Rows of both halves, by their last sample ids."""
    total = 0
    for path in folder.glob("sample_skeleton_*.csv"):
        with path.open("rb") as file:
            file.seek(max(path.stat().st_size - 5_000, 0))
            total += int(file.read().splitlines()[-1].partition(b",")[0])
    return total


def measured(raw: Raw, folder: Path, how: str, fields: int, work: Path) -> Any:
    """A line of the table; one that was measured before is not measured again."""
    path = work / f"{folder.name}-{how}-{fields}.json"
    if not path.is_file():
        line = measure_one(raw, folder, how, fields, work)
        write_whole(path, json.dumps(line))
    return json.loads(path.read_text(encoding="utf-8"))


def measure_one(raw: Raw, folder: Path, how: str, fields: int, work: Path) -> Any:
    prepared = work / "prepared"
    if how == "plain Python":
        cost = run("experiments.plain_reader", str(folder), str(fields))
    else:
        options = ["--on-bad-label=nest", "--overwrite", f"--fields={fields}"]
        places = [f"--source={folder}", f"--output={prepared}"]
        cost = run("pwiser_jax", "prepare", "aliccp", *places, *options)
    rows, size = rows_of(folder), bytes_of(folder)
    return {
        "files": raw.what,
        "how": how,
        "fields": fields,
        "rows": rows,
        "raw_mb": size / 1e6,
        "seconds": cost.seconds,
        "rows_per_second": rows / cost.seconds,
        "mb_per_second": size / 1e6 / cost.seconds,
        "peak_mib": cost.peak_mib,
        "disk_mb": bytes_of(prepared) / 1e6 if how == "prepare" else None,
    }


def all_of_it(small: Any, large: Any) -> dict[str, Any]:
    """The published files by the line through two sizes."""
    rows = TRAIN_ROWS + TEST_ROWS

    def at(name: str) -> float:
        slope = (large[name] - small[name]) / (large["rows"] - small["rows"])
        return large[name] + slope * (rows - large["rows"])

    found = {name: at(name) for name in ("seconds", "raw_mb", "peak_mib", "disk_mb")}
    return (
        small
        | found
        | {
            "files": "all of it, computed",
            "rows": rows,
            "rows_per_second": rows / found["seconds"],
            "mb_per_second": found["raw_mb"] / found["seconds"],
        }
    )


def measure(options: Options, console: Console) -> list[dict[str, Any]]:
    """All lines of the table, size by size."""
    tenth = options.plain_rows // 10
    few = Raw(
        "a line for 10 rows",
        options.plain_rows,
        (f"--lines={tenth}", f"--test_rows={tenth}"),
    )
    large = Raw(
        "large",
        options.large_rows,
        (f"--lines={options.large_lines}", "--test_rows=50000"),
    )
    sizes = [Raw(PUBLISHED, rows, ()) for rows in options.rows]
    found = []
    for raw in (few, *sizes, large):
        folder = raw.make(options.work)
        for fields in FIELDS:
            for how in ("plain Python", "prepare") if raw is few else ("prepare",):
                found.append(measured(raw, folder, how, fields, options.work))
                console.print(f"{raw.what}, {how}, {fields} fields: done")
    for fields in FIELDS:
        two = [
            line
            for line in found
            if line["files"] == PUBLISHED and line["fields"] == fields
        ]
        found.append(all_of_it(*two))
    return found


def sentences(lines: Sequence[dict[str, Any]]) -> str:
    """What the table says: times as fast, and growth."""
    texts = []
    for fields in FIELDS:
        own = [line for line in lines if line["fields"] == fields]
        plain, ours = (line["seconds"] for line in own[:2])
        small, large = (line for line in own if line["files"] == PUBLISHED)
        growth = large["seconds"] / small["seconds"]
        texts.append(
            f"{fields} fields: {plain / ours:.1f} times as fast as plain Python on the "
            f"same files; {large['rows'] / small['rows']:.1f} times the rows take "
            f"{growth:.1f} times the time."
        )
    return " ".join(texts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.bench_prepare", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(argv))))
    console = Console(stderr=True, highlight=False)
    options.work.mkdir(parents=True, exist_ok=True)
    lines = measure(options, console)
    frame = pl.DataFrame(lines, infer_schema_length=None)
    write_csv(frame, options.output / "prepare.csv")
    shown = frame.select(
        pl.col("files").alias("Files"),
        pl.col("how").alias("How"),
        pl.col("fields").alias("Fields"),
        *(
            pl.col(name).round(digits).alias(title)
            for name, title, digits in (
                ("rows", "Rows", 0),
                ("raw_mb", "Raw MB", 0),
                ("seconds", "Seconds", 1),
                ("rows_per_second", "Rows/s", 0),
                ("mb_per_second", "MB/s", 0),
                ("peak_mib", "Peak MiB", 0),
                ("disk_mb", "Output MB", 0),
            )
        ),
    )
    head = (__doc__ or "").strip()
    text = (
        f"{head}\n\nMachine: {machine(('numpy', 'polars'))}.\n\n{sentences(lines)}\n\n"
    )
    write_whole(options.output / "prepare.md", text + to_markdown(shown) + "\n")
    console.print(to_rich(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
