"""Files and folders that appear whole or not at all, and locks on folders."""

import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from pwiser_jax.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_folder(output: Path, *, marker: str, overwrite: bool) -> Iterator[Path]:
    """Yields a hidden folder beside `output`, which becomes `output` at the end.

    On any exception, KeyboardInterrupt included, it is removed and `output` is as it
    was. What a killed run left is removed by the next one.

    Args:
        output: the folder to make; its parents are made too.
        marker: a file that every folder of this kind holds.
        overwrite: replace a folder that holds the marker.

    Raises:
        UserError: `output` holds something else, cannot be made, or is being written by
            another process; the disk is full.
    """
    output = Path(os.path.realpath(output))
    refuse_existing(output, marker, overwrite)
    with _hidden(output, "partial", _clean) as folder:
        try:
            yield folder
            refuse_existing(output, marker, overwrite)
            _swap(folder, output)
        except (OSError, pl.exceptions.PolarsError) as error:
            if (reason := _full(error)) is None:
                raise
            raise UserError(
                f"{output} could not be written: {reason}; nothing of it is left"
            ) from error


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """A hidden folder beside `output`, so on its disk, for what is needed meanwhile.

    It is removed at the end; what killed runs left is removed first.

    Raises:
        UserError: it cannot be made.
    """
    output = Path(os.path.realpath(output))
    with _hidden(output, "raw", _clean_scratch) as folder:
        yield folder


@contextmanager
def _hidden(output: Path, kind: str, clean: Callable[[Path], None]) -> Iterator[Path]:
    """A new locked folder beside `output`, once `clean` has removed old ones."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        clean(output)
        folder = output.parent / f".{output.name}.{kind}-{secrets.token_hex(4)}"
        folder.mkdir()
    except OSError as error:
        raise UserError(f"{output} cannot be made: {error.strerror}") from error
    lock = os.open(folder, os.O_RDONLY)
    try:
        _lock(lock)
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


LOCK = ".lock"


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Holds `folder`, which exists, against other processes that lock it.

    The lock (flock on the file `.lock`, which names its holder) ends with the process,
    however that ends. It holds between processes of one host, and on file systems that
    share flock between hosts (NFS 4, Lustre with `flock`, GPFS) between hosts as well.

    Args:
        folder: the folder.
        doing: what the holder does there, for the other's message: "training".
    Raises:
        UserError: another process holds it, or the folder cannot be written.
    """
    path = folder / LOCK
    try:
        lock = _open_locked(path)
    except BlockingIOError:
        holder = path.read_text(encoding="utf-8").strip() or "another process"
        raise UserError(
            f"{folder} is in use: {holder} is {doing} there; wait for it to end, or "
            "name another folder"
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be locked: {error.strerror}") from error
    try:
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(lock)


def _open_locked(path: Path) -> int:
    """The file's descriptor, with the lock on it. Raises BlockingIOError, OSError."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The holder before may have removed the file after it was opened here.
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        except FileNotFoundError:
            pass
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def refuse_existing(output: Path, marker: str, overwrite: bool) -> None:
    """Raise a UserError where `output` holds what must not be replaced."""
    if output.is_dir():
        if not any(output.iterdir()):
            return
        if not (output / marker).is_file():
            raise UserError(
                f"{output} holds other data: name a folder that is new or empty"
            )
        if not overwrite:
            raise UserError(
                f"{output} is a prepared folder already: name another, or give "
                "--overwrite to replace it"
            )
    elif os.path.lexists(output):
        raise UserError(f"{output} is a file: name a folder that is new or empty")


def _lock(folder: int) -> bool:
    """Marks a folder as being written until its process ends, however it ends."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_free(folder: Path) -> bool:
    """Whether no process that runs is writing the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return _lock(descriptor)
    finally:
        os.close(descriptor)


def _clean(output: Path) -> None:
    """Removes what a killed run left; brings back a folder killed while replaced."""
    for old in output.parent.glob(f".{_escaped(output.name)}.replaced-*"):
        if output.exists():
            shutil.rmtree(old)
        else:
            old.rename(output)
    for partial in output.parent.glob(f".{_escaped(output.name)}.partial-*"):
        if not _is_free(partial):
            raise UserError(
                f"{output} is being written by another process (its unfinished folder "
                f"is {partial.name}): wait for it, or name another folder"
            )
        shutil.rmtree(partial)


def _clean_scratch(output: Path) -> None:
    """Removes what killed runs left and no other process uses."""
    for old in output.parent.glob(f".{_escaped(output.name)}.raw-*"):
        if _is_free(old):
            shutil.rmtree(old)


def _escaped(name: str) -> str:
    return re.sub(r"([*?\[])", r"[\1]", name)


def _swap(folder: Path, output: Path) -> None:
    if not output.exists() or not any(output.iterdir()):
        folder.rename(output)
        return
    old = output.parent / f".{output.name}.replaced-{secrets.token_hex(4)}"
    output.rename(old)
    folder.rename(output)
    shutil.rmtree(old)


def _full(error: Exception) -> str | None:
    """Why there is no room for more bytes, or None where that is not the error."""
    if isinstance(error, OSError):
        code = error.errno
    else:
        found = re.search(r"\(os error (\d+)\)", str(error))
        code = int(found[1]) if found else None
    return os.strerror(code) if code in FULL else None


def write_whole(path: Path, text: str) -> None:
    """Write UTF-8 text beside its place and move it there: a kill leaves no half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
