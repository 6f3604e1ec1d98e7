"""`prepare table`: any CSV, TSV or Parquet file, with a schema file.

Everything is checked on the whole file before it is split, so that an error names the
file's own line or row.
"""

import csv
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from pwiser_jax.data.datasets.table_schema import TableSchema, read_table_schema
from pwiser_jax.data.prepared.encoder import features, side_columns
from pwiser_jax.data.prepared.folder import check_output, write
from pwiser_jax.data.prepared.manifest import Manifest, is_prepared
from pwiser_jax.data.raw import columns
from pwiser_jax.data.raw.archives import Source as File
from pwiser_jax.data.raw.archives import unpack
from pwiser_jax.data.raw.columns import Reading
from pwiser_jax.data.raw.flat import SPLITS, BadLabel, FlatSpec, FlatTable
from pwiser_jax.data.raw.frames import scan_parquet
from pwiser_jax.data.raw.labels import check_labels
from pwiser_jax.data.raw.leaks import refuse_names
from pwiser_jax.data.raw.sources import scan_csv
from pwiser_jax.data.raw.split import split_by_group, split_by_time
from pwiser_jax.errors import UserError

SEPARATORS = {".csv": ",", ".tsv": "\t"}


@dataclass(frozen=True)
class RawTable:
    """The rows of a file; called with a 1-based row, the place of that row in it."""

    name: str
    frame: pl.LazyFrame
    path: Path
    separator: str | None = None

    def __str__(self) -> str:
        return self.name

    def __call__(self, row: int) -> str:
        if self.separator is None:
            return f"{self.name}, row {row}"
        # A quoted value may hold line ends, so that rows must be read to be counted.
        with self.path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file, delimiter=self.separator)
            for _ in range(row):
                next(reader)
            return f"{self.name}, line {reader.line_num + 1}"


@contextmanager
def open_table(
    path: Path, *, time: str | None = None, empty: bool = False
) -> Iterator[RawTable]:
    """The rows of a CSV, TSV (both also gzipped) or Parquet file, in its order.

    Columns of text files are text, but the time column becomes integers, dates or
    datetimes. `predict` reads raw tables through this too, so that a value means the
    same there. `empty` accepts a table without rows.

    Raises:
        UserError: names file and line of what is not as it should be.
    """
    file = File(path)
    suffix = Path(file.name).suffix.lower()
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if suffix not in (*SEPARATORS, ".parquet"):
        raise UserError(f"{path}: expected a .csv, .tsv, .csv.gz, .tsv.gz or .parquet")
    if is_prepared(path):
        raise UserError(
            f"{path} holds rows that prepare has encoded: give the raw rows, or the "
            "file in its prepared folder"
        )
    try:
        with tempfile.TemporaryDirectory(prefix="pwiser-") as folder:
            plain = unpack(file, Path(folder))
            separator = SEPARATORS.get(suffix)
            if separator:
                frame = scan_csv(
                    plain, dtypes={}, name=str(path), separator=separator, empty=empty
                )
            else:
                frame = scan_parquet(plain)
            table = RawTable(str(path), frame, plain, separator)
            yield _with_time(table, time)
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{path} cannot be read: {reason}") from error


def prepare_table(
    source: Path,
    output: Path,
    *,
    schema: Path,
    on_bad_label: BadLabel = "error",
    allow_leaks: tuple[str, ...] | str = (),
    overwrite: bool = False,
) -> Manifest:
    """Your own table: CSV, TSV or Parquet, with a schema file.

    Args:
        source: a .csv, .tsv, .csv.gz, .tsv.gz or .parquet file; CSV with a header.
        output: the new folder.
        schema: a YAML file that names the columns and the split.
        on_bad_label: what to do with a label without the one below it, such as a
            conversion without a click: refuse (error), leave the row out (drop), set
            the label and those above it to 0 (nest), or those below it to 1 (fill).
        allow_leaks: features that may predict a label alone, where others are refused:
            a name, names with commas between them, or a list.
        overwrite: replace a prepared folder.
    """
    check_output(output, overwrite=overwrite)
    meaning = read_table_schema(schema)
    spec = FlatSpec(
        categorical=meaning.categorical,
        numerical=meaning.numerical,
        labels=meaning.labels,
        group=meaning.group,
        time=meaning.time,
        min_count=meaning.min_count,
        standardize=meaning.standardize,
    )
    refuse_names(spec)
    with open_table(source, time=spec.time) as table:
        column = meaning.split.options.get("column")
        named = (*spec.categorical, *spec.numerical, *spec.labels.values())
        named = (*named, spec.group, spec.time, column)
        columns.require(table.frame, named, table)
        readings = features(table.frame, spec, table)
        others = side_columns(spec, table.frame.collect_schema())
        checked = (*readings.values(), *others.values())
        columns.refuse_bad(table.frame, checked, table)
        frame, dropped = check_labels(table.frame, spec.labels, on_bad_label, table)
        flat = FlatTable(
            dataset="table",
            spec=spec,
            splits=_split(frame, meaning, table),
            sources=(source, schema),
            dropped=dropped,
            options={"on_bad_label": on_bad_label, "schema": meaning.raw},
        )
        return write(flat, output, overwrite=overwrite, allow_leaks=allow_leaks)


def _split(
    frame: pl.LazyFrame, meaning: TableSchema, table: RawTable
) -> dict[str, pl.LazyFrame]:
    rule, options = meaning.split, dict(meaning.split.options)
    if rule.by == "group" and meaning.group:
        seed = options.pop("seed", 0)
        return split_by_group(
            frame, meaning.group, fractions=options, seed=seed, source=table
        )
    if rule.by == "time" and meaning.time:
        return split_by_time(frame, meaning.time, **options, source=table)
    column = options["column"]
    name = pl.col(column).cast(pl.String)
    known = ", ".join(SPLITS)
    reading = Reading(column, name, ~name.is_in(SPLITS).fill_null(False), known)
    columns.refuse_bad(frame, [reading], table)
    return {split: frame.filter(name == split) for split in SPLITS}


def _with_time(table: RawTable, time: str | None) -> RawTable:
    """The table with a text time column as integers, dates or datetimes.

    The first value that is not empty says which.
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
        value = text.str.replace("T", " ").str.strptime(
            pl.Datetime("us"), "%Y-%m-%d %H:%M:%S%.f", strict=False
        )
        kind = "a time such as 2022-05-03 14:30:00"
    reading = Reading(time, value, value.is_null(), f"{kind} in every row")
    columns.refuse_bad(table.frame, [reading], table)
    frame = table.frame.with_columns(value.alias(time))
    return RawTable(table.name, frame, table.path, table.separator)
