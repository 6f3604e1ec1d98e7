"""Atomic writes of files and folders, and locks on folders."""

import errno
import fcntl
import os
import re
import secrets
import shutil
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

import polars as pl

from pwiser_jax.errors import UserError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_folder(output: Path, check: Callable[[Path], None]) -> Iterator[Path]:
    """Yields a hidden folder beside `output`, which becomes `output` at the end.

    On any exception, KeyboardInterrupt included, it is removed and `output` is
    unchanged. The next call removes the remains of a killed process.

    Args:
        output: the folder to make; its parents are made too.
        check: raises a UserError where `output` must not be replaced; called before and
            after the work (see `check_replaceable`).

    Raises:
        UserError: `check` refuses, the folder cannot be made, or another process is
            writing it; the disk is full.
    """
    output = Path(os.path.realpath(output))
    check(output)
    with _hidden(output, "partial", _clean) as folder:
        try:
            yield folder
            check(output)
            _swap(folder, output)
        except (OSError, pl.exceptions.PolarsError) as error:
            if (reason := _full(error)) is None:
                raise
            raise UserError(
                f"{output} could not be written: {reason}; nothing of it is left"
            ) from error


@contextmanager
def scratch_folder(output: Path) -> Iterator[Path]:
    """Yields a temporary folder beside `output`, and so on the same disk.

    It is removed at the end; remains of killed processes are removed first.

    Raises:
        UserError: it cannot be made.
    """
    output = Path(os.path.realpath(output))
    with _hidden(output, "raw", _clean_scratch) as folder:
        yield folder


