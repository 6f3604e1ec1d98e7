"""Probabilities for the rows of a file, prepared or raw."""

from pathlib import Path

import polars as pl

from pwiser_jax.data.manifest import FILE
from pwiser_jax.data.prepared import Prepared, Rows, rows_of
from pwiser_jax.data.table import open_table
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import probabilities
from pwiser_jax.training.evaluate import run_config, same_encoding
from pwiser_jax.training.inference import load_best, predict_logits


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
    rows = _read(prepared, source)
    state = load_best(run, config, prepared.schema)
    logits = predict_logits(config, prepared.schema, state, rows)
    columns = probabilities(logits, prepared.schema.labels, config.model.cvr_space)
    partial = output.with_name(f".{output.name}.partial")
    try:
        pl.DataFrame(columns).write_parquet(partial)
        partial.replace(output)
    except (OSError, pl.exceptions.PolarsError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{output} cannot be written: {reason}") from error
    finally:
        partial.unlink(missing_ok=True)
    return len(rows)


def _read(prepared: Prepared, source: Path) -> Rows:
    """Prepared rows as they are, raw ones encoded as the run's own were."""
    if source.suffix == ".parquet" and (source.parent / FILE).is_file():
        if not same_encoding(prepared.folder, source.parent):
            raise UserError(
                f"{source} was prepared with other fields or vocabularies than the "
                f"data of {prepared.folder.parent}; give the raw rows"
            )
        return rows_of(pl.read_parquet(source), prepared.schema)
    with open_table(source) as raw:
        frame = prepared.encoder.transform(raw.frame, with_labels=False, source=raw)
        return rows_of(frame.collect(), prepared.schema)
