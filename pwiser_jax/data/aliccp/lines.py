"""Reads large text files in blocks of whole lines, and explains a bad line."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from typing import IO, TypeVar

import numpy as np

from pwiser_jax.data.aliccp.line_format import (
    FLOAT32_MAX,
    ID,
    INT32_MAX,
    NAME,
    PAD,
    VALUE,
    Column,
    Names,
)
from pwiser_jax.data.raw.archives import Source, refuse_broken
from pwiser_jax.errors import UserError

BLOCK_BYTES = 2 << 20
LONGEST_LINE = 64 << 20
EDGE = b"\n" * PAD

Item = TypeVar("Item")
Result = TypeVar("Result")


def blocks(source: Source, size: int = BLOCK_BYTES) -> Iterator[np.ndarray]:
    """Yields a file's lines in blocks of about `size` bytes, as `triples.parse` needs.

    The last line may lack its end.

    Raises:
        UserError: the file cannot be read, is empty, or has a line that is too long.
    """
    rest, offset = b"", 0
    try:
        with refuse_broken(source), source.open() as file:
            whole = False
            while not whole:
                # Read in place, to avoid a second copy. A line without an end is copied
                # each time, so that as much is read again.
                room = max(size, len(rest))
                text = np.empty(PAD + len(rest) + room + PAD, np.uint8)
                view = text.data
                view[: PAD + len(rest)] = EDGE + rest
                stop = PAD + len(rest)
                read = _fill(file, view[stop : stop + room])
                stop, whole = stop + read, read < room
                end = _line_end(view[PAD:stop]) + PAD
                none = whole and not offset and end == PAD < stop
                if none or stop - end > LONGEST_LINE:
                    raise UserError(
                        f"{source}: no line ends in the {stop - end:,} bytes after "
                        f"byte {offset + end - PAD:,}; expected lines of text"
                    )
                cut = stop if whole else end
                rest = bytes(view[cut:stop])
                if cut > PAD:
                    offset += cut - PAD
                    view[cut : cut + PAD] = EDGE
                    yield text[: cut + PAD]
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"{source} cannot be read: {reason}") from error
    if not offset:
        raise UserError(f"{source}: the file is empty")


def _fill(file: IO[bytes], view: memoryview) -> int:
    """Reads into the view until it is full or the file ends; returns the bytes read."""
    done = 0
    while done < len(view):
        read = file.readinto(view[done:])  # pyright: ignore[reportAttributeAccessIssue]
        if not read:
            break
        done += read
    return done


def _line_end(text: memoryview) -> int:
    """The position after the last line end, 0 without one."""
    part = 1 << 16
    for stop in range(len(text), 0, -part):
        at = bytes(text[max(stop - part, 0) : stop]).rfind(b"\n")
        if at >= 0:
            return max(stop - part, 0) + at + 1
    return 0


def with_unix_ends(text: np.ndarray) -> np.ndarray:
    """The block with Unix line ends in place of Windows ones."""
    return np.frombuffer(text.tobytes().replace(b"\r\n", b"\n"), np.uint8)


def in_order(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[Result]:
    """An ordered map on the pool's threads that computes a few items ahead."""
    waiting: deque[Future[Result]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 3:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()


def find_bad(
    text: np.ndarray, columns: Sequence[Column], names: Names
) -> tuple[int, str] | None:
    """The number of the first bad line, from 0, and the reason.

    `triples.parse` raises OddBlock if and only if this finds a line.
    """
    lines = text[PAD:-PAD].tobytes().split(b"\n")
    for at, line in enumerate(lines):
        if at == len(lines) - 1:
            reason = line and (
                "the line has no end: the file is cut in the middle (if it is not, "
                "add a line end)"
            )
        else:
            reason = _bad_line(line, columns, names)
        if reason:
            return at, reason
    return None


def _bad_line(line: bytes, columns: Sequence[Column], names: Names) -> str | None:
    if not line.isascii():
        try:
            line.decode()
        except UnicodeDecodeError:
            return "this is not UTF-8 text"
        return "a character is not ASCII"
    values = line.split(b",")
    if len(values) != len(columns) + 1:
        return f"expected {len(columns) + 1} columns, found {len(values)}"
    for column, value in zip(columns, values, strict=False):
        if not column.form.fullmatch(value):
            return (
                f"column {column.name!r} holds {_shown(value)}; "
                f"expected {column.expected}"
            )
    triples = values[-1].split(b"\x01") if values[-1] else []
    if int(values[-2]) != len(triples):
        return f"expected {int(values[-2])} features, found {len(triples)}"
    for number, triple in enumerate(triples, 1):
        reason = _bad_triple(triple, names)
        if reason:
            return f"feature {number}: {reason}"
    return None


def _bad_triple(triple: bytes, names: Names) -> str | None:
    name, mark, rest = triple.partition(b"\x02")
    if not mark or not NAME.fullmatch(name):
        return f"expected a field's name, an id and a value, found {_shown(triple)}"
    if name not in names.wanted:
        return None
    text, mark, value = rest.partition(b"\x03")
    if not ID.fullmatch(text) or not mark or int(text) > INT32_MAX:
        return (
            f"the id of field {name.decode()} is {_shown(text)}; expected a whole "
            f"number up to {INT32_MAX}"
        )
    if not VALUE.fullmatch(value) or float(value) > FLOAT32_MAX:
        return (
            f"the value of field {name.decode()} is {_shown(value)}; expected a "
            "number, 0 or more"
        )
    return None


def _shown(text: bytes) -> str:
    """A short text for an error message, with control characters escaped."""
    if not text:
        return "nothing"
    shown = repr(text[:40].decode("ascii", "backslashreplace"))
    return shown if len(text) <= 40 else f"{shown} and so on"
