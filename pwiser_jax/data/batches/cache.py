"""The training cache: the rows of a prepared folder as memory-mapped arrays.

A batch needs some rows of all columns, which Parquet reads slowly. The cache holds each
split, and the table of shared fields, as .npy files in C order: taking rows copies
bytes, and only what is read is in memory. The first use builds it, chunk by chunk, in
`cache/` of the prepared folder or, where that is read-only, in the user's cache folder.
It belongs to one manifest, and is built again for another one or where it is damaged.

Each chunk of rows has a CRC-32. The first use in a process checks up to CHECKED bytes
of each array: all of it, or every n-th chunk from a random one on, since reading all of
a large cache would cost more than it saves. Building a cache checks the SHA-256 of each
Parquet file.
"""

import fcntl
import hashlib
import json
import mmap
import os
import re
import secrets
import shutil
import sys
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from pwiser_jax.atomic import FULL, foreign_entry
from pwiser_jax.data.batches.rows import (
    Inputs,
    Rows,
    beside_arrays,
    feature_arrays,
    join,
)
from pwiser_jax.data.prepared.manifest import FILE, Manifest, refuse_damaged
from pwiser_jax.data.raw.frames import scan_parquet
from pwiser_jax.errors import UserError

FORMAT = 2
MARKER = "cache.json"
FOLDER = "cache"
CHUNK = 65_536
CHECKED = 64 << 20
"""Bytes of each array that the first use checks: .06 s at 1.1 GB/s."""


TABLE = r"(?:common|(?:train|valid|test)(?:-(?:train|valid|test))*)"
ARRAY = (
    "(?:categorical|numerical|multi_ids|multi_weights|"
    "labels|group|time|weight|extra|common)"
)
ENTRY = re.compile(
    rf"{FOLDER}(/(\.{TABLE}\.partial-[0-9a-f]+|{TABLE})(/({MARKER}|{ARRAY}\.npy))?)?"
)


def is_cache_entry(name: str) -> bool:
    """Whether a path below a prepared folder is one that a cache has."""
    return ENTRY.fullmatch(name) is not None


class CacheWarning(UserWarning):
    """Where a cache lies that cannot lie in its prepared folder."""


def cached_rows(folder: Path, manifest: Manifest, *splits: str) -> Rows:
    """The rows of splits in turn, mapped; builds what is missing of the cache first.

    Raises:
        UserError: a Parquet file is missing, damaged or not what the manifest says, or
            the cache cannot be written.
    """
    schema, chosen = manifest.schema, [manifest.splits[name] for name in splits]
    files = [name for split in chosen for name in split.files]
    rows = sum(split.rows for split in chosen)
    common = cached_common(folder, manifest)
    own_files = _arrays(_Table(folder, manifest, "-".join(splits), files, rows))
    arrays = arrays_of(own_files)
    beside = {
        name: arrays.pop(name, None) for name in ("labels", "group", "time", "weight")
    }
    extra = arrays.pop("extra", np.empty((rows, 0)))
    line = arrays.pop("common", None)
    return Rows(
        inputs=arrays,
        **beside,  # pyright: ignore[reportArgumentType]
        extra={name: extra[:, at] for at, name in enumerate(schema.extra)},
        shared=None
        if common is None or line is None
        else join(schema, line, arrays_of(common), tuple(common.values())),
        pages=tuple(own_files.values()),
    )


def cached_common(folder: Path, manifest: Manifest) -> dict[str, "MappedArray"] | None:
    """The inputs that rows of a prepared folder share; None where they share none."""
    if manifest.common is None:
        return None
    files, rows = (manifest.common.file,), manifest.common.rows
    return _arrays(_Table(folder, manifest, "common", files, rows))


def arrays_of(files: Mapping[str, "MappedArray"]) -> Inputs:
    return {name: file.array for name, file in files.items()}


