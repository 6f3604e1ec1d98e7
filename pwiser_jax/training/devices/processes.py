"""Several processes, on one host or many: start, broadcasts and exit.

Each process runs the same program on its devices. jax's distributed runtime connects
them. Messages outside a step are collectives of `multihost_utils`, which all processes
call in the same order; a single process skips them.
"""

import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from pwiser_jax.errors import UserError
from pwiser_jax.training.devices.signals import Interrupted

CONNECT_SECONDS = 120
# jax ends all processes when one has sent no heartbeat for this long.
HEARTBEAT_SECONDS = 60
# Process 0 runs jax's coordinator: on an error it waits for the others' messages.
REASON_SECONDS = 3.0
# Large arrays are broadcast in pieces of this size.
PIECE_BYTES = 64 * 2**20


def index() -> int:
    return jax.process_index()


def count() -> int:
    return jax.process_count()


def first() -> bool:
    """Whether this is process 0, which writes the files and prints."""
    return index() == 0


@contextmanager
def joined(
    coordinator: str | None, processes: int | None, process: int | None
) -> Iterator[None]:
    """Joins the other processes within the context; enter it before jax is used.

    If a process fails, it prints why; the others exit with code 1 within a minute.

    Args:
        coordinator: HOST:PORT of process 0; None: from the cluster's environment.
        processes: number of processes; None: from the cluster's environment.
        process: index of this process, from 0; None: as above.
    Raises:
        UserError: there is no such cluster, or it cannot be reached.
    """
    _catch_abort()
    _connect(coordinator, processes, process)
    try:
        yield
    except (Interrupted, SystemExit):
        raise
    except UserError as error:
        _end(str(error), 2)
    except BaseException as error:
        reason = str(error).partition("\n")[0]
        # A collective whose partner is gone raises this; on CPUs a ValueError.
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in reason:
            _end(f"another process was lost, or jax failed ({reason})", 1)
        traceback.print_exc()
        _end(f"{type(error).__name__}: {error}", 1)


@ctypes.CFUNCTYPE(None, ctypes.c_int)
def _aborted(signum: int) -> None:
    _end("another process was lost: see jax's message above", 1)


def _catch_abort() -> None:
    """Turns jax's abort when another process is lost into a sentence and exit code 1.

    jax offers no callback and aborts in its own thread, where Python's signal handlers
    do not run; this handler does.
    """
    libc = ctypes.CDLL(None)
    libc.signal.restype = ctypes.c_void_p  # the previous handler is not called
    libc.signal(int(signal.SIGABRT), _aborted)


def _connect(
    coordinator: str | None, processes: int | None, process: int | None
) -> None:
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(
            coordinator,
            processes,
            process,
            initialization_timeout=CONNECT_SECONDS,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
        )
    except (ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(
            f"the processes cannot be joined ({reason}); outside of a cluster that jax "
            "knows give --coordinator, --num-processes and --process-id"
        ) from error
    devices = jax.local_device_count()
    if jax.device_count() != devices * count():
        raise UserError(
            f"process {index()} has {devices} of {jax.device_count()} devices; "
            f"each of {count()} processes needs as many as the others"
        )


_ending = threading.Lock()


def _end(sentence: str, code: int) -> NoReturn:
    """Exits without waiting at jax's shutdown barrier."""
    _ending.acquire()  # never released: only the first of two threads prints
    print(f"pwiser: error: {sentence}", file=sys.stderr, flush=True)
    if first():
        time.sleep(REASON_SECONDS)
    os._exit(code)


def from_first(tree: Any) -> Any:
    """Broadcasts a tree of JSON types from process 0; all processes call it."""
    if count() == 1:
        return tree
    send = multihost_utils.broadcast_one_to_all
    text = np.frombuffer(json.dumps(tree).encode(), np.uint8) if first() else None
    size = int(send(np.int32(0 if text is None else len(text))))
    return json.loads(
        send(np.zeros(size, np.uint8) if text is None else text).tobytes()
    )


def state_from_first(state: Any) -> Any:
    """Broadcasts the arrays of process 0; other processes pass arrays of equal shapes.

    Large arrays are sent in pieces: each device holds a whole piece for a moment.
    """
    if count() == 1:
        return state
    send = multihost_utils.broadcast_one_to_all
    leaves, tree = jax.tree.flatten(jax.device_get(state))
    large = [i for i, leaf in enumerate(leaves) if leaf.nbytes > PIECE_BYTES]
    received = dict(enumerate(leaves))
    received |= send({i: leaf for i, leaf in received.items() if i not in large})
    for i in large:
        pieces = np.array_split(leaves[i], -(-leaves[i].nbytes // PIECE_BYTES))
        received[i] = np.concatenate([send(piece) for piece in pieces])
    return tree.unflatten(received[i] for i in range(len(leaves)))


def gathered(values: np.ndarray) -> np.ndarray:
    """[N, ...] of each process, N equal in all -> [processes * N, ...], in order."""
    if count() == 1:
        return values
    return multihost_utils.process_allgather(values, tiled=True)


def share(rows: int) -> tuple[int, int]:
    """The range [start, stop) of the rows that this process evaluates.

    Ranges are adjacent and of equal length, except the last ones. An empty range is
    replaced by the last row, since every process needs a row.
    """
    each = -(-rows // count())
    return min(index() * each, rows - 1), min((index() + 1) * each, rows)
