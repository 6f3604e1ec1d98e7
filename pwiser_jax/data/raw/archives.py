"""Find raw files as publishers pack them: plain, gzipped, in a tar, in zips of zips."""

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


@dataclass(frozen=True)
class Source:
    """A raw file: `path` itself, or a member of that zip or tar.

    Args:
        path: a file of the disk.
        members: the way into the zip; two names if a zip lies in the zip. In a tar, a
            file's name without folders: a tar is not listed, only read through.
    """

    path: Path
    members: tuple[str, ...] = ()

    def __str__(self) -> str:
        return "/".join((str(self.path), *self.members))

    @property
    def name(self) -> str:
        """The file's own name, without .gz."""
        return PurePosixPath(self._last).name.removesuffix(".gz")

    @property
    def packed(self) -> bool:
        return bool(self.members) or self._last.endswith(".gz")

    @property
    def _last(self) -> str:
        return self.members[-1] if self.members else self.path.name

    @contextmanager
    def open(self) -> Iterator[IO[bytes]]:
        """The file's bytes, unpacked."""
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

    A name counts where it stands as it is, with .gz, or in any zip of the folder, in
    this order; folders inside a zip do not matter.

    Raises:
        UserError: there is no such folder or zip, or a zip is broken.
    """

    def __init__(self, place: Path):
        self.place = place
        if not place.exists():
            raise UserError(f"{place}: no such folder or zip file")
        if not place.is_dir():
            self._found = list(_in_zip(Source(place)))
            return
        paths = sorted(path for path in place.iterdir() if path.is_file())
        plain = [Source(path) for path in paths if path.suffix not in (".gz", ".zip")]
        gzipped = [Source(path) for path in paths if path.suffix == ".gz"]
        zips = [Source(path) for path in paths if path.suffix == ".zip"]
        inside = [source for file in zips for source in _in_zip(file)]
        self._found = [*plain, *gzipped, *inside]

    @property
    def names(self) -> list[str]:
        return sorted({source.name for source in self._found})

    def find(self, name: str) -> Source | None:
        """The file of that name; None: there is none. Two in zips are refused."""
        found = [source for source in self._found if source.name == name]
        if len(found) > 1 and found[0].members:
            raise UserError(f"{found[0]} and {found[1]} are both {name}: keep one")
        return found[0] if found else None

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
    """A member as it streams past; folders in the tar do not matter."""
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
    """A UserError for what Python says of packed files that cannot be unpacked."""
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
    """A plain file of the source's bytes: itself, or unpacked into `folder`.

    Reads in chunks; the checksum of gzip or zip is checked.

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
    """The members of a zip and of the zips in it."""
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