@contextmanager
def resumable_folder(output: Path, plan: str) -> Iterator[Path]:
    """Yields a hidden folder beside `output` that a killed process leaves to the next.

    It holds what the next process with an equal `plan` need not do again; one with
    another plan begins with an empty folder. At the end, also after an exception, it is
    removed: only a kill leaves it.

    Raises:
        UserError: it cannot be made, or another process uses it.
    """
    output = Path(os.path.realpath(output))
    folder = output.parent / f".{output.name}.unfinished"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{output} cannot be made: {error.strerror}") from error
    with locked(folder, f"preparing {output}"):
        noted = folder / "plan.json"
        if not noted.is_file() or noted.read_text(encoding="utf-8") != plan:
            for path in folder.iterdir():
                if path.is_dir():
                    shutil.rmtree(path)
                elif path.name != LOCK:
                    path.unlink()
            write_whole(noted, plan)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _hidden(output: Path, kind: str, clean: Callable[[Path], None]) -> Iterator[Path]:
    """A new locked folder beside `output`, named for its process."""
    host = re.sub(r"[^\w.]", "", socket.gethostname())[:32]
    name = f"{os.getpid()}-{host}-{secrets.token_hex(4)}"
    folder = output.parent / f".{output.name}.{kind}-{name}"
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(output.parent):
            clean(output)
            folder.mkdir()
            lock = os.open(folder, os.O_RDONLY)
            _lock(lock)
    except OSError as error:
        raise UserError(f"{output} cannot be made: {error.strerror}") from error
    try:
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone_in(parent: Path) -> Iterator[None]:
    """One process at a time cleans up, makes or renames hidden folders in `parent`."""
    descriptor = os.open(parent, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


LOCK = ".lock"
# The holder touches its lock's file every BEAT seconds. A file that another host has
# not touched for so long is left behind: after FREE seconds if the file system says
# that the lock is free, after LOST if it does not.
BEAT, FREE, LOST = 10.0, 30.0, 300.0


class InUse(UserError):
    """Another process holds a folder's lock."""


@contextmanager
def locked(folder: Path, doing: str) -> Iterator[None]:
    """Locks `folder`, which exists, against other processes that lock it.

    The lock is flock on the file `.lock`, which names its holder, and a lease: a thread
    touches the file every BEAT seconds. Between processes of one host flock alone
    counts; it ends with the process, however that ends. Another host's lock counts as
    long as its file is touched, so that it holds on file systems that do not share
    flock between hosts (NFS 3 without lockd, Lustre with `localflock`), except between
    commands that start within a second. It ends when its host is lost: at FREE where
    flock is shared and ends with the host's lease (NFS 4, GPFS, CephFS, Lustre with
    `flock`) or is not shared, at LOST where it stays (NFS 3 with lockd). Ages are
    differences of the file system's own times. A process that was suspended for longer
    than LOST, and whose lock another host took, ends with exit code 1.

    Args:
        folder: the folder.
        doing: the work of the holder, for other processes' messages: "training".
    Raises:
        InUse: another process holds it.
        UserError: the folder cannot be written.
    """
    path = folder / LOCK
    try:
        lock = _open_locked(path)
    except BlockingIOError:
        holder = _holder(path)
        raise InUse(
            f"{folder} is in use: {holder} is {doing} there; wait for it to end, or "
            "name another folder"
        ) from None
    except OSError as error:
        raise UserError(f"{folder} cannot be locked: {error.strerror}") from error
    over = threading.Event()
    renewal = threading.Thread(target=_renew, args=(lock, path, over), daemon=True)
    try:
        os.truncate(lock, 0)
        os.write(lock, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
        os.fsync(lock)
        renewal.start()
        yield
    finally:
        over.set()
        if renewal.ident is not None:
            renewal.join()
        if _is_at(lock, path):
            path.unlink(missing_ok=True)
        os.close(lock)


def _renew(lock: int, path: Path, over: threading.Event) -> None:
    """Touches the lock's file; ends the process if another host has taken the lock."""
    while not over.wait(BEAT):
        try:
            if path.exists() and not _is_at(lock, path):
                print(
                    f"pwiser: error: {path.parent}: this process did not answer for "
                    f"{LOST:.0f} s, and {_holder(path)} has taken the folder over",
                    file=sys.stderr,
                    flush=True,
                )
                os._exit(1)
            os.utime(lock)
        except OSError:  # the file system is away for a while
            continue


def _is_at(lock: int, path: Path) -> bool:
    """Whether an open file is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(lock), path.stat())
    except FileNotFoundError:
        return False


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip() or "another process"
    except OSError:  # it has exited meanwhile
        return "another process"


def _open_locked(path: Path) -> int:
    """The file's descriptor, with the lock on it. Raises BlockingIOError, OSError."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            silent = _silence(lock, path)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if silent is None or silent < LOST or not _is_at(lock, path):
                    raise
                path.unlink(missing_ok=True)  # and lock a new file
            else:
                if silent is not None and silent < FREE:
                    raise BlockingIOError
                # The holder before may have removed the file after it was opened here.
                if _is_at(lock, path):
                    return lock
        except OSError:
            os.close(lock)
            raise
        os.close(lock)


def _silence(lock: int, path: Path) -> float | None:
    """Seconds since another host touched its lock's file; None: it is not another's."""
    host = os.pread(lock, 1000, 0).decode(errors="replace").rpartition(" on ")[2]
    if host.strip() in ("", socket.gethostname()):
        return None
    with TemporaryFile(dir=path.parent, prefix=f"{LOCK}-") as now:  # the server's time
        return os.fstat(now.fileno()).st_mtime - os.fstat(lock).st_mtime


def check_replaceable(
    output: Path,
    kind: str,
    first_foreign: Callable[[Path], str | None],
    *,
    overwrite: bool,
) -> None:
    """Raises a UserError unless `output` is new, empty or may be replaced.

    Args:
        output: the folder to be written.
        kind: name of this kind of folder, for messages: "prepared folder".
        first_foreign: names the first entry of a folder that a folder of this kind does
            not hold, see `foreign_entry`; None where all are ours.
        overwrite: whether a folder of this kind may be replaced.
    """
    if not output.is_dir():
        if os.path.lexists(output):
            raise UserError(f"{output} is a file: name a folder that is new or empty")
        return
    if not any(output.iterdir()):
        return
    if (entry := first_foreign(output)) is not None:
        raise UserError(
            f"{output} holds other data ({entry}): name a folder that is new or empty"
        )
    if not overwrite:
        raise UserError(
            f"{output} is a {kind} already: name another, or give --overwrite to "
            "replace it"
        )


def foreign_entry(folder: Path, ours: Callable[[str], bool]) -> str | None:
    """The first entry of a folder, at any depth, that is not ours; None if all are.

    Check this before a whole folder is removed.

    Args:
        folder: the folder.
        ours: whether an entry is, by its path below the folder ("cache/train").
    """
    for path, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted((*folders, *files)):
            entry = (Path(path) / name).relative_to(folder).as_posix()
            if not ours(entry):
                return entry
    return None


def _lock(folder: int) -> bool:
    """Locks a folder until the descriptor or its process is closed."""
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_free(folder: Path) -> bool:
    """Whether no running process is writing the folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        return _lock(descriptor)
    finally:
        os.close(descriptor)


def _beside(output: Path, kind: str) -> list[Path]:
    """The hidden folders of a kind that belong to `output`."""
    start = f".{output.name}.{kind}-"
    return [path for path in output.parent.iterdir() if path.name.startswith(start)]


def _clean(output: Path) -> None:
    """Removes remains of a killed process, and restores a folder it was replacing."""
    for partial in _beside(output, "partial"):
        if not _is_free(partial):
            pid, _, rest = partial.name.rpartition(".partial-")[2].partition("-")
            raise UserError(
                f"{output} is being written by another process ({pid} on "
                f"{rest.rpartition('-')[0]}; its unfinished folder is {partial.name}): "
                "wait for it, or name another folder"
            )
        shutil.rmtree(partial)
    for old in _beside(output, "replaced"):
        if output.exists():
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(output)


def _clean_scratch(output: Path) -> None:
    """Removes remains of killed processes."""
    for old in _beside(output, "raw"):
        if _is_free(old):
            shutil.rmtree(old)


def _swap(folder: Path, output: Path) -> None:
    with _alone_in(output.parent):
        if not output.exists() or not any(output.iterdir()):
            folder.rename(output)
            return
        old = output.parent / f".{output.name}.replaced-{secrets.token_hex(4)}"
        output.rename(old)
        folder.rename(output)
    shutil.rmtree(old, ignore_errors=True)


def _full(error: Exception) -> str | None:
    """The reason if the disk or quota is full, else None."""
    if isinstance(error, OSError):
        code = error.errno
    else:
        match = re.search(r"\(os error (\d+)\)", str(error))
        code = int(match[1]) if match else None
    return os.strerror(code) if code in FULL else None


def write_whole(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically: to a hidden file, which is renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_text(text, encoding="utf-8", newline="\n")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
