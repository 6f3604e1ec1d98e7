"""Probabilities of every task for raw or prepared rows."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import polars as pl

from pwiser_jax.data.batches.cache import arrays_of, cached_common
from pwiser_jax.data.batches.prefetch import prefetched
from pwiser_jax.data.batches.rows import Inputs, Rows, feature_arrays, feature_rows
from pwiser_jax.data.datasets import rows_reader
from pwiser_jax.data.datasets.table import natural_order, open_table
from pwiser_jax.data.prepared.encoder import EncodedPart
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import (
    FILE,
    is_listed,
    read_manifest,
    refuse_damaged,
    refuse_other_data,
)
from pwiser_jax.data.raw.archives import TARS
from pwiser_jax.data.raw.frames import frames_of, scan_parquet
from pwiser_jax.errors import UserError, did_you_mean, first_line
from pwiser_jax.evaluation import probabilities
from pwiser_jax.inference.load import load_best
from pwiser_jax.schema import Schema
from pwiser_jax.tasks import measured
from pwiser_jax.training.logits import predict_logits
from pwiser_jax.training.run.folder import run_config

CHUNK = 65_536
OUTPUTS = (".csv", ".parquet")
INPUTS = (".csv", ".tsv", ".csv.gz", ".tsv.gz", ".parquet")

Item = TypeVar("Item")
Part = tuple[pl.DataFrame, pl.DataFrame]
"""Encoded rows, and the columns to keep of the same rows."""


@dataclass
class Predicted:
    """Statistics of a prediction.

    Args:
        rows: number of rows.
        unseen: by categorical field, number of values that train does not have.
    """

    rows: int = 0
    unseen: Counter[str] = field(default_factory=Counter)


def predict(
    run: str | Path,
    source: str | Path | pl.DataFrame,
    *,
    keep: Sequence[str] = (),
) -> pl.DataFrame:
    """Predicts a column of probabilities per task, after the columns of `keep`.

    Args:
        run: the run's folder; its best checkpoint predicts.
        source: raw rows, as a data frame, a CSV, TSV or Parquet file or a folder of
            such files; for KuaiRand, AliExpress and Ali-CCP, the folder or archive of
            their raw files; or prepared rows, as a prepared folder (all splits, in the
            order train, valid, test) or one of its files. Labels are not needed.
        keep: columns of the source to copy.

    Raises:
        UserError: no such run or file, a missing column, a value that does not fit, or
            prepared rows of another encoding.
    """
    scorer = Scorer(Path(run))
    source = source if isinstance(source, pl.DataFrame) else Path(source)
    tables = list(scorer.tables(source, keep, Predicted()))
    return pl.concat(tables)


def predict_file(
    run: Path,
    source: Path,
    output: Path,
    *,
    keep: Sequence[str] = (),
    overwrite: bool = False,
) -> Predicted:
    """As `predict`, into a Parquet or CSV file (by its suffix), in bounded memory.

    Args:
        run, source, keep: as in `predict`.
        output: the file to write, atomically.
        overwrite: replace an existing output.

    Raises:
        UserError: as `predict`, or the output exists or cannot be written.
    """
    if output.is_dir():
        raise UserError(f"{output} is a folder; --output names a file")
    if output.suffix.lower() not in OUTPUTS:
        raise UserError(f"{output}: the name must end in {' or '.join(OUTPUTS)}")
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: no such folder")
    if output.exists() and output.resolve() == source.resolve():
        raise UserError(f"{output} is the input; name another --output")
    if source.is_dir() and source.resolve() in output.resolve().parents:
        raise UserError(f"{output} lies in the input folder; name another --output")
    if output.exists() and not overwrite:
        raise UserError(f"{output} exists; --overwrite replaces it")
    predicted = Predicted()
    _write(Scorer(run).tables(source, keep, predicted), output)
    return predicted


class Scorer:
    """The best checkpoint of a run, ready to predict."""

    def __init__(self, run: Path) -> None:
        self.config = run_config(run)
        self.prepared = Prepared(run / "data")
        self.state = load_best(run, self.config, self.schema)

    @property
    def schema(self) -> Schema:
        return self.prepared.schema

    def tables(
        self, source: Path | pl.DataFrame, keep: Sequence[str], predicted: Predicted
    ) -> Iterator[pl.DataFrame]:
        """Yields the predictions in chunks of rows; at least one table.

        The next chunks are read in a thread while the model predicts. `predicted`
        counts the rows and their unseen values.
        """
        with self.read(source, keep, predicted) as parts, prefetched(parts) as ahead:
            for kept, rows in ahead:
                yield pl.concat([kept, self.predict(rows)], how="horizontal")
                predicted.rows += len(rows)

    @contextmanager
    def read(
        self, source: Path | pl.DataFrame, keep: Sequence[str], predicted: Predicted
    ) -> Iterator[Iterator[tuple[pl.DataFrame, Rows]]]:
        """The columns to keep and the encoded rows, chunk by chunk."""
        keep = list(dict.fromkeys(keep))
        names = [task.name for task in measured(self.schema.labels)]
        if clash := sorted(set(names) & set(keep)):
            raise UserError(f"--keep {clash[0]}: the output has a column of that name")
        size = self.config.data.eval_batch_size
        size *= max(1, CHUNK // size)
        with _read(self.prepared, source, keep, size) as (parts, shared):

            def chunks() -> Iterator[tuple[pl.DataFrame, Rows]]:
                for encoded, kept in parts:
                    self._count_unseen(encoded, predicted)
                    yield kept, feature_rows(encoded, self.schema, shared)

            yield chunks()

    def predict(self, rows: Rows) -> pl.DataFrame:
        """A column of probabilities for each task."""
        labels, space = self.schema.labels, self.config.model.cvr_space
        if not len(rows):
            names = [task.name for task in measured(labels)]
            return pl.DataFrame(schema=dict.fromkeys(names, pl.Float64))
        logits = predict_logits(self.config, self.schema, self.state, rows)
        return pl.DataFrame(probabilities(logits, labels, space))

    def _count_unseen(self, encoded: pl.DataFrame, predicted: Predicted) -> None:
        for field_ in self.schema.categorical:
            if field_.name in encoded.columns:
                count = int((encoded[field_.name] == field_.unseen).sum())
                predicted.unseen[field_.name] += count


@contextmanager
def _read(
    prepared: Prepared, source: Path | pl.DataFrame, keep: Sequence[str], size: int
) -> Iterator[tuple[Iterator[Part], Inputs | None]]:
    """The encoded rows, `size` at a time, and the inputs that they share."""
    if isinstance(source, pl.DataFrame):
        _refuse_tables(prepared, "a data frame")
        part = prepared.encoder.encode(source.lazy(), "the frame")
        yield _parts(part, keep, size), None
    elif not source.exists():
        raise UserError(f"{source}: no such file or folder")
    elif (folder := _prepared_folder(source)) is not None:
        refuse_other_data(prepared.folder.parent, folder, rows=False)
        manifest = read_manifest(folder)
        common = cached_common(folder, manifest)
        files = [source]
        if source.is_dir():
            splits = manifest.splits.values()
            files = [folder / name for split in splits for name in split.files]
        refuse_damaged(folder, manifest, [file.name for file in files])
        parts = _each(files, lambda file: _prepared_parts(file, keep, size))
        yield parts, None if common is None else arrays_of(common)
    elif (reader := _raw_reader(prepared, source)) is not None:
        with reader(source, prepared.folder) as rows:
            parts = _each(rows.parts, lambda part: _parts(part, keep, size))
            shared = None
            if rows.common is not None:
                shared = feature_arrays(rows.common, prepared.schema, common=True)
            yield parts, shared
    else:
        _refuse_tables(prepared, str(source))
        tables = _tables(source)
        yield _each(tables, lambda f: _table_parts(prepared, f, keep, size)), None


def _raw_reader(prepared: Prepared, source: Path) -> Callable[..., Any] | None:
    """The dataset's function for its raw files, if the source may hold them."""
    archive = source.name.endswith((".zip", *TARS))
    if not (archive or (source.is_dir() and any(_visible(source, INPUTS[:-1])))):
        return None
    return rows_reader(prepared.manifest.dataset)