@dataclass(frozen=True)
class MappedArray:
    """An array in a file, read-only; its pages come and go as they are asked for."""

    array: np.ndarray
    _map: mmap.mmap | None
    _offset: int

    @classmethod
    def open(cls, path: Path) -> "MappedArray":
        """Raises ValueError where the file is not whole."""
        with path.open("rb") as file:
            version = np.lib.format.read_magic(file)
            if version != (1, 0):
                raise ValueError("not our version of .npy")
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
            offset, size = file.tell(), os.fstat(file.fileno()).st_size
            if size != offset + dtype.itemsize * int(np.prod(shape)):
                raise ValueError("cut short")
            if size == offset:
                return cls(np.empty(shape, dtype), None, offset)
            mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        array = np.frombuffer(mapped, dtype, offset=offset).reshape(shape)
        return cls(array, mapped, offset)

    def will_need(self, start: int, stop: int) -> None:
        """Requests rows from the disk in one go, without waiting."""
        if self._map is not None:
            width = self.array.strides[0]
            first = (self._offset + start * width) // mmap.PAGESIZE * mmap.PAGESIZE
            length = self._offset + stop * width - first
            self._map.madvise(mmap.MADV_WILLNEED, first, length)

    def release(self) -> None:
        """Gives all pages back; they stay in the system's file cache."""
        if self._map is not None:
            self._map.madvise(mmap.MADV_DONTNEED)


@dataclass(frozen=True)
class _Table:
    """The Parquet files of a split, of several, or of the shared fields ("common")."""

    folder: Path
    manifest: Manifest
    name: str
    files: Sequence[str]
    rows: int

    def frames(self) -> Iterator[pl.DataFrame]:
        try:
            lazy = scan_parquet([self.folder / name for name in self.files])
            yield from lazy.collect_batches(chunk_size=CHUNK, maintain_order=True)
        except (OSError, pl.exceptions.PolarsError):
            raise UserError(
                f"{self.folder}: the {self.name} rows are missing or damaged; "
                "run prepare again"
            ) from None

    def arrays(self, frame: pl.DataFrame) -> Inputs:
        schema = self.manifest.schema
        try:
            if self.name == "common":
                return feature_arrays(frame, schema, common=True)
            beside = beside_arrays(frame, schema)
            if (common := self.manifest.common) is not None:
                line = beside["common"]
                if len(line) and not 0 <= line.min() <= line.max() < common.rows:
                    raise UserError(f"a row names a line outside {common.file}")
            return feature_arrays(frame, schema, common=False) | beside
        except UserError as error:
            raise UserError(
                f"{self.folder}: {self.name}: {error}; run prepare again"
            ) from None
        except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{self.folder}: the {self.name} columns are not those of the "
                f"manifest ({reason}); run prepare again"
            ) from None


def _place(folder: Path, digest: str) -> Path:
    """The cache's folder: in the prepared one, or the user's where that is closed."""
    inside = folder / FOLDER
    if inside.is_dir() or os.access(folder, os.W_OK):
        return inside
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "pwiser_jax" / digest[:16]


def _arrays(table: _Table) -> dict[str, MappedArray]:
    """The arrays of one table, by name; builds them first where they are missing."""
    digest = hashlib.sha256((table.folder / FILE).read_bytes()).hexdigest()
    place = _place(table.folder, digest)
    arrays = _read(place, digest, table)
    if arrays is not None:
        return arrays
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _alone(place):
            # Another process may have built it while this one waited.
            arrays = _read(place, digest, table)
            if arrays is None:
                _clean(place)
                _build(place, digest, table)
                arrays = _read(place, digest, table)
    except OSError as error:
        reason = error.strerror or str(error)
        rest = "; nothing of it is left" if error.errno in FULL else ""
        raise UserError(
            f"{place}: the cache of the {table.name} rows cannot be written: "
            f"{reason}{rest}"
        ) from error
    if arrays is None:
        raise UserError(f"{place}: the cache cannot be read back")
    if place.parent != table.folder:
        warnings.warn(
            f"{table.folder} cannot be written; its cache lies in {place}",
            CacheWarning,
            stacklevel=2,
        )
    return arrays


