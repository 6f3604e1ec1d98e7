"""The parts of a table on disk: each is checked and split once, and read many times.

A part is a Parquet file of a folder, or a whole file. `stage` writes its rows by split,
and then a note with its counts: a part with a note is finished, so that a killed
`prepare` goes on with the others.
"""

import json
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import polars as pl

from pwiser_jax.atomic import write_whole
from pwiser_jax.data.datasets.table_schema import TableSchema
from pwiser_jax.data.prepared.encoder import features, list_features, side_columns
from pwiser_jax.data.raw import columns
from pwiser_jax.data.raw.columns import Later, Reading, Source
from pwiser_jax.data.raw.flat import SPLITS, BadLabel, FlatSpec
from pwiser_jax.data.raw.frames import frames_of, scan_parquet
from pwiser_jax.data.raw.labels import FIXES, check_labels
from pwiser_jax.data.raw.split import part_by_group, part_by_time
from pwiser_jax.errors import UserError

PLACE, SPLIT = "\0place", "\0split"  # no column of a file can have these names
CHUNK = 1 << 19


@dataclass(frozen=True)
class Staging:
    """How the rows of a table are checked and split.

    Args:
        spec: the columns, with the kinds of the whole table.
        meaning: the schema file.
        on_bad_label: see `check_labels`.
        folder: where the parts are written.
    """

    spec: FlatSpec
    meaning: TableSchema
    on_bad_label: BadLabel
    folder: Path

    def stage(
        self,
        frame: pl.LazyFrame,
        path: Path,
        at: int,
        table: Source,
        before: int,
    ) -> None:
        """Writes part number `at`, unless it is written.

        Args:
            frame: its rows.
            path: their file.
            at: its number.
            table: names the rows in errors.
            before: the number of rows in earlier parts.

        Raises:
            UserError: a bad value, by its place.
        """
        if self._note(at).is_file():
            return
        if not path.exists():
            raise UserError(
                f"{path} is not on {socket.gethostname()}: name a path that all nodes "
                "of the cluster share"
            )
        spec, source = self.spec, Later(table, before)
        lists = list_features(frame, spec, source)
        readings = features(frame, spec, source) | lists
        sides = side_columns(spec, frame.collect_schema())
        columns.refuse_bad(frame, (*readings.values(), *sides.values()), source)
        numbered = frame.with_row_index(PLACE, before + 1)
        labelled, dropped = check_labels(
            numbered, spec.labels, self.on_bad_label, source
        )
        split = self._split(labelled, source).alias(SPLIT)
        for number, chunk in enumerate(frames_of(labelled.with_columns(split), CHUNK)):
            for name in SPLITS:
                rows = chunk.filter(pl.col(SPLIT) == name).drop(SPLIT)
                path = self.folder / f"{name}-{at:05}-{number:05}.parquet"
                if rows.height or at == number == 0:  # the first has the columns
                    rows.write_parquet(path, compression="lz4")
        counts = {"dropped": dropped, "counted": _too_long(frame, spec, lists)}
        write_whole(self._note(at), json.dumps(counts))

    def splits(self) -> dict[str, pl.LazyFrame]:
        """The rows of all parts by split, in order; `PLACE` numbers them."""
        return {
            name: scan_parquet(sorted(self.folder.glob(f"{name}-*.parquet")))
            for name in SPLITS
        }

    def counts(self, key: str, parts: int) -> dict[str, int]:
        """The sums of a count over all parts."""
        notes = [json.loads(self._note(at).read_text()) for at in range(parts)]
        fix = FIXES.get(self.on_bad_label)
        rungs = [f"{b}_without_{a}_{fix}" for a, b in pairwise(self.spec.labels)]
        lists = [_beyond(name) for name in self.spec.multi_valued]
        names = [*rungs, *lists]
        totals = {name: sum(n[key].get(name, 0) for n in notes) for name in names}
        return {name: total for name, total in totals.items() if total}

    def _note(self, at: int) -> Path:
        return self.folder / f"part-{at:05}.json"

    def _split(self, frame: pl.LazyFrame, source: Source) -> pl.Expr:
        """The name of each row's split."""
        spec, rule = self.spec, self.meaning.split
        options = dict(rule.options)
        if rule.by == "group" and spec.group:
            seed = options.pop("seed", 0)
            kind = spec.kinds.get(spec.group)
            return part_by_group(
                frame,
                spec.group,
                fractions=options,
                seed=seed,
                kind=kind,
                source=source,
            )
        if rule.by == "time" and spec.time:
            return part_by_time(frame, spec.time, **options, source=source)
        column = options["column"]
        name = pl.col(column).cast(pl.String).str.strip_chars()
        known = ", ".join(SPLITS)
        reading = Reading(column, name, ~name.is_in(SPLITS).fill_null(False), known)
        columns.refuse_bad(frame, [reading], source)
        return name


def _beyond(name: str) -> str:
    return f"values_beyond_max_values_of_{name}"


def _too_long(
    frame: pl.LazyFrame, spec: FlatSpec, lists: Mapping[str, Reading]
) -> dict[str, int]:
    """How many values are beyond `max_values`, by multi-valued column."""
    beyond = [
        (reading.value.list.len().cast(pl.Int64) - spec.multi_valued[name].max_values)
        .clip(0)
        .sum()
        .alias(_beyond(name))
        for name, reading in lists.items()
    ]
    if not beyond:
        return {}
    return frame.select(beyond).collect(engine="streaming").row(0, named=True)
