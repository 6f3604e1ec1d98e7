"""`prepare table`: any CSV, TSV or Parquet table, with a schema file.

Everything is checked on the whole table before it is split, so that an error names the
file's own line or row. How values become categories and groups: see `raw.canonical`.
"""

import csv
import re
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import polars as pl

from pwiser_jax.atomic import resumable_folder
from pwiser_jax.data.datasets.table_parts import PLACE, Staging
from pwiser_jax.data.datasets.table_schema import read_table_schema
from pwiser_jax.data.prepared.encoder import find_kinds
from pwiser_jax.data.prepared.folder import (
    DataWarning,
    Each,
    check_output,
    in_turn,
    manifest_of_run,
    write,
)
from pwiser_jax.data.prepared.manifest import Manifest, is_prepared
from pwiser_jax.data.raw import canonical, columns
from pwiser_jax.data.raw.archives import Source as File
from pwiser_jax.data.raw.archives import unpack
from pwiser_jax.data.raw.columns import Reading
from pwiser_jax.data.raw.flat import BadLabel, FlatSpec, FlatTable
from pwiser_jax.data.raw.frames import scan_parquet
from pwiser_jax.data.raw.leaks import refuse_names
from pwiser_jax.data.raw.remote import local_copy
from pwiser_jax.data.raw.sources import scan_csv, separator_of
from pwiser_jax.errors import UserError, first_line
from pwiser_jax.options import PositiveInt
from pwiser_jax.version import __version__

NO_VALUE = "__HIVE_DEFAULT_PARTITION__"
SEPARATORS = {".csv": ",", ".tsv": "\t"}
FORMATS = "a .csv, .tsv, .csv.gz, .tsv.gz or .parquet file, or a folder of .parquet"


@dataclass(frozen=True)
class RawTable:
    """The rows of a table; called with a 1-based row, that row's place in its file.

    Args:
        name: in messages.
        frame: the rows.
        path: the plain CSV file, where it is one.
        separator: of the CSV file; None: Parquet.
        parts: the files of a folder, with their rows.
        frames: the rows of each part.
    """

    name: str
    frame: pl.LazyFrame
    path: Path
    separator: str | None = None
    parts: tuple[tuple[Path, int], ...] = ()
    frames: tuple[pl.LazyFrame, ...] = ()

    def __str__(self) -> str:
        return self.name

    def __call__(self, row: int) -> str:
        for part, rows in self.parts:
            if row <= rows:
                return f"{part}, row {row}"
            row -= rows
        if self.separator is None:
            return f"{self.name}, row {row}"
        # A quoted value may hold line ends: rows are read to be counted.
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=self.separator)
            for _ in range(row):
                next(reader)
            return f"{self.name}, line {reader.line_num + 1}"


@dataclass(frozen=True)
class SplitRows:
    """The rows of a split; called with a 1-based row, that row's place in its file."""

    name: str
    frame: pl.LazyFrame
    table: RawTable

    def __str__(self) -> str:
        return self.name

    def __call__(self, row: int) -> str:
        place = self.frame.select(PLACE).slice(row - 1, 1).collect()
        return self.table(int(place.item()))


@contextmanager
def open_table(
    path: Path, *, time: str | None = None, empty: bool = False
) -> Iterator[RawTable]:
    """The rows of a CSV or TSV file (also gzipped), a Parquet file or a folder of them.

    Columns of text files are text, but the time column becomes integers, dates or
    datetimes. Another separator is guessed from the header. In a folder, files whose
    name begins with "_" or "." are ignored, and folders such as `day=2022-05-03` are a
    column, as Spark, BigQuery and Dask write them. `predict` reads raw tables through
    this too; `empty` accepts a table without rows.

    Raises:
        UserError: names file and line of what is wrong.
    """
    try:
        if path.is_dir():
            yield _with_time(_open_folder(path), time)
            return
        with tempfile.TemporaryDirectory(prefix="pwiser-") as folder:
            yield _with_time(_open_file(path, Path(folder), empty), time)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error


def _open_file(path: Path, folder: Path, empty: bool) -> RawTable:
    file = File(path)
    suffix = Path(file.name).suffix.lower()
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if suffix not in (*SEPARATORS, ".parquet"):
        raise UserError(f"{path}: expected {FORMATS} files")
    _refuse_prepared(path)
    plain = unpack(file, folder)
    if suffix == ".parquet":
        return RawTable(str(path), _exact(scan_parquet(plain)), plain)
    separator = separator_of(plain, SEPARATORS[suffix])
    frame = scan_csv(plain, dtypes={}, name=str(path), separator=separator, empty=empty)
    return RawTable(str(path), frame, plain, separator)


