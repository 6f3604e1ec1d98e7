"""Prepared folders: written atomically, and read for training.

`schema` describes their files and columns.
"""

import re
import shutil
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from pwiser_jax.atomic import check_replaceable, foreign_entry, new_folder
from pwiser_jax.data.batches.cache import cached_rows, is_cache_entry
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.data.prepared import vocabulary
from pwiser_jax.data.prepared.encoder import Encoder, features
from pwiser_jax.data.prepared.leaks import refuse_leaks
from pwiser_jax.data.prepared.manifest import (
    FILE,
    MARK,
    Manifest,
    SourceFile,
    Split,
    read_manifest,
    write_manifest,
)
from pwiser_jax.data.raw.columns import Later, Source
from pwiser_jax.data.raw.flat import SPLITS, FlatSpec, FlatTable
from pwiser_jax.data.raw.frames import frames_of
from pwiser_jax.data.raw.labels import check_labels
from pwiser_jax.data.raw.leaks import refuse_copies, refuse_names
from pwiser_jax.errors import UserError
from pwiser_jax.schema import Schema
from pwiser_jax.tasks import measured

ROW_GROUP = 65_536
SHARD = 8 * ROW_GROUP
FITTED, SHARDS = "fitted", "shards"
"""What an unfinished folder keeps: the encoder, and the shards that are whole."""
TAKEN_NAMES = frozenset(
    {
        *("ctr", "ctcvr", "cvr", "exposure", "exposures", "no_click", "click_only"),
        *("rows", "split", "groups", "pairs", "note", "loss"),
        *("group", "time", "weight", "common"),
    }
)
"""Names that no label may have: tasks, keys of reports, columns of prepared folders."""
Each = Callable[[Callable[..., None], Sequence[tuple[Any, ...]]], None]
"""Calls a function with each of several tuples of arguments, in any order."""
PICTURE = re.compile(
    r"inspect(/\.?(splits|sizes|conversions|drift|shares)\.png(\.partial)?)?"
)
"""What `inspect` writes into a prepared folder."""


class DataWarning(UserWarning):
    """Warning about unexpected data, in one sentence."""


def in_turn(function: Callable[..., None], calls: Sequence[tuple[Any, ...]]) -> None:
    """Calls a function in this process."""
    for arguments in calls:
        function(*arguments)


def write(
    flat: FlatTable,
    output: Path,
    *,
    overwrite: bool = False,
    allow_leaks: Collection[str] | str = (),
    extend: Path | None = None,
    budget: int | None = None,
    kept: Path | None = None,
    each: Each = in_turn,
) -> Manifest:
    """Encodes the splits of a table into a new prepared folder.

    The files are written into a hidden folder beside `output`, which is renamed at the
    end: a failure leaves nothing behind. The same input gives the same bytes.

    Args:
        flat: rows by split; labels are 0 or 1 and nested.
        output: a folder that does not exist or is empty.
        overwrite: replace `output` if it is a prepared folder and holds nothing else.
        allow_leaks: features that may predict a label alone, see `leaks`; a text has
            names with commas between them.
        extend: a run, whose ids and scales the rows get; values that are new to it get
            further ids, see `Encoder.extend`. None: ids and scales are train's.
        budget: bytes of the vocabularies, see `fit_vocabularies`; not with `extend`.
        kept: a folder for the encoder and the shards, from which the next process goes
            on if this one is killed. Its rows must be cheap to read from any one on.
        each: writes the shards of `kept`, perhaps in other processes.

    Raises:
        UserError: a value, column or split that training could not use, a run on other
            columns, or an output folder that cannot be written.

    Warns:
        DataWarning: the test split is empty.
        LeakWarning: a feature predicts a label suspiciously well.
    """
    refuse_names(flat.spec)
    refuse_label_names(tuple(flat.spec.labels))
    with new_prepared(output, overwrite=overwrite) as folder:
        counts = {name: _count(flat, name) for name in SPLITS}
        refuse_empty(flat.spec, counts)
        encoder, notes = _fitted(flat, counts, extend, budget, kept)
        first_row, calls = 0, []
        for name in SPLITS:
            if counts[name].rows:
                place, frame = flat.places.get(name, name), flat.splits[name]
                if kept is None:
                    rows = encoder.transform(frame, first_row=first_row, source=place)
                    write_shards(rows, folder, name)
                else:
                    for at in range(len(counts[name].files)):
                        path = kept / SHARDS / shard_name(name, at)
                        calls.append((encoder, frame, at, first_row, place, path))
                first_row += counts[name].rows
        each(_write_kept, calls)
        for path in () if kept is None else sorted((kept / SHARDS).glob("*.parquet")):
            path.rename(folder / path.name)
        encoder.save(folder)
        manifest = Manifest(
            dataset=flat.dataset,
            schema=encoder.schema,
            spec=encoder.spec,
            fill=encoder.fill,
            splits=counts,
            dropped=dict(flat.dropped),
            options={
                **flat.options,
                **notes,
                **allowed_leaks(allow_leaks),
                **({} if extend is None else {"extend": extend}),
            },
            sources=tuple(SourceFile.of(path) for path in flat.sources),
            vocabulary_sha256=SourceFile.of(folder / vocabulary.FILE).sha256,
        )
        refuse_leaks(folder, manifest)
        manifest = write_manifest(folder, manifest)
    if not counts["test"].rows:
        warnings.warn(
            f"{output}: the test split is empty, so that it cannot be evaluated",
            DataWarning,
            stacklevel=2,
        )
    return manifest