def _refuse_tables(prepared: Prepared, source: str) -> None:
    """Raises a UserError if a table cannot hold the fields of a run."""
    lists = {field.name for field in prepared.schema.multi_valued}
    if prepared.schema.common or lists - set(prepared.encoder.spec.multi_valued):
        raise UserError(
            f"{source}: rows of {prepared.manifest.dataset} are no table; give the "
            "folder or archive of their raw files, or a prepared folder"
        )


def _prepared_folder(source: Path) -> Path | None:
    """The prepared folder that is or contains the source."""
    if source.is_dir():
        return source if (source / FILE).is_file() else None
    return source.parent if is_listed(source) else None


def _visible(folder: Path, endings: tuple[str, ...]) -> list[Path]:
    """The files of a folder whose names end so, part 2 before part 10."""
    paths = [p for p in folder.iterdir() if p.name.lower().endswith(endings)]
    files = [p for p in paths if p.is_file() and p.name[0] not in "._"]
    return sorted(files, key=lambda path: natural_order(Path(path.name)))


def _tables(source: Path) -> list[Path]:
    """The tables of a source: its files if some are text, else the source as a whole.

    Raises:
        UserError: a folder without tables.
    """
    if not source.is_dir():
        return [source]
    if _visible(source, INPUTS[:-1]):
        return _visible(source, INPUTS)
    if not any(source.rglob("*.parquet")):
        raise UserError(f"{source} holds no {', '.join(INPUTS)} file")
    return [source]


