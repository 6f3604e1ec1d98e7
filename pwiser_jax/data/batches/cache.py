"""The training cache: a prepared folder's rows as arrays in files that are mapped.

Parquet is small and for everybody; a batch, though, wants some rows of all columns. The
cache holds each split, and the table of shared fields, as NumPy's .npy files whose rows
lie side by side, so that taking rows is copying bytes, and only what is read is in
memory. It is made at the first use, piece by piece, in `cache/` of the prepared folder
(where that cannot be written, in the user's cache folder) and belongs to one manifest:
of another one, or damaged, it is made again.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

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
from pwiser_jax.data.prepared.manifest import FILE, Manifest
from pwiser_jax.data.raw.frames import scan_parquet
from pwiser_jax.errors import UserError

FORMAT = 1
MARKER = "cache.json"
FOLDER = "cache"
CHUNK = 65_536


ENTRY = re.compile(
    rf"{FOLDER}(/(\.\w[\w-]*\.partial-[0-9a-f]+|\w[\w-]*)(/({MARKER}|\w+\.npy))?)?"
)


def is_cache_entry(name: str) -> bool:
    """Whether a path below a prepared folder is one that a cache has."""
    return ENTRY.fullmatch(name) is not None


class CacheWarning(UserWarning):
    """Where a cache lies that cannot lie in its prepared folder."""


def cached_rows(folder: Path, manifest: Manifest, *splits: str) -> Rows:
    """The rows of splits in turn, mapped; makes what is missing of the cache first.

    Raises:
        UserError: a Parquet file is missing, damaged or not what the manifest says, or
            the cache cannot be written.
    """
    schema, parts = manifest.schema, [manifest.splits[name] for name in splits]
    files = [name for part in parts for name in part.files]
    rows = sum(part.rows for part in parts)
    common = cached_common(folder, manifest)
    own = _part(_Source(folder, manifest, "-".join(splits), files, rows))
    arrays = arrays_of(own)
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
        pages=tuple(own.values()),
    )


def cached_common(folder: Path, manifest: Manifest) -> dict[str, "MappedArray"] | None:
    """The inputs that rows of a prepared folder share; None where they share none."""
    if manifest.common is None:
        return None
    files, rows = (manifest.common.file,), manifest.common.rows
    return _part(_Source(folder, manifest, "common", files, rows))


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
class _Source:
    """The Parquet files that one part of the cache is made of."""

    folder: Path
    manifest: Manifest
    part: str
    files: Sequence[str]
    rows: int

    def frames(self) -> Iterator[pl.DataFrame]:
        try:
            lazy = scan_parquet([self.folder / name for name in self.files])
            yield from lazy.collect_batches(chunk_size=CHUNK, maintain_order=True)
        except (OSError, pl.exceptions.PolarsError):
            raise UserError(
                f"{self.folder}: the {self.part} rows are missing or damaged; "
                "run prepare again"
            ) from None

    def arrays(self, frame: pl.DataFrame) -> Inputs:
        schema = self.manifest.schema
        try:
            if self.part == "common":
                return feature_arrays(frame, schema, common=True)
            beside = beside_arrays(frame, schema)
            if (table := self.manifest.common) is not None:
                line = beside["common"]
                if len(line) and not 0 <= line.min() <= line.max() < table.rows:
                    raise UserError(f"a row names a line outside {table.file}")
            return feature_arrays(frame, schema, common=False) | beside
        except UserError as error:
            raise UserError(
                f"{self.folder}: {self.part}: {error}; run prepare again"
            ) from None
        except (pl.exceptions.PolarsError, TypeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UserError(
                f"{self.folder}: the {self.part} columns are not those of the "
                f"manifest ({reason}); run prepare again"
            ) from None


def _place(folder: Path, digest: str) -> Path:
    """The cache's folder: in the prepared one, or the user's where that is closed."""
    inside = folder / FOLDER
    if inside.is_dir() or os.access(folder, os.W_OK):
        return inside
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "pwiser_jax" / digest[:16]


def _part(source: _Source) -> dict[str, MappedArray]:
    """The arrays of one part, by name; made first where they are not there."""
    digest = hashlib.sha256((source.folder / FILE).read_bytes()).hexdigest()
    place = _place(source.folder, digest)
    found = _read(place, digest, source)
    if found is not None:
        return found
    try:
        place.mkdir(parents=True, exist_ok=True)
        with _alone(place):
            # Another process may have made it while this one waited.
            found = _read(place, digest, source)
            if found is None:
                _clean(place)
                _build(place, digest, source)
                found = _read(place, digest, source)
    except OSError as error:
        reason = error.strerror or str(error)
        rest = "; nothing of it is left" if error.errno in FULL else ""
        raise UserError(
            f"{place}: the cache of the {source.part} rows cannot be written: "
            f"{reason}{rest}"
        ) from error
    if found is None:
        raise UserError(f"{place}: the cache cannot be read back")
    if place.parent != source.folder:
        warnings.warn(
            f"{source.folder} cannot be written; its cache lies in {place}",
            CacheWarning,
            stacklevel=2,
        )
    return found


def _read(place: Path, digest: str, source: _Source) -> dict[str, MappedArray] | None:
    """The part's arrays by name; None where it is absent, of other data or damaged."""
    folder = place / source.part
    try:
        marker = json.loads((folder / MARKER).read_text())
        if marker["key"] != _key(digest):
            return None
        arrays = {n: MappedArray.open(folder / f"{n}.npy") for n in marker["arrays"]}
    except (OSError, KeyError, TypeError, ValueError):
        return None
    whole = all(len(file.array) == source.rows for file in arrays.values())
    return arrays if whole else None


