"""The manifest: what a prepared folder holds, where it came from, how to encode more.

Sorted keys, no time stamp and no machine path: the same input gives the same bytes.
"""

import hashlib
import json
import mmap
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from pwiser_jax.data.raw.flat import SPLITS, FlatSpec
from pwiser_jax.errors import UserError
from pwiser_jax.schema import Schema
from pwiser_jax.version import __version__

FORMAT = 1
FILE = "manifest.json"
MAPPED = 64 << 20
"""Bytes of a file that are hashed at once: threads need no turn of Python's for them.
With fewer, one beside imports would mostly wait."""


@dataclass(frozen=True)
class Split:
    """The Parquet files of a split, its rows, and how many have each label."""

    files: tuple[str, ...]
    rows: int
    labels: Mapping[str, int]


@dataclass(frozen=True)
class CommonTable:
    """The Parquet file of the fields that rows share, and its rows."""

    file: str
    rows: int


@dataclass(frozen=True)
class SourceFile:
    """A raw file that was read: its name without folders, size and content."""

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
    """Everything about a prepared folder but its rows.

    Args:
        dataset: the reader's name.
        schema: the prepared columns.
        spec: the raw columns, so that further raw rows can be encoded.
        fill: numerical field -> the raw value that stands for a missing one.
        splits: train, valid and test; an empty one has no files.
        common: the one table of `schema.common`, for all splits; None without any.
        dropped: reason -> rows dropped or put right.
        options: the reader's options.
        sources: the raw files.
        vocabulary_sha256: of vocabulary.parquet.
        version: of the tool that prepared the folder.
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
                {label: split["labels"][label] for label in schema.labels},
            )
            for name in SPLITS
            for split in [tree["splits"][name]]
        }
        common = tree.get("common")  # earlier versions have no such key
        tree["common"] = CommonTable(**common) if common else None
        tree["sources"] = tuple(SourceFile(**source) for source in tree["sources"])
        tree["spec"] = _spec(tree["spec"], schema.labels)
        return cls(**tree | {"schema": schema})


def _spec(tree: dict[str, Any], labels: tuple[str, ...]) -> FlatSpec:
    for key in ("categorical", "numerical", "extra"):
        tree[key] = tuple(tree[key])
    tree["labels"] = {name: tree["labels"][name] for name in labels}
    return FlatSpec(**tree)


def plain(value: Any) -> Any:
    """An option as JSON: a path is its last name, a date is ISO text."""
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
    path = Path(folder) / FILE
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            f"{folder} holds no {FILE}: it is not a folder that prepare wrote"
        ) from None
    try:
        return Manifest.from_json(text)
    except (AttributeError, KeyError, TypeError, ValueError):
        raise UserError(
            f"{path} is damaged or of another version: run prepare again"
        ) from None