def _each(
    items: Iterable[Item], parts: Callable[[Item], Iterator[Part]]
) -> Iterator[Part]:
    for item in items:
        yield from parts(item)


def _table_parts(
    prepared: Prepared, table: Path, keep: Sequence[str], size: int
) -> Iterator[Part]:
    with open_table(table, empty=True) as raw:
        features = prepared.encoder.transform(raw.frame, with_labels=False, source=raw)
        yield from _parts(EncodedPart(features, raw.frame, raw.name), keep, size)


def _prepared_parts(file: Path, keep: Sequence[str], size: int) -> Iterator[Part]:
    frame = scan_parquet(file)
    return _parts(EncodedPart(frame, frame, str(file)), keep, size)


def _parts(part: EncodedPart, keep: Sequence[str], size: int) -> Iterator[Part]:
    """Encoded rows with the columns to keep of the raw ones, `size` rows at a time."""
    encoded, frame, source = part
    try:
        known = frame.collect_schema().names()
        for name in keep:
            if name not in known:
                hint = did_you_mean(name, known) or f"; it has {', '.join(known)}"
                raise UserError(f"{source} has no column {name!r} to keep{hint}")
        empty = True
        kept = frames_of(frame.select(keep), size) if keep else None
        for rows in frames_of(encoded, size):
            yield rows, pl.DataFrame() if kept is None else next(kept)
            empty = False
        if empty:
            yield encoded.head(0).collect(), frame.select(keep).head(0).collect()
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{source} cannot be read: {first_line(error)}") from error


def _write(tables: Iterator[pl.DataFrame], output: Path) -> None:
    """Writes the tables, concatenated, to one file."""
    try:
        with TemporaryDirectory(prefix=".pwiser-predict-", dir=output.parent) as place:
            files = []
            for table in tables:
                files.append(Path(place) / f"{len(files):06}.parquet")
                table.write_parquet(files[-1])
            rows = scan_parquet(files)
            whole = Path(place) / "whole"
            if output.suffix.lower() == ".csv":
                rows.sink_csv(whole, maintain_order=True)
            else:
                rows.sink_parquet(whole, maintain_order=True)
            whole.replace(output)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise UserError(f"{output} cannot be written: {first_line(error)}") from error