def _fitted(
    flat: FlatTable,
    counts: Mapping[str, Split],
    extend: Path | None,
    budget: int | None,
    kept: Path | None,
) -> tuple[Encoder, dict[str, Any]]:
    """The encoder of a table, and what the manifest notes of it.

    It is read from the folder `kept` if a killed process wrote it there.
    """
    done = None if kept is None else kept / FITTED
    if done is not None and done.is_dir():
        return Encoder.load(done), dict(read_manifest(done).options)
    train, place = flat.splits["train"], flat.places.get("train", "train")
    if extend is None:
        encoder = Encoder.fit(train, flat.spec, place, budget)
        sizes = {name: each._asdict() for name, each in encoder.hashed.items()}
    else:
        encoder = _encoder_of(extend, flat.dataset, flat.spec).extend(train, place)
        sizes = manifest_of_run(extend).options.get("hashed", {})
    notes: dict[str, Any] = {"hashed": sizes} if sizes else {}
    if extend is not None and flat.spec.numerical:
        notes["moved"] = encoder.moved(train)
    readings = features(train, encoder.spec, "train")
    values = {name: reading.value for name, reading in readings.items()}
    refuse_copies(train, flat.spec, values)
    if kept is not None and done is not None:
        (kept / SHARDS).mkdir(exist_ok=True)
        partial = done.with_suffix(".partial")
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        encoder.save(partial)
        manifest = Manifest(
            dataset=flat.dataset,
            schema=encoder.schema,
            spec=encoder.spec,
            fill=encoder.fill,
            splits={name: replace(split, files=()) for name, split in counts.items()},
            options=notes,
            vocabulary_sha256=SourceFile.of(partial / vocabulary.FILE).sha256,
        )
        write_manifest(partial, manifest)
        partial.rename(done)
    return encoder, notes


def _write_kept(
    encoder: Encoder,
    frame: pl.LazyFrame,
    at: int,
    first_row: int,
    place: Source,
    path: Path,
) -> None:
    """Writes shard number `at` of a split, unless it is written: a file is whole."""
    if path.is_file():
        return
    first = at * SHARD
    rows = encoder.transform(
        frame.slice(first, SHARD),
        first_row=first_row + first,
        source=Later(place, first),
    )
    partial = path.with_name(f".{path.name}.partial")
    _write(rows.collect(engine="streaming").rechunk(), partial)
    partial.rename(path)


def manifest_of_run(run: Path) -> Manifest:
    """The manifest of the data that a run was trained on.

    Raises:
        UserError: the folder holds no run.
    """
    if not (run / "data" / FILE).is_file():
        raise UserError(f"{run} holds no run: data/{FILE} is missing")
    return read_manifest(run / "data")


def _encoder_of(run: Path, dataset: str, spec: FlatSpec) -> Encoder:
    """The encoder of a run's data, with the minimum counts of `spec`.

    Raises:
        UserError: the run has another dataset or other columns than `spec`.
    """
    manifest = manifest_of_run(run)
    if manifest.dataset != dataset:
        raise UserError(
            f"{run} was trained on {manifest.dataset!r}, not {dataset!r}: rows of "
            "another dataset cannot extend it"
        )
    old, new = asdict(manifest.spec), asdict(spec)
    for name in old:
        free = name in ("kinds", "min_count", "min_counts")
        if not free and old[name] != new[name]:
            raise UserError(
                f"{run} was trained on rows with {name} {old[name]}, not {new[name]}: "
                "--extend needs the same columns"
            )
    spec = replace(spec, kinds=manifest.spec.kinds)
    return replace(Encoder.load(run / "data"), spec=spec)


def allowed_leaks(names: Collection[str] | str) -> dict[str, list[str]]:
    """The option in the form of the manifest, if it is given."""
    split = names.split(",") if isinstance(names, str) else names
    return {"allow_leaks": sorted(map(str.strip, split))} if names else {}


