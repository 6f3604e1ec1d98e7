"""Measures time and memory of preparing Ali-CCP, and extrapolates to all of it.

    python -m experiments.bench.prepare --work /tmp/bench

Generated raw files of several sizes are prepared, each in its own process. The smallest
are also prepared in plain Python (`experiments.bench.plain.plain_reader`), in turns;
their figures are of the run of median time. Raw files are read once before, so they are
in the system's file cache. Time, memory and disk of the published 85 M rows are
extrapolated twice: by a straight line through two measured sizes of the published
proportions, and at the larger size's rate. A stopped benchmark resumes and reuses
measurements of the same code.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import polars as pl
from rich.console import Console

import pwiser_jax as package
from experiments.bench.plain import plain_reader
from experiments.bench.raw import make_raw
from experiments.bench.raw.raw_aliccp import TEST_ROWS, TRAIN_ROWS
from experiments.bench.tables import origin, spread, write_results
from experiments.lib.measure import run
from pwiser_jax.atomic import write_whole
from pwiser_jax.options import Parser, PositiveInt
from pwiser_jax.reports.tables import to_markdown, to_rich

FIELDS = (18, 23)
PUBLISHED = "published proportions"
PLAIN, OURS = "plain Python", "prepare"


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        work: a folder for the generated files and the measurements.
        output: the folder of prepare.csv and prepare.md.
        rows: train rows of the files in the published proportions, two sizes.
        plain_rows: train rows that plain Python reads too, with a common line for ten.
        large_rows: train rows of the largest files.
        large_lines: their common lines.
        repeats: runs of each measurement of the smallest files.
    """

    work: Path
    output: Path = Path("experiments/results")
    rows: tuple[PositiveInt, PositiveInt] = (1_000_000, 3_000_000)
    plain_rows: PositiveInt = 500_000
    large_rows: PositiveInt = 5_000_000
    large_lines: PositiveInt = 200_000
    repeats: PositiveInt = 3


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
            # In another process: the peak memory of a child includes its parent's.
            run(make_raw.__name__, "aliccp", *options)
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


def code() -> str:
    """A hash of all code that is measured."""
    paths = sorted(Path(package.__file__).parent.rglob("*.py"))
    paths.append(Path(plain_reader.__file__))
    whole = hashlib.sha256(b"".join(path.read_bytes() for path in paths))
    return whole.hexdigest()[:12]


@dataclass(frozen=True)
class Measurement:
    """One command on some raw files; `turn` numbers its repeats."""

    raw: Raw
    how: str
    fields: int
    turn: int = 0

    def result(self, work: Path) -> Any:
        """A line of the table; read from disk if this code has measured it."""
        folder = self.raw.make(work)
        name = f"{folder.name}-{self.how}-{self.fields}-{self.turn}.json"
        path = work / f"measured-{code()}" / name
        if not path.is_file():
            write_whole(path, json.dumps(self._measure(folder, work)))
        return json.loads(path.read_text(encoding="utf-8"))

    def _measure(self, folder: Path, work: Path) -> Any:
        _warm(folder)
        output = work / "output"
        shutil.rmtree(output, ignore_errors=True)
        if self.how == PLAIN:
            arguments = (str(folder), str(output), str(self.fields))
            cost = run(plain_reader.__name__, *arguments)
        else:
            options = ["--on-bad-label=nest", f"--fields={self.fields}"]
            places = [f"--source={folder}", f"--output={output}"]
            cost = run("pwiser_jax", "prepare", "aliccp", *places, *options)
        rows, size = rows_of(folder), bytes_of(folder)
        return {
            "files": self.raw.what,
            "how": self.how,
            "fields": self.fields,
            "rows": rows,
            "raw_mb": size / 1e6,
            "seconds": cost.seconds,
            "rows_per_second": rows / cost.seconds,
            "mb_per_second": size / 1e6 / cost.seconds,
            "peak_mib": cost.peak_mib,
            "disk_mb": bytes_of(output) / 1e6,
        }


def _warm(folder: Path) -> None:
    for path in folder.iterdir():
        with path.open("rb") as file:
            while file.read(1 << 24):
                pass


