"""The manifest of a prepared folder: its contents, its sources, and its encoding.

Keys are sorted, and there is no time stamp and no path of the machine: the same input
gives the same bytes.
"""

import hashlib
import json
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from pathlib import Path
from typing import Any

import polars as pl

from pwiser_jax.data.raw.flat import SPLITS, FlatSpec, ListColumn
from pwiser_jax.errors import UserError
from pwiser_jax.schema import Schema
from pwiser_jax.version import __version__

FORMAT = 1
FILE = "manifest.json"
MAPPED = 64 << 20
"""Bytes of a file that are hashed at once: hashing releases the GIL, and large chunks
keep it released while other threads import."""
MARK = {"pwiser_jax": "prepared rows"}
"""In the metadata of every Parquet file of prepared rows."""


@dataclass(frozen=True)
class Split:
    """The Parquet files of a split, its rows, and how many have each label."""

    files: tuple[str, ...]
    rows: int
    labels: Mapping[str, int]


@dataclass(frozen=True)
class CommonTable:
    """The Parquet file of shared fields, and its number of rows."""

    file: str
    rows: int


@dataclass(frozen=True)
class SourceFile:
    """A raw file: its name without folders, its size and its hash."""

    name: str
    bytes: int
    sha256: str

    @classmethod
    def of(cls, path: Path) -> "SourceFile":
        digest = hashlib.sha256()
        with path.open("rb") as file:
            size = path.stat().st_size
            for start in range(0, size, MAPPED):
                length = min(size - start, MAPPED)
                part = mmap.mmap(
                    file.fileno(), length, access=mmap.ACCESS_READ, offset=start
                )
                with part:
                    digest.update(part)
        return cls(path.name, size, digest.hexdigest())


