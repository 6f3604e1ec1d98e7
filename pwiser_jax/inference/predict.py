"""Probabilities for the rows of a file, prepared or raw."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from pwiser_jax.data.batches.cache import arrays_of, cached_common
from pwiser_jax.data.batches.rows import Inputs, Rows, feature_rows
from pwiser_jax.data.datasets.table import open_table
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import (
    is_listed,
    read_manifest,
    refuse_other_data,
)
from pwiser_jax.data.raw.frames import frames_of, scan_parquet
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import probabilities
from pwiser_jax.inference.evaluate import run_config
from pwiser_jax.inference.load import load_best
from pwiser_jax.schema import Schema
from pwiser_jax.training.logits import predict_logits

CHUNK = 65_536


def predict_file(run: Path, source: Path, output: Path) -> int:
    """Writes a Parquet file with a column of probabilities a task, rows in order.

    Args:
        run: the run's folder; its best checkpoint predicts.
        source: a Parquet file of a prepared folder, or a raw CSV or Parquet whose
            columns are those that were encoded; labels are not needed.
        output: the file to write, whole or not at all.
    Returns:
        The number of rows.
    Raises:
        UserError: no such run or file, a missing column, a value that does not fit, or
            prepared rows of another encoding.
    """
    config = run_config(run)
    prepared = Prepared(run / "data")
    if not source.is_file():
        raise UserError(f"{source}: no such file")
    if not output.parent.is_dir():
        raise UserError(f"{output.parent}: no such folder")
    if output.exists() and output.resolve() == source.resolve():
        raise UserError(f"{output} is the input; name another --output")
    state = load_best(run, config, prepared.schema)

    def predicted(rows: Rows) -> pl.DataFrame:
        logits = predict_logits(config, prepared.schema, state, rows)
        labels, space = prepared.schema.labels, config.model.cvr_space
        return pl.DataFrame(probabilities(logits, labels, space))

    size = config.data.eval_batch_size
    size *= max(1, CHUNK // size)
    with _read(prepared, source, size) as parts:
        return _write(map(predicted, parts), output)


def _write(tables: Iterator[pl.DataFrame], output: Path) -> int:
    """The tables below each other as one Parquet file; returns its number of rows."""
    count = 0
    try:
        with TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as place:
            files = []
            for table in tables:
                files.append(Path(place) / f"{len(files):06}.parquet")
                table.write_parquet(files[-1])
                count += table.height
            whole = Path(place) / "whole.parquet"
            scan_parquet(files).sink_parquet(whole, maintain_order=True)
            whole.replace(output)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{output} cannot be written: {reason}") from error
    return count


@contextmanager
def _read(prepared: Prepared, source: Path, size: int) -> Iterator[Iterator[Rows]]:
    """The rows, `size` at a time: prepared ones as they are, raw ones encoded as the
    run's own were."""
    schema = prepared.schema
    if is_listed(source):
        refuse_other_data(prepared.folder.parent, source.parent, rows=False)
        common = cached_common(source.parent, read_manifest(source.parent))
        shared = None if common is None else arrays_of(common)
        yield _features(scan_parquet(source), size, schema, shared, source)
        return
    if schema.multi_valued or schema.common:
        raise UserError(
            f"{source} is no file of a prepared folder: rows with multi-valued or "
            "shared fields can be predicted once they are prepared"
        )
    with open_table(source) as raw:
        frame = prepared.encoder.transform(raw.frame, with_labels=False, source=raw)
        yield _features(frame, size, schema, None, source)


def _features(
    frame: pl.LazyFrame, size: int, schema: Schema, shared: Inputs | None, source: Path
) -> Iterator[Rows]:
    try:
        for part in frames_of(frame, size):
            yield feature_rows(part, schema, shared)
    except pl.exceptions.PolarsError as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{source} cannot be read: {reason}") from error
