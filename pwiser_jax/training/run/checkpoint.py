"""Checkpoints through orbax; no other module imports it.

A run folder holds two series: `checkpoints/last`, the newest two, to resume from, and
`checkpoints/best`, the newest two of those with the best validation AUC so far. A
checkpoint is the train state (parameters, batch statistics, optimizer, bank, step), a
small JSON tree of the loop (position, early stopping), and a checksum of both. There is
no random state: randomness depends on the seed and the step only. Orbax writes into a
temporary folder and renames it: a kill leaves only complete checkpoints.
"""

import asyncio
import hashlib
import json
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pwiser_jax.errors import UserError
from pwiser_jax.training.devices import processes

# Orbax's decorator hides the fields of these dataclasses from type checkers.
ARGS: Any = ocp.args

# Two of each: if one is damaged, the one before it is used.
KEPT = {"last": 2, "best": 2}


class Checkpoints:
    """One series of checkpoints of a run: "last" or "best".

    With several processes only process 0 reads and writes. (orbax's newer interface,
    v1, needs all of them in every save, even of arrays that one process holds.)
    """

    def __init__(self, run: Path, series: str) -> None:
        self._folder = run / "checkpoints" / series
        if not processes.first():
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        alone = ocp.options.MultiprocessingOptions(
            primary_host=0, active_processes={0}, barrier_sync_key_prefix=series
        )
        arrays = ocp.type_handlers.create_type_handler_registry(
            (np.ndarray, _WaitsForEach()),
            (np.number, ocp.type_handlers.ScalarHandler()),
            (jax.Array, ocp.type_handlers.ArrayHandler()),
        )
        self._links = ExitStack()
        self._manager = ocp.CheckpointManager(
            self._links.enter_context(_literal(self._folder.resolve())),
            item_handlers={
                "state": ocp.PyTreeCheckpointHandler(
                    type_handler_registry=arrays, multiprocessing_options=alone
                ),
                "loop": ocp.JsonCheckpointHandler(multiprocessing_options=alone),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=KEPT[series],
                create=False,
                cleanup_tmp_directories=True,
                enable_async_checkpointing=False,
                multiprocessing_options=alone,
            ),
        )

    def save(self, step: int, state: Any, loop: dict[str, Any]) -> None:
        """Writes `state` and the loop's tree; returns when both are on disk.

        Raises:
            UserError: they cannot be written.
        """
        if not processes.first():
            return
        loop = {"loop": loop, "sha256": checksum(state, loop)}
        parts = ARGS.Composite(
            state=ARGS.PyTreeSave(state),
            loop=ARGS.JsonSave(loop),
        )
        try:
            if step in self._manager.all_steps():
                self._manager.delete(step)
            self._manager.save(step, args=parts, force=True)
        except Exception as error:  # orbax raises many kinds
            raise UserError(
                f"the checkpoint {self._folder / str(step)} cannot be written: "
                f"{_reason(error)}"
            ) from error

    def restore(
        self, template: Any, warn: Callable[[str], None]
    ) -> tuple[Any, dict[str, Any]] | None:
        """Reads the newest intact checkpoint as (state, loop's tree); None without one.

        A damaged checkpoint is skipped with a warning. All processes return what
        process 0 has read.

        Raises:
            UserError: checkpoints exist, and none can be read.
        """
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        restored = self._read(zeros, warn) if processes.first() else None
        loop = processes.from_first(restored and restored[1])
        if loop is None:
            return None
        return processes.state_from_first(restored[0] if restored else zeros), loop

    def newest(self) -> int | None:
        """The step of the newest checkpoint, damaged or not."""
        steps = self._steps() if processes.first() else []
        return processes.from_first(max(steps, default=None))

    def _steps(self) -> list[int]:
        # From the folder's names, not from orbax's list: that opens each checkpoint's
        # metadata, and one damaged file would hide the good ones.
        return [int(p.name) for p in self._folder.iterdir() if p.name.isdigit()]

    def _read(
        self, template: Any, warn: Callable[[str], None]
    ) -> tuple[Any, dict[str, Any]] | None:
        steps = sorted(self._steps(), reverse=True)
        parts = ARGS.Composite(
            state=ARGS.PyTreeRestore(
                template,
                restore_args=ocp.checkpoint_utils.construct_restore_args(template),
            ),
            loop=ARGS.JsonRestore(),
        )
        for step in steps:
            try:
                restored = self._manager.restore(step, args=parts)
                state, loop = restored["state"], restored["loop"]
                if not isinstance(loop, dict) or "sha256" not in loop:
                    raise ValueError("its metadata is missing")
                if loop["sha256"] != checksum(state, loop["loop"]):
                    raise ValueError("its checksum does not match")
            except Exception as error:  # orbax raises many types on damage
                path = self._folder / str(step)
                warn(
                    f"the checkpoint {path} is damaged or of another version: "
                    f"{_reason(error)}"
                )
                continue
            return state, loop["loop"]
        if steps:
            raise UserError(f"no checkpoint in {self._folder} can be read")
        return None

    def close(self) -> None:
        if processes.first():
            self._manager.close()
            self._links.close()