def _key(digest: str) -> list[str]:
    return [str(FORMAT), sys.byteorder, digest]


@contextmanager
def _alone(place: Path) -> Iterator[None]:
    """One process at a time makes a cache; the lock ends with its process."""
    descriptor = os.open(place, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _clean(place: Path) -> None:
    """Removes what killed processes left. Called under the lock."""
    for partial in place.glob(".*.partial-*"):
        shutil.rmtree(partial, ignore_errors=True)


def _build(place: Path, digest: str, source: _Source) -> None:
    """Makes one part in a hidden folder, and moves it to its place when it is whole."""
    partial = place / f".{source.part}.partial-{secrets.token_hex(4)}"
    partial.mkdir()
    try:
        names = _write_arrays(partial, source)
        marker = {"key": _key(digest), "arrays": names}
        (partial / MARKER).write_text(json.dumps(marker, indent=2) + "\n")
        target = place / source.part
        if target.exists():
            _refuse_foreign(target)
            shutil.rmtree(target)
        partial.rename(target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_foreign(part: Path) -> None:
    entry = foreign_entry(part, lambda name: is_cache_entry(f"{FOLDER}/part/{name}"))
    if entry is not None:
        raise UserError(
            f"{part} should be a part of a cache, but holds other data ({entry}): "
            "move it elsewhere"
        )


def _write_arrays(folder: Path, source: _Source) -> list[str]:
    files = {}
    rows = 0
    try:
        for frame in source.frames():
            rows += frame.height
            if rows > source.rows:
                continue
            for name, values in source.arrays(frame).items():
                if name not in files:
                    files[name] = (folder / f"{name}.npy").open("xb")
                    shape = (source.rows, *values.shape[1:])
                    _write_header(files[name], values.dtype, shape)
                # Not `tofile`: it forgets the reason of an error.
                files[name].write(np.ascontiguousarray(values).data)
    finally:
        for file in files.values():
            file.close()
    if rows != source.rows:
        raise UserError(
            f"{source.folder}: {source.part} has {rows} rows, the manifest says "
            f"{source.rows}; run prepare again"
        )
    return list(files)


def _write_header(file, dtype: np.dtype, shape: tuple[int, ...]) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(dtype),
        "fortran_order": False,
        "shape": shape,
    }
    np.lib.format.write_array_header_1_0(file, header)
