"""The results of an experiment as one Parquet file, from which its report is made.

Each row has one number, with its run, seed, config hash and measure. A lost or damaged
table is rebuilt from the run folders, without training.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

COLUMNS: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(("experiment", "dataset", "model", "loss", "tags"), pl.String),
    "seed": pl.Int64,
    "split": pl.String,
    "task": pl.String,
    "metric": pl.String,
    "value": pl.Float64,
    "reason": pl.String,
    "run": pl.String,
    "config_hash": pl.String,
}
CELL = ("dataset", "model", "loss", "seed", "split", "task", "run", "config_hash")
METRICS = ("auc", "log_loss", "best_epoch")
ADDED = ("reason",)  # columns that older tables lack
RUN = ("run", "split", "tags")  # runs of one configuration may have several tags
KEY = ("dataset", "loss", "tags", "split", "task", "metric", "run")


class ResultTable:
    """The table of one experiment; each `add` leaves a whole file.

    Args:
        path: the Parquet file. One that cannot be read is reported on stderr, and a
            new one is begun.
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
            frame = pl.read_parquet(self.path)
            frame = frame.with_columns(
                pl.lit(None, pl.String).alias(name)
                for name in ADDED
                if name not in frame.columns
            ).select(list(COLUMNS))
        except (OSError, pl.exceptions.PolarsError):
            frame = empty.drop("value")
        if dict(frame.schema) != dict(empty.schema):
            print(
                f"{self.path} is damaged or of another version; it is made again from "
                "the run folders, which are whole",
                file=sys.stderr,
            )
            return empty
        return frame

    def add(self, rows: pl.DataFrame) -> None:
        """Adds rows, of `COLUMNS` but the experiment; a row of the same key is
        replaced."""
        names = {"experiment": pl.lit(self.experiment)}
        if "reason" not in rows.columns:
            names["reason"] = pl.lit(None)
        named = rows.with_columns(**names)
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

    def of_runs(self, runs: pl.DataFrame, metrics: Sequence[str]) -> pl.DataFrame:
        """The rows with these metrics of runs, in their order, that lack none of them.

        Args:
            runs: with the columns RUN.
            metrics: names of measures.
        """
        rows = self.frame.filter(
            pl.col("run").is_in(runs["run"].to_list()) & pl.col("metric").is_in(metrics)
        )
        found = runs.select(RUN).join(rows, on=RUN, maintain_order="left_right")
        count = pl.col("metric").n_unique().over(RUN)
        return found.filter(count == len(metrics)).select(list(COLUMNS))


def long_rows(results: pl.DataFrame) -> pl.DataFrame:
    """Converts the results of `grid.results_of` to one row per number.

    Other columns than those are tags, and so is the protocol where it is not the
    default.
    """
    known = (*CELL, *METRICS, "reason")
    names = [name for name in results.columns if name not in known]
    texts = [
        tag_text({name: row[name] for name in names})
        for row in results.iter_rows(named=True)
    ]
    if "reason" not in results.columns:
        results = results.with_columns(pl.lit(None, pl.String).alias("reason"))
    marked = results.select(
        *CELL,
        "reason",
        pl.Series("tags", texts),
        *(pl.col(name).cast(pl.Float64) for name in METRICS),
    )
    index = [*CELL, "tags", "reason"]
    long = marked.unpivot(METRICS, index=index, variable_name="metric")
    of_auc = pl.when(pl.col("metric") == "auc").then("reason")
    return long.with_columns(of_auc.alias("reason"))


def wide_rows(rows: pl.DataFrame) -> pl.DataFrame:
    """The inverse of `long_rows`: one row per run and task, one column per measure."""
    kept = rows.filter(pl.col("metric").is_in(METRICS))
    wide = kept.pivot("metric", index=[*CELL, "tags"], values="value")
    reasons = kept.filter(metric="auc").select(*RUN, "task", "reason").unique()
    return wide.join(reasons, on=[*RUN, "task"], maintain_order="left")


def tag_text(tags: Mapping[str, str | int | float | None]) -> str:
    """Tags as one text, equal for equal tags."""
    left_out = (None, "default")
    kept = {name: value for name, value in tags.items() if value not in left_out}
    return json.dumps(kept, sort_keys=True)