def checksum(state: Any, loop: dict[str, Any]) -> str:
    """A hash of all arrays of a state and of the loop's tree."""
    digest = hashlib.sha256(json.dumps(loop, sort_keys=True).encode())
    for path, leaf in jax.tree.leaves_with_path(state):
        array = np.ascontiguousarray(leaf)
        name = f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}"
        digest.update(name.encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


@contextmanager
def _literal(folder: Path) -> Iterator[Path]:
    """A path to the folder without `*`, `?` and `[`.

    Orbax looks for files by a glob of the whole path: in a run folder `lr=[0.1]` it
    finds nothing, and in `run*` those of `run1` too.
    """
    if not set("*?[") & set(str(folder)):
        yield folder
        return
    with TemporaryDirectory(prefix="pwiser-") as place:
        link = Path(place) / folder.name
        link.symlink_to(folder)
        yield link


class BackgroundSaves:
    """Saves checkpoints in a thread, one at a time, while training continues.

    Orbax's asynchronous saves cannot replace it. Each orbax manager has its own queue,
    but the best checkpoint must be on disk before the last one, which refers to it.
    Orbax also does not tell the last step on disk.

    Args:
        finished: step of the last checkpoint on disk.
    """

    def __init__(self, finished: int) -> None:
        self.finished = finished
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: tuple[int, Future[None]] | None = None

    def begin(self, step: int, state: Any, write: Callable[[Any], None]) -> None:
        """Begins write(state) in the thread; returns once `state` is copied.

        Raises:
            UserError: the save before this one failed.
        """
        self.wait()
        # A copy: the next step donates the buffers of `state`. Arrays in host memory
        # must not be changed.
        host = jax.tree.map(
            lambda leaf, got: np.array(got) if isinstance(leaf, jax.Array) else got,
            state,
            jax.device_get(state),
        )
        self._job = step, self._pool.submit(write, host)

    def in_flight(self) -> bool:
        """Whether a save is being written. Raises as `wait`."""
        if self._job is not None and self._job[1].done():
            self.wait()
        return self._job is not None

    def wait(self) -> None:
        """Waits until the save in flight, if any, is on disk.

        Raises:
            UserError: it cannot be written.
        """
        if self._job is not None:
            (step, future), self._job = self._job, None
            future.result()
            self.finished = step

    def close(self) -> None:
        """Waits and ignores errors; for cleanup."""
        self._pool.shutdown()


class _WaitsForEach(ocp.type_handlers.NumpyHandler):
    """Waits for every array, then raises the first error.

    Orbax stops at the first array that cannot be read or written; the others then fail
    on a closed event loop, and Python prints each of these errors.
    """

    async def _background_serialize(
        self,
        values: Sequence[np.ndarray],
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.SaveArgs] | None = None,
    ) -> None:
        each = args or [ocp.SaveArgs()] * len(infos)
        write = super()._background_serialize
        await _all(
            write([value], [info], [arg])
            for value, info, arg in zip(values, infos, each, strict=True)
        )

    async def deserialize(
        self,
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.RestoreArgs] | None = None,
    ) -> Sequence[np.ndarray]:
        each = args or [ocp.RestoreArgs()] * len(infos)
        read = super().deserialize
        arrays = await _all(
            read([info], [arg]) for info, arg in zip(infos, each, strict=True)
        )
        return [array for (array,) in arrays]


async def _all(tasks: Iterable[Awaitable[Any]]) -> list[Any]:
    """Awaits all tasks, then raises the first error."""
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def _not_from_orbax(record: logging.LogRecord) -> bool:
    return "orbax" not in record.pathname


# Orbax's threads log, with tracebacks, the errors that it also raises.
logging.getLogger("absl").addFilter(_not_from_orbax)


def _reason(error: Exception) -> str:
    """The cause only, without tensorstore's descriptions."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    of_system = re.search(r"([^:]*) \[os_error_code=", line)
    return (
        of_system[1].strip() if of_system else line.partition(" [tensorstore_spec")[0]
    )