def _open_folder(folder: Path) -> RawTable:
    """The parts of a folder, part 2 before part 10."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    parts = [path.relative_to(folder) for path in paths]
    parts = [p for p in parts if not any(name[0] in "._" for name in p.parts)]
    for part in parts:
        if part.suffix.lower() != ".parquet":
            raise UserError(
                f"{folder / part} is no part of a Parquet table; expected {FORMATS} "
                "files"
            )
    if not parts:
        raise UserError(f"{folder} is a folder without .parquet files")
    parts.sort(key=natural_order)
    frames: list[pl.LazyFrame] = []
    counts: list[tuple[Path, int]] = []
    schema: dict[str, pl.DataType] = {}
    for part in parts:
        path = folder / part
        _refuse_prepared(path)
        frame = scan_parquet(path).with_columns(
            pl.lit(value, pl.String).alias(name) for name, value in _partition(part)
        )
        types = dict(frame.collect_schema())
        schema = schema or types
        for name in {**schema, **types}:
            if schema.get(name) != types.get(name):
                here, first = (
                    columns.named(kinds[name]) if name in kinds else "absent"
                    for kinds in (types, schema)
                )
                raise UserError(
                    f"{path}: column {name!r} is {here}, but {first} in "
                    f"{folder / parts[0]}"
                )
        frames.append(_exact(frame.select(list(schema))))
        counts.append((path, int(frame.select(pl.len()).collect().item())))
    return RawTable(
        str(folder),
        pl.concat(frames),
        folder,
        parts=tuple(counts),
        frames=tuple(frames),
    )


def natural_order(path: Path) -> list[list[str | int]]:
    """A key that sorts paths with numbers by their numbers: part 2 before part 10."""
    texts = (re.split(r"(\d+)", name) for name in path.parts)
    return [[int(t) if t.isdecimal() else t for t in name] for name in texts]


def _partition(part: Path) -> list[tuple[str, str | None]]:
    """The columns that a part's folders name, such as `day=2022-05-03`."""
    pairs = (name.partition("=") for name in part.parts[:-1])
    return [
        (
            unquote(key),
            None if value == NO_VALUE else unquote(value),
        )
        for key, equals, value in pairs
        if equals
    ]


def _refuse_prepared(path: Path) -> None:
    if is_prepared(path):
        raise UserError(
            f"{path} holds rows that prepare has encoded: give the raw rows, or the "
            "file in its prepared folder"
        )


def _exact(frame: pl.LazyFrame) -> pl.LazyFrame:
    """Float32 columns as the float64 of their shortest text, which a CSV file holds."""
    types = frame.collect_schema()
    return frame.with_columns(
        pl.col(name).cast(pl.String).cast(pl.Float64)
        for name, dtype in types.items()
        if dtype == pl.Float32
    )