def all_of_it(small: Any, large: Any) -> Iterator[dict[str, Any]]:
    """Extrapolates to the published files: by a line through two sizes, and by rate."""
    rows = TRAIN_ROWS + TEST_ROWS
    names = ("seconds", "raw_mb", "peak_mib", "disk_mb")
    slopes = {n: (large[n] - small[n]) / (large["rows"] - small["rows"]) for n in names}
    line = {n: large[n] + slopes[n] * (rows - large["rows"]) for n in names}
    rate = {n: large[n] * rows / large["rows"] for n in names if n != "peak_mib"}
    for files, cost in (("by the line", line), ("at the larger's rate", rate)):
        yield (
            dict.fromkeys(large)
            | {"how": OURS, "fields": large["fields"], "rows": rows}
            | {"files": f"all of it, {files}"}
            | cost
            | {
                "rows_per_second": rows / cost["seconds"],
                "mb_per_second": cost["raw_mb"] / cost["seconds"],
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
    raws = (few, *(Raw(PUBLISHED, rows, ()) for rows in options.rows), large)
    medians = []
    for raw, fields in product(raws, FIELDS):
        ways = (PLAIN, OURS) if raw is few else (OURS,)
        runs: dict[str, list[Any]] = {how: [] for how in ways}
        for turn, how in product(range(options.repeats if raw is few else 1), ways):
            runs[how].append(Measurement(raw, how, fields, turn).result(options.work))
            console.print(f"{raw.what}, {how}, {fields} fields: done")
        for repeats in runs.values():
            seconds = [line["seconds"] for line in repeats]
            repeats.sort(key=lambda line: line["seconds"])
            medians.append(repeats[len(repeats) // 2] | {"rounds": seconds})
    for fields in FIELDS:
        medians += all_of_it(*select(medians, fields, PUBLISHED))
    return medians


def select(
    lines: Sequence[dict[str, Any]], fields: int, files: str
) -> list[dict[str, Any]]:
    return [x for x in lines if x["fields"] == fields and x["files"] == files]


def sentences(lines: Sequence[dict[str, Any]]) -> str:
    """The speed over plain Python, and the growth of time with rows."""
    texts = []
    for fields in FIELDS:
        chosen = [line for line in lines if line["fields"] == fields]
        plain, ours = (line["rounds"] for line in chosen[:2])
        times = [a / b for a, b in zip(plain, ours, strict=True)]
        small, large = select(lines, fields, PUBLISHED)
        growth = large["seconds"] / small["seconds"]
        texts.append(
            f"{fields} fields: {spread(times, 1)} times as fast as plain Python on the "
            f"same files; {large['rows'] / small['rows']:.1f} times the rows take "
            f"{growth:.1f} times the time."
        )
    return " ".join(texts)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.bench.prepare", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(argv))))
    console = Console(stderr=True, highlight=False)
    options.work.mkdir(parents=True, exist_ok=True)
    made = origin("prepare --work DIR", ("numpy", "polars"))
    lines = measure(options, console)
    frame = pl.DataFrame(
        line | {"rounds": spread(line.get("rounds") or [line["seconds"]], 1)}
        for line in lines
    )
    shown = frame.select(
        pl.col("files").alias("Files"),
        pl.col("how").alias("How"),
        pl.col("fields").alias("Fields"),
        *(
            pl.col(name).round().cast(pl.Int64).alias(title)
            for name, title in (
                ("rows", "Rows"),
                ("raw_mb", "Raw MB"),
                ("rows_per_second", "Rows/s"),
                ("mb_per_second", "MB/s"),
                ("peak_mib", "Peak MiB"),
                ("disk_mb", "Output MB"),
            )
        ),
        pl.col("rounds").alias("Seconds (minimum to maximum)"),
    )
    head = (__doc__ or "").strip()
    text = f"{head}\n\n{made}\n\n{sentences(lines)}\n\n{to_markdown(shown)}"
    write_results(options.output / "prepare", frame, text)
    console.print(to_rich(shown))
    return 0


if __name__ == "__main__":
    sys.exit(main())