def refuse_label_names(labels: tuple[str, ...]) -> None:
    """Raises a UserError for a label with a reserved name."""
    for name in labels:
        if name != name.strip() or not name.isprintable():
            raise UserError(
                f"a label cannot be called {name!r}: a name has no line ends or other "
                "control characters, and no spaces around it"
            )
        if not name or name.lower() in TAKEN_NAMES:
            listed = ", ".join(sorted(TAKEN_NAMES))
            raise UserError(
                f"a label cannot be called {name!r}: rename it; these names have "
                f"another meaning here: {listed}"
            )
    tasks = [task.name for task in measured(labels)]
    for name in tasks:
        if tasks.count(name) > 1:
            raise UserError(
                f"the labels {', '.join(labels)} give two tasks the name {name!r}: "
                "rename one of them"
            )


def write_shards(rows: pl.LazyFrame, folder: Path, split: str) -> None:
    """Writes a split as Parquet files of SHARD rows, in row groups of ROW_GROUP.

    Memory holds one shard at a time.
    """
    for at, shard in enumerate(frames_of(rows, SHARD)):
        write_shard(shard, folder, split, at)


def write_shard(shard: pl.DataFrame, folder: Path, split: str, at: int) -> None:
    """Writes shard number `at` of a split."""
    _write(shard, folder / shard_name(split, at))


def _write(shard: pl.DataFrame, path: Path) -> None:
    shard.write_parquet(
        path,
        compression="zstd",
        compression_level=3,
        statistics=True,
        row_group_size=ROW_GROUP,
        metadata=MARK,
    )


def shard_name(split: str, at: int) -> str:
    return f"{split}-{at:05}.parquet"


def shard_names(split: str, rows: int) -> tuple[str, ...]:
    """The file names of a split with this number of rows."""
    return tuple(shard_name(split, at) for at in range(-(-rows // SHARD)))


@contextmanager
def new_prepared(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yields a hidden folder that becomes the prepared folder `output` at the end.

    See `new_folder`. Only a folder that `prepare` wrote is replaced.
    """

    def check(folder: Path) -> None:
        check_output(folder, overwrite=overwrite)

    with new_folder(output, check) as folder:
        yield folder


def check_output(output: Path, *, overwrite: bool = False) -> None:
    """Raises a UserError if `write` would refuse the folder, before any work.

    With `overwrite` a folder is replaced if its manifest is ours, and if it holds only
    what the manifest names, caches, and the pictures of `inspect`.
    """
    check_replaceable(output, "prepared folder", _first_foreign, overwrite=overwrite)


def _first_foreign(folder: Path) -> str | None:
    try:
        names = {*read_manifest(folder).files_named, FILE, vocabulary.FILE}
    except UserError:
        names = set()

    def ours(name: str) -> bool:
        return (
            name in names or is_cache_entry(name) or PICTURE.fullmatch(name) is not None
        )

    return foreign_entry(folder, ours)


def _count(flat: FlatTable, name: str) -> Split:
    """Counts rows and labels; checks labels again, independently of the reader."""
    frame, labels = flat.splits.get(name), flat.spec.labels
    if frame is None:
        return Split((), 0, dict.fromkeys(labels, 0))
    checked, _ = check_labels(frame, labels, "error", name)
    sums = (pl.col(column).cast(pl.Int64).sum() for column in labels.values())
    counted = checked.select(pl.len(), *sums).collect(engine="streaming").row(0)
    rows, counts = int(counted[0]), dict(zip(labels, counted[1:], strict=True))
    return Split(shard_names(name, rows), rows, counts)


def refuse_empty(spec: FlatSpec, counts: Mapping[str, Split]) -> None:
    """Raises a UserError if train or valid lacks a class of a label."""
    for name in ("train", "valid"):
        split = counts[name]
        if not split.rows:
            raise UserError(f"the {name} split has no rows; training needs some")
        for label, column in spec.labels.items():
            if split.labels[label] in (0, split.rows):
                value = 0 if split.labels[label] else 1
                raise UserError(
                    f"the {name} split has no row with {label} {value} "
                    f"(column {column!r}, {split.rows} rows); training needs some"
                )


class Prepared:
    """A prepared folder, read for training and evaluation."""

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        self.manifest = read_manifest(self.folder)

    @property
    def schema(self) -> Schema:
        return self.manifest.schema

    @cached_property
    def encoder(self) -> Encoder:
        """The encoder, for further raw rows."""
        return Encoder.load(self.folder)

    def load(self, *splits: str) -> Rows:
        """The rows of "train", "valid" or "test", memory-mapped: see `cache`.

        Several splits are concatenated, in a separate cache.

        Raises:
            UserError: the split has no rows, or is damaged.
        """
        for split in splits:
            if split not in SPLITS:
                raise UserError(
                    f"there is no split {split!r}; expected {', '.join(SPLITS)}"
                )
            if not self.manifest.splits[split].rows:
                raise UserError(f"{self.folder} has no {split} rows")
        return cached_rows(self.folder, self.manifest, *splits)