def prepare_table(
    source: str | Path,
    output: Path,
    *,
    schema: Path,
    on_bad_label: BadLabel = "error",
    allow_leaks: tuple[str, ...] | str = (),
    extend: Path | None = None,
    vocabulary_mib: PositiveInt = 2048,
    overwrite: bool = False,
    each: Each = in_turn,
) -> Manifest:
    """Your own table: CSV, TSV or Parquet, with a schema file.

    Args:
        source: a .csv, .tsv, .csv.gz, .tsv.gz or .parquet file, or a folder of .parquet
            files; CSV with a header. Also at a path of fsspec, such as s3://bucket/a.
        output: the new folder.
        schema: a YAML file that names the columns and the split; `pwiser schema` writes
            a first one.
        on_bad_label: what to do with a label without the one below it, such as a
            conversion without a click: refuse (error), leave the row out (drop), set
            the label and those above it to 0 (nest), or those below it to 1 (fill).
        allow_leaks: features that may predict a label alone, where others are refused:
            a name, names with commas between them, or a list.
        extend: a run's folder: rows get the ids and the scales of its data, and values
            that are new to it further ids; for `train --warm-start`.
        vocabulary_mib: memory for vocabularies in MiB. Beyond it the column with the
            most values is hashed into ids, without a vocabulary; not with --extend.
        overwrite: replace a prepared folder.
        each: checks parts and writes files of rows, perhaps in other processes.
    """
    check_output(output, overwrite=overwrite)
    if each is not in_turn and not Path(source).is_dir():
        raise UserError(f"{source}: --cluster needs a folder of .parquet files")
    meaning = read_table_schema(schema)
    spec = FlatSpec(
        categorical=meaning.categorical,
        numerical=meaning.numerical,
        multi_valued=meaning.multi_valued,
        labels=meaning.labels,
        group=meaning.group,
        time=meaning.time,
        weight=meaning.weight,
        min_count=meaning.min_count,
        min_counts=meaning.min_counts,
        buckets=meaning.buckets,
        standardize=meaning.standardize,
    )
    refuse_names(spec)
    if extend is not None:  # values are read as the run read them
        before = manifest_of_run(extend)
        hashed = {name: before.spec.buckets[name] for name in _hashed(before)}
        buckets = {**hashed, **spec.buckets}
        spec = replace(spec, kinds=before.spec.kinds, buckets=buckets)
    with (
        local_copy(source, output) as local,
        open_table(local, time=spec.time) as table,
    ):
        column = meaning.split.options.get("column")
        named = (*spec.features, *spec.labels.values(), spec.group, spec.time)
        columns.require(table.frame, (*named, spec.weight, column), table)
        kinds, mixed = find_kinds(table.frame, spec, table)
        spec = replace(spec, kinds={**kinds, **spec.kinds})
        for name in mixed:
            _warn_of_mixed(table, name, kinds.get(name) == "number")
        files = [part for part, _ in table.parts] or [local]
        plan = _plan(files, source, spec, meaning, on_bad_label, extend, vocabulary_mib)
        with resumable_folder(output, plan) as folder:
            staging = Staging(spec, meaning, on_bad_label, folder)
            first, parts = 0, table.frames or (table.frame,)
            calls = []
            for at, (part, path) in enumerate(zip(parts, files, strict=True)):
                calls.append((staging, part, path, at, table, first))
                first += table.parts[at][1] if table.parts else 0
            each(Staging.stage, calls)
            splits = staging.splits()
            flat = FlatTable(
                dataset="table",
                spec=spec,
                splits={name: rows.drop(PLACE) for name, rows in splits.items()},
                places={n: SplitRows(n, rows, table) for n, rows in splits.items()},
                sources=(*files, schema),
                dropped=staging.counts("dropped", len(parts)),
                options={
                    "on_bad_label": on_bad_label,
                    "schema": meaning.raw,
                    "counted": staging.counts("counted", len(parts)),
                },
            )
            return write(
                flat,
                output,
                overwrite=overwrite,
                allow_leaks=allow_leaks,
                extend=extend,
                budget=vocabulary_mib << 20,
                kept=folder,
                each=each,
            )


def _hashed(manifest: Manifest) -> Mapping[str, Any]:
    """The columns that were hashed as their vocabularies exceeded the budget."""
    return manifest.options.get("hashed", {})


def _plan(files: Sequence[Path], *options: object) -> str:
    """What must be equal for a killed command's finished work to be used."""
    facts = [
        (path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files
    ]
    return repr((__version__, pl.__version__, facts, options))


def _warn_of_mixed(table: RawTable, column: str, are_numbers: bool) -> None:
    read = (
        "they are read as the same numbers"
        if are_numbers
        else "as other values are no whole numbers, all are kept as text"
    )
    warnings.warn(
        f"{table}: column {column!r} holds whole numbers in two forms, such as 7 and "
        f"7.0; {read}",
        DataWarning,
        stacklevel=3,
    )


def _with_time(table: RawTable, time: str | None) -> RawTable:
    """The table with a text time column as integers, dates or datetimes.

    The first value that is not empty decides which.
    """
    dtypes = table.frame.collect_schema()
    if time is None or dtypes.get(time) != pl.String:
        return table
    text = pl.col(time).str.strip_chars()
    filled = table.frame.select(text).filter(text != "").head(1).collect()
    first = str(filled.item()) if filled.height else ""
    if first.lstrip("-").isdecimal():
        value, kind = text.cast(pl.Int64, strict=False), "an integer"
    elif len(first) == len("2022-05-03"):
        value = text.str.strptime(pl.Date, "%Y-%m-%d", strict=False)
        kind = "a date such as 2022-05-03"
    else:
        value = canonical.moment(text)
        kind = "a time such as 2022-05-03 14:30:00"
    reading = Reading(time, value, value.is_null(), f"{kind} in every row")
    columns.refuse_bad(table.frame, [reading], table)
    return replace(
        table,
        frame=table.frame.with_columns(value.alias(time)),
        frames=tuple(each.with_columns(value.alias(time)) for each in table.frames),
    )
