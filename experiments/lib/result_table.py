"""The results of an experiment as one Parquet file, from which its report is made.

A row a number: which run it is of, and what it measures. The table belongs to the run
folders: each row names its run, seed and config hash, and a table that is lost or
damaged is made again from them without training.
"""

import json
import sys
from pathlib import Path

import polars as pl

COLUMNS: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(("experiment", "dataset", "model", "loss", "tags"), pl.String),
    "seed": pl.Int64,
    "split": pl.String,
    "task": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "run": pl.String,
    "config_hash": pl.String,
}
CELL = ("dataset", "model", "loss", "seed", "split", "task", "run", "config_hash")
METRICS = ("auc", "log_loss", "best_epoch")
KEY = ("dataset", "loss", "tags", "split", "task", "metric", "run")


class ResultTable:
    """The table of one experiment; each `add` leaves a whole file.

    Args:
        path: the Parquet file. One that cannot be read is told in a sentence on stderr
            and begun anew.
        experiment: the name in the first column.
    """

    def __init__(self, path: Path, experiment: str) -> None:
        self.path, self.experiment = path, experiment
        self.frame = self._read()

    def _read(self) -> pl.DataFrame:
        empty = pl.DataFrame(schema=COLUMNS)
        if not self.path.exists():
            return empty
        try:
            found = pl.read_parquet(self.path)
        except (OSError, pl.exceptions.PolarsError):
            found = empty.drop("value")
        if dict(found.schema) != dict(empty.schema):
            print(
                f"{self.path} is damaged or of another version; it is made again from "
                "the run folders, which are whole",
                file=sys.stderr,
            )
            return empty
        return found

    def add(self, rows: pl.DataFrame) -> None:
        """Writes further rows, of `COLUMNS` but the experiment; the same key again
        replaces its row."""
        named = rows.with_columns(pl.lit(self.experiment).alias("experiment"))
        typed = named.select(pl.col(name).cast(kind) for name, kind in COLUMNS.items())
        self.frame = pl.concat([self.frame, typed]).unique(
            KEY, keep="last", maintain_order=True
        )
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_name(f".{self.path.name}.partial")
        try:
            self.frame.write_parquet(partial, compression="zstd")
            partial.replace(self.path)
        finally:
            partial.unlink(missing_ok=True)

    def of(self, run: str, split: str, metrics: tuple[str, ...]) -> pl.DataFrame:
        """The rows of a run and split with these metrics; none unless all are there."""
        found = self.frame.filter(
            (pl.col("run") == run)
            & (pl.col("split") == split)
            & pl.col("metric").is_in(metrics)
        )
        whole = set(metrics) == set(found["metric"].unique())
        return found if whole else found.clear()


def long_rows(results: pl.DataFrame) -> pl.DataFrame:
    """The results of `grid.run_cells`, a row a number.

    Columns of its own are tags, and so is the protocol where it is not the default.
    """
    names = [name for name in results.columns if name not in (*CELL, *METRICS)]
    left_out = (None, "default")
    texts = [
        json.dumps(
            {name: row[name] for name in names if row[name] not in left_out},
            sort_keys=True,
        )
        for row in results.iter_rows(named=True)
    ]
    marked = results.select(
        *CELL,
        pl.Series("tags", texts),
        *(pl.col(name).cast(pl.Float64) for name in METRICS),
    )
    return marked.unpivot(
        METRICS, index=[*CELL, "tags"], variable_name="metric", value_name="value"
    )
