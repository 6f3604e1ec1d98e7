"""Opens raw files: plain, gzipped, in a tar, or in nested zips."""

import gzip
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, cast

from pwiser_jax.errors import UserError

CHUNK_BYTES = 1 << 20
TARS = (".tar", ".tar.gz", ".tgz")
MAX_DEPTH = 4
"""Zips inside zips are opened to this depth: a zip may contain itself."""


@dataclass(frozen=True)
class Source:
    """A raw file: `path` itself, or a member of that zip or tar.

    Args:
        path: a file on disk.
        members: names of the members inside the zip, two for a nested zip. For a tar,
            the file's name without folders: a tar is streamed, not listed.
    """

    path: Path
    members: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join((str(self.path), *self.members))

    @property
    def name(self) -> str:
        """The file name without folders and without .gz."""
        return PurePosixPath(self._last).name.removesuffix(".gz")

    @property
    def packed(self) -> bool:
        return bool(self.members) or self._last.endswith(".gz")

    @property
    def _last(self) -> str:
        return self.members[-1] if self.members else self.path.name

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """Opens the unpacked bytes."""
        with ExitStack() as stack:
            file: IO[bytes] = stack.enter_context(self.path.open("rb"))
            for member in self.members:
                if is_tar(self.path):
                    file = stack.enter_context(_in_tar(file, member))
                    continue
                archive = stack.enter_context(zipfile.ZipFile(file))
                file = stack.enter_context(archive.open(member))
            if self._last.endswith(".gz"):
                file = cast(IO[bytes], stack.enter_context(gzip.open(file)))
            yield file


class Files:
    """The raw files of a folder or of one zip file, by name.

    A plain file is preferred to a gzipped one, and that to a member of a zip. Folders
    inside a zip are ignored.

    Raises:
        UserError: there is no such folder or zip, or a zip is broken.
    """

    def __init__(self, place: Path):
        self.place = place
        if not place.exists():
            raise UserError(f"{place}: no such folder or zip file")
        if not place.is_dir():
            self._sources = list(_in_zip(Source(place)))
            return
        paths = sorted(path for path in place.iterdir() if path.is_file())
        plain = [Source(path) for path in paths if path.suffix not in (".gz", ".zip")]
        gzipped = [Source(path) for path in paths if path.suffix == ".gz"]
        zips = [Source(path) for path in paths if path.suffix == ".zip"]
        inside = [source for file in zips for source in _in_zip(file)]
        self._sources = [*plain, *gzipped, *inside]

    @property
    def names(self) -> list[str]:
        return sorted({source.name for source in self._sources})

    def find(self, name: str) -> Source | None:
        """The file of that name, or None; refuses two members of zips."""
        matches = [source for source in self._sources if source.name == name]
        if len(matches) > 1 and matches[0].members:
            raise UserError(f"{matches[0]} and {matches[1]} are both {name}: keep one")
        return matches[0] if matches else None

    def require(self, name: str) -> Source:
        """The file of that name, or a UserError."""
        source = self.find(name)
        if source is None:
            raise UserError(f"{self.place}: no file {name}, {name}.gz or in a zip")
        return source


def is_tar(path: Path) -> bool:
    return path.name.endswith(TARS)


@contextmanager
def _in_tar(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    """Streams the tar up to a member, whatever its folder."""
    with tarfile.open(fileobj=file, mode="r|*", bufsize=CHUNK_BYTES) as archive:
        for member in archive:
            if PurePosixPath(member.name).name == name:
                content = archive.extractfile(member)
                if content is not None:
                    yield content
                    return
    raise UserError(f"{getattr(file, 'name', 'the tar file')}: no file {name} in it")


@contextmanager
def refuse_broken(source: Source) -> Iterator[None]:
    """Turns Python's errors on broken packed files into a UserError."""
    try:
        yield
    except (
        EOFError,
        gzip.BadGzipFile,
        tarfile.TarError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise UserError(f"{source}: broken or cut short ({error})") from error
    except (NotImplementedError, RuntimeError) as error:  # unknown method, encrypted
        raise UserError(f"{source}: cannot be unpacked ({error})") from error


def unpack(source: Source, folder: Path) -> Path:
    """The path of a plain file: the source itself, or its copy unpacked to `folder`.

    Reads in chunks and verifies the checksum of gzip or zip.

    Raises:
        UserError: the packed file is broken or cut short, or the disk is full.
    """
    if not source.packed:
        return source.path
    target = folder / source.name
    try:
        with (
            refuse_broken(source),
            source.open() as packed,
            target.open("xb") as plain,
        ):
            shutil.copyfileobj(packed, plain, CHUNK_BYTES)
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{source}: not unpacked to {folder}: {reason}") from error
    return target


def _in_zip(archive: Source) -> Iterator[Source]:
    """The members of a zip and of the zips inside it, to MAX_DEPTH.

    Raises:
        UserError: the zip is broken, or zips are nested deeper.
    """
    if len(archive.members) >= MAX_DEPTH:
        raise UserError(
            f"{archive}: a zip inside {MAX_DEPTH} other zips is not opened; unpack it"
        )
    try:
        with archive.open() as file, zipfile.ZipFile(file) as members:
            names = [name for name in members.namelist() if not name.endswith("/")]
    except (zipfile.BadZipFile, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{archive}: not a whole zip file ({error})") from error
    for name in names:
        source = Source(archive.path, (*archive.members, name))
        if name.endswith(".zip"):
            yield from _in_zip(source)
        else:
            yield source
