"""Many processes, on one host or on many: how they meet, agree and end.

Each process runs the same program on its own devices. jax's distributed runtime joins
them; what one has to tell the others outside of a step goes through the key-value store
of that runtime. Alone, a process agrees with itself at no cost.
"""

import json
import os
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from pwiser_jax.errors import UserError
from pwiser_jax.training.devices.signals import Interrupted

CONNECT_SECONDS = 120
HEARTBEAT_SECONDS = 60
# How often a process looks whether another has told an error, and how long one that has
# lost the others waits for the reason.
LOOK_SECONDS = 0.5
REASON_SECONDS = 3.0
# What of a large array processes tell each other at a time.
PIECE_BYTES = 64 * 2**20
FAILED = "pwiser/failed"


def index() -> int:
    return jax.process_index()


def count() -> int:
    return jax.process_count()


def first() -> bool:
    """Whether this process is the one that writes."""
    return index() == 0


@contextmanager
def joined(
    coordinator: str | None, processes: int | None, process: int | None
) -> Iterator[None]:
    """Within the context this process is one of several. Comes before any use of jax.

    An error in one of them ends all of them, with its sentence and its exit code; where
    a process is lost without a word, the others say so and end with exit code 1.

    Args:
        coordinator: HOST:PORT of process 0; None: what the cluster's environment says.
        processes: how many there are; None as above.
        process: which one this is, from 0 on; None as above.
    Raises:
        UserError: there is no such cluster, or it cannot be reached.
    """
    _connect(coordinator, processes, process)
    stop = threading.Event()
    watch = threading.Thread(target=_watch, args=(stop,), name="watch", daemon=True)
    watch.start()
    try:
        yield
    except (Interrupted, SystemExit):
        raise
    except UserError as error:
        _fail(str(error), 2)
    except jax.errors.JaxRuntimeError as error:
        # A collective whose partner has gone, mostly: the partner may have told why.
        time.sleep(REASON_SECONDS)
        reason = str(error).partition("\n")[0]
        _fail(f"another process was lost, or jax failed ({reason})", 1)
    except BaseException as error:
        traceback.print_exc()
        _fail(f"{type(error).__name__}: {error}", 1)
    finally:
        stop.set()
        watch.join()


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


def _client() -> Any:
    from jax._src import distributed  # the only way to the key-value store

    return distributed.global_state.client


def _watch(stop: threading.Event) -> None:
    """Ends this process when another has told an error: a collective that waits for the
    other cannot be left in any other way."""
    while not stop.wait(LOOK_SECONDS):
        try:
            told = _client().key_value_try_get(FAILED)
        except jax.errors.JaxRuntimeError:  # nothing is told
            continue
        code, _, sentence = told.partition(" ")
        _end(sentence, int(code))


def _fail(sentence: str, code: int) -> NoReturn:
    """Tells the others, and ends."""
    # Where another was faster, or all are gone, nothing is left to tell.
    with suppress(jax.errors.JaxRuntimeError):
        _client().key_value_set(FAILED, f"{code} process {index()}: {sentence}")
    _end(sentence, code)


_ending = threading.Lock()


def _end(sentence: str, code: int) -> NoReturn:
    """Ends this process without the barrier that jax would wait at."""
    _ending.acquire()  # for good: of two threads with a sentence the second says none
    print(f"pwiser: error: {sentence}", file=sys.stderr, flush=True)
    if first():
        # The store lives in the first process: the others may still have to read it.
        time.sleep(REASON_SECONDS)
    os._exit(code)


def from_first(tree: Any) -> Any:
    """A tree of JSON's types as the first process has it. Called by all, in turn."""
    if count() == 1:
        return tree
    send = multihost_utils.broadcast_one_to_all
    text = np.frombuffer(json.dumps(tree).encode(), np.uint8) if first() else None
    size = int(send(np.int32(0 if text is None else len(text))))
    return json.loads(
        send(np.zeros(size, np.uint8) if text is None else text).tobytes()
    )


def state_from_first(state: Any) -> Any:
    """Arrays as the first process has them; those of the others count by shape.

    Large ones come in pieces, for on its way a piece is on each device whole.
    """
    if count() == 1:
        return state
    send = multihost_utils.broadcast_one_to_all
    leaves, tree = jax.tree.flatten(jax.device_get(state))
    large = [i for i, leaf in enumerate(leaves) if leaf.nbytes > PIECE_BYTES]
    found = dict(enumerate(leaves))
    found |= send({i: leaf for i, leaf in found.items() if i not in large})
    for i in large:
        pieces = np.array_split(leaves[i], -(-leaves[i].nbytes // PIECE_BYTES))
        found[i] = np.concatenate([send(piece) for piece in pieces])
    return tree.unflatten(found[i] for i in range(len(leaves)))


def gathered(values: np.ndarray) -> np.ndarray:
    """[N, ...] of each process, N the same in all -> [processes * N, ...] in order."""
    if count() == 1:
        return values
    return multihost_utils.process_allgather(values, tiled=True)


def share(rows: int) -> tuple[int, int]:
    """The range start .. stop of `rows` rows that is this process's to look at.

    Ranges are side by side and of one length, but for the last ones; one that would be
    empty is the last row once more, for its process to have something at all.
    """
    each = -(-rows // count())
    return min(index() * each, rows - 1), min((index() + 1) * each, rows)