@dataclass(frozen=True)
class Manifest:
    """The description of a prepared folder.

    Args:
        dataset: the reader's name.
        schema: the prepared columns.
        spec: the raw columns, so that further raw rows can be encoded.
        fill: numerical field -> the raw value that replaces a missing one.
        splits: train, valid and test; an empty one has no files.
        common: the one table of `schema.common`, for all splits; None without any.
        dropped: reason -> rows that were dropped or changed.
        options: the reader's options.
        sources: the raw files.
        vocabulary_sha256: of vocabulary.parquet.
        version: of the tool that prepared the folder.
        files: the SHA-256 of each Parquet file of rows, by name; empty in folders of
            earlier versions.
    """

    dataset: str
    schema: Schema
    spec: FlatSpec
    fill: Mapping[str, float]
    splits: Mapping[str, Split]
    common: CommonTable | None = None
    dropped: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    sources: tuple[SourceFile, ...] = ()
    vocabulary_sha256: str = ""
    version: str = __version__
    files: Mapping[str, str] = field(default_factory=dict)

    @property
    def files_named(self) -> tuple[str, ...]:
        """The Parquet files of rows."""
        common = (self.common.file,) if self.common else ()
        return (*(n for split in self.splits.values() for n in split.files), *common)

    def to_json(self) -> str:
        tree = asdict(self) | {"format": FORMAT, "options": plain(self.options)}
        return json.dumps(tree, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Manifest":
        tree = json.loads(text)
        if tree.pop("format") != FORMAT:
            raise ValueError("another format")
        schema = Schema.from_json(tree["schema"])
        tree["splits"] = {
            name: Split(
                tuple(split["files"]),
                split["rows"],
                # Sorted keys lose the ladder's order, which the schema keeps.
                {k: split["labels"][k] for k in schema.labels if k in split["labels"]},
            )
            for name in SPLITS
            for split in [tree["splits"][name]]
        }
        common = tree.get("common")  # earlier versions have no such key
        tree["common"] = CommonTable(**common) if common else None
        tree["sources"] = tuple(SourceFile(**f) for f in tree.get("sources", ()))
        tree["spec"] = _spec(tree["spec"], schema.labels)
        manifest = cls(**tree | {"schema": schema})
        for name in manifest.files_named:
            if Path(name).name != name:
                raise ValueError("a file outside the folder")
        for table in (*manifest.splits.values(), *filter(None, [manifest.common])):
            if type(table.rows) is not int or table.rows < 0:
                raise ValueError("no count of rows")
        return manifest


def _spec(tree: dict[str, Any], labels: tuple[str, ...]) -> FlatSpec:
    for key in ("categorical", "numerical", "extra"):
        tree[key] = tuple(tree[key])
    lists = tree.get("multi_valued", {})  # earlier versions have none
    tree["multi_valued"] = {name: ListColumn(**lists[name]) for name in lists}
    tree["labels"] = {name: tree["labels"][name] for name in labels}
    return FlatSpec(**tree)


def plain(value: Any) -> Any:
    """An option in JSON's types: a path becomes its last name, a date ISO text."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Path):
        return value.name
    if isinstance(value, date):
        return value.isoformat()
    return value


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a prepared folder; a UserError where it is none of ours."""
    folder = Path(folder)
    path = folder / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder") from None
        raise UserError(
            f"{folder} holds no {FILE}: it is not a folder that prepare wrote"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"{path} cannot be read: {reason}") from None
    try:
        return Manifest.from_json(text)
    except (AttributeError, KeyError, TypeError, ValueError, RecursionError):
        raise UserError(
            f"{path} is damaged or of another version, or prepare did not write it: "
            "run prepare again"
        ) from None


def write_manifest(folder: Path, manifest: Manifest) -> Manifest:
    """Writes manifest.json, the last file of a prepared folder.

    Returns:
        The manifest with the hashes of the folder's files.
    """
    files = {n: SourceFile.of(folder / n).sha256 for n in manifest.files_named}
    manifest = replace(manifest, files=files)
    (folder / FILE).write_text(manifest.to_json(), encoding="utf-8")
    return manifest


def encoding_hash(folder: Path) -> str:
    """Hex digits that are equal where equal raw features get equal ids and scales.

    Of the fields, labels, fills and vocabulary; not of the rows.
    """
    manifest = read_manifest(folder)
    schema = manifest.schema
    tree = [
        [asdict(f) for f in (*schema.categorical, *schema.numerical)],
        [asdict(f) for f in schema.multi_valued],
        schema.labels,
        schema.common,
        {field.name: manifest.fill.get(field.name) for field in schema.numerical},
        manifest.vocabulary_sha256,
    ]
    return _hash(tree)


def rows_hash(folder: Path) -> str | None:
    """Hex digits that are equal where the Parquet files of rows are.

    From the manifest; where it is of an earlier version, from the files, and None where
    they are not there (a run keeps the manifest alone).
    """
    manifest = read_manifest(folder)
    if manifest.files:
        return _hash(manifest.files)
    try:
        names = manifest.files_named
        return _hash({name: SourceFile.of(folder / name).sha256 for name in names})
    except OSError:
        return None


def _hash(tree: Any) -> str:
    text = json.dumps(tree, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def refuse_other_data(run: Path, folder: Path, *, rows: bool = True) -> None:
    """Raises a UserError where a prepared folder is not the data of a run.

    Args:
        run: the run's folder, whose data/ holds the manifest it was trained with.
        folder: a prepared folder.
        rows: whether the rows must be the run's too, not only the encoding.
    """
    if encoding_hash(run / "data") != encoding_hash(folder):
        raise UserError(
            f"{folder} was prepared with other fields or vocabularies than the data of "
            f"{run}; `predict` encodes raw rows with the run's own"
        )
    if not rows:
        return
    ours = rows_hash(run / "data")
    if ours is None:  # an earlier version's run: its manifest says less
        old, new = read_manifest(run / "data"), read_manifest(folder)
        same = (old.splits, old.sources) == (new.splits, new.sources)
    else:
        same = ours == rows_hash(folder)
    if not same:
        raise UserError(
            f"{folder} holds other rows than {run} was trained on: it was prepared "
            f"again; `evaluate --data {folder}` measures the run on the new ones"
        )


def refuse_damaged(folder: Path, manifest: Manifest, names: Iterable[str]) -> None:
    """Raises a UserError where a file is not the one that the manifest describes.

    Manifests of earlier versions do not say.
    """
    for name in names:
        path, expected = folder / name, manifest.files.get(name)
        try:
            damaged = expected and SourceFile.of(path).sha256 != expected
        except OSError as error:
            raise UserError(
                f"{path} cannot be read: {error.strerror}; run prepare again"
            ) from None
        if damaged:
            raise UserError(
                f"{path} is damaged: it is not the file that prepare wrote; run "
                "prepare again"
            )


def is_prepared(path: Path) -> bool:
    """Whether a file holds prepared rows: its folder's manifest names it, or its mark.

    Such rows are encoded already; a reader of raw rows must refuse them.
    """
    if is_listed(path):
        return True
    try:
        with path.open("rb") as file:  # a path would be taken as a pattern
            return MARK.items() <= pl.read_parquet_metadata(file).items()
    except (OSError, pl.exceptions.PolarsError):
        return False


def is_listed(path: Path) -> bool:
    """Whether a file is one that the manifest beside it names."""
    try:
        return path.name in read_manifest(path.parent).files_named
    except UserError:
        return False