def _read(place: Path, digest: str, table: _Table) -> dict[str, MappedArray] | None:
    """The arrays by name; None where they are missing, of other data or damaged."""
    folder = place / table.name
    try:
        text = (folder / MARKER).read_text()
        marker = json.loads(text)
        if marker["key"] != _key(digest):
            return None
        arrays = {n: MappedArray.open(folder / f"{n}.npy") for n in marker["arrays"]}
        if any(len(file.array) != table.rows for file in arrays.values()):
            return None
        if (folder, text) not in _checked:
            for name, sums in marker["arrays"].items():
                _check(arrays[name], marker["ends"], sums)
            _checked.add((folder, text))
    except _DamageError as damage:
        warnings.warn(
            f"{folder} is damaged ({damage}): it is made again", CacheWarning, 4
        )
        # Or else the next reader, with another sample, might take it as whole.
        (folder / MARKER).unlink(missing_ok=True)
        return None
    except (OSError, KeyError, TypeError, ValueError):
        return None
    return arrays


_checked: set[tuple[Path, str]] = set()
"""Tables, with the text of their markers, that this process has checked."""


class _DamageError(Exception):
    """Bytes of a cache are not those that were written."""


def _check(file: MappedArray, ends: Sequence[int], sums: Sequence[int]) -> None:
    """Compares chunks of rows with their CRC-32, up to CHECKED bytes."""
    step = max(-(-file.array.nbytes // CHECKED), 1)
    for at in range(secrets.randbelow(step), len(ends), step):
        first = ends[at - 1] if at else 0
        if zlib.crc32(file.array[first : ends[at]].data) != sums[at]:
            raise _DamageError(f"rows {first + 1:,} to {ends[at]:,}")
    file.release()


def _key(digest: str) -> list[str]:
    return [str(FORMAT), sys.byteorder, digest]


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process at a time builds a cache; the lock ends with its process."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clean(place: Path) -> None:
    """Removes what killed processes left; the caller holds the lock."""
    for partial in place.glob(".*.partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


def _build(place: Path, digest: str, table: _Table) -> None:
    """Writes one table into a hidden folder and renames it when it is whole."""
    partial = place / f".{table.name}.partial-{secrets.token_hex(4)}"
    partial.mkdir()
    try:
        marker = {"key": _key(digest)} | _write_arrays(partial, table)
        (partial / MARKER).write_text(json.dumps(marker) + "\n")
        target = place / table.name
        if target.exists():
            _refuse_foreign(target)
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_foreign(folder: Path) -> None:
    entry = foreign_entry(folder, lambda name: is_cache_entry(f"{FOLDER}/train/{name}"))
    if entry is not None:
        raise UserError(
            f"{folder} should be part of a cache, but holds other data ({entry}): "
            "move it elsewhere"
        )


def _write_arrays(folder: Path, table: _Table) -> dict[str, Any]:
    """Writes an .npy file for each array, chunk by chunk.

    Returns:
        "ends", the row after each chunk, and "arrays": name -> CRC-32 of each chunk.
    """
    files, ends = {}, []
    sums: dict[str, list[int]] = {}
    rows = 0
    try:
        for frame in table.frames():
            rows += frame.height
            if rows > table.rows:
                continue
            ends.append(rows)
            for name, values in table.arrays(frame).items():
                if name not in files:
                    files[name] = (folder / f"{name}.npy").open("xb")
                    shape = (table.rows, *values.shape[1:])
                    _write_header(files[name], values.dtype, shape)
                    sums[name] = []
                # Not `tofile`, whose error lacks the reason.
                data = np.ascontiguousarray(values).data
                files[name].write(data)
                sums[name].append(zlib.crc32(data))
    finally:
        for file in files.values():
            file.close()
    if rows != table.rows:
        raise UserError(
            f"{table.folder}: {table.name} has {rows} rows, the manifest says "
            f"{table.rows}; run prepare again"
        )
    refuse_damaged(table.folder, table.manifest, table.files)
    return {"ends": ends, "arrays": sums}


def _write_header(file, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
