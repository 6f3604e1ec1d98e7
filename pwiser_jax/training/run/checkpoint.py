"""Checkpoints through orbax; no other module knows it.

A run folder holds two series: `checkpoints/last`, the newest two, to go on from, and
`checkpoints/best`, the one with the best validation AUC. A checkpoint is the train
state (parameters, batch statistics, optimizer, bank, step) and a small JSON tree of the
loop's own state (position, early stopping). There is no random state: what is random
in a step depends on the seed and the step alone. Orbax writes into a temporary folder
and renames it: a kill leaves whole checkpoints only.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from pwiser_jax.errors import UserError
from pwiser_jax.training.devices import processes

KEPT = {"last": 2, "best": 1}


class Checkpoints:
    """One series of checkpoints of a run: "last" or "best".

    Of several processes the first alone reads and writes. (orbax's newer interface, v1,
    wants all of them in every save, even of arrays that one process has.)
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
        self._manager = ocp.CheckpointManager(
            self._folder.resolve(),
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
        """Writes `state` and the loop's state; returns when both are on disk.

        Raises:
            UserError: they cannot be written.
        """
        if not processes.first():
            return
        parts = ocp.args.Composite(
            state=ocp.args.PyTreeSave(state),  # pyright: ignore[reportCallIssue]
            loop=ocp.args.JsonSave(loop),  # pyright: ignore[reportCallIssue]
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
        """The newest whole checkpoint as (state, loop's state); None if there is none.

        A checkpoint that cannot be read is skipped for the one before it, with a
        warning. All processes get what the first has read.

        Raises:
            UserError: there are checkpoints, and none can be read.
        """
        zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), template)
        found = self._read(zeros, warn) if processes.first() else None
        loop = processes.from_first(found and found[1])
        if loop is None:
            return None
        return processes.state_from_first(found[0] if found else zeros), loop

    def _read(
        self, template: Any, warn: Callable[[str], None]
    ) -> tuple[Any, dict[str, Any]] | None:
        # From the folder's names, not from orbax's list: reading that list opens each
        # checkpoint's metadata, and one damaged file would hide the good ones.
        steps = sorted(
            (int(path.name) for path in self._folder.iterdir() if path.name.isdigit()),
            reverse=True,
        )
        parts = ocp.args.Composite(
            state=ocp.args.PyTreeRestore(  # pyright: ignore[reportCallIssue]
                template,
                restore_args=ocp.checkpoint_utils.construct_restore_args(template),
            ),
            loop=ocp.args.JsonRestore(),
        )
        for step in steps:
            try:
                found = self._manager.restore(step, args=parts)
                state, loop = found["state"], found["loop"]
                if not isinstance(loop, dict):
                    raise ValueError("its metadata is missing")
            except Exception as error:  # orbax raises many kinds on damage
                path = self._folder / str(step)
                warn(
                    f"the checkpoint {path} is damaged or of another version: "
                    f"{_reason(error)}"
                )
                continue
            return state, loop
        if steps:
            raise UserError(f"no checkpoint in {self._folder} can be read")
        return None

    def close(self) -> None:
        if processes.first():
            self._manager.close()


class BackgroundSaves:
    """Saves in a thread, one at a time, while training goes on.

    Args:
        finished: the step up to which work is on disk.
    """

    def __init__(self, finished: int) -> None:
        self.finished = finished
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._job: tuple[int, Future[None]] | None = None

    def save(
        self, step: int, state: Any, loop: dict[str, Any], *series: Checkpoints
    ) -> None:
        """Begins a save into each series in turn; returns once `state` is copied.

        Raises:
            UserError: the save before this one failed.
        """
        self.wait()
        # A copy: the next step gives the buffers of `state` away. Arrays in host memory
        # are the caller's word that nothing changes them.
        host = jax.tree.map(
            lambda leaf, got: np.array(got) if isinstance(leaf, jax.Array) else got,
            state,
            jax.device_get(state),
        )

        def write() -> None:
            for checkpoints in series:
                checkpoints.save(step, host, loop)

        self._job = step, self._pool.submit(write)

    def in_flight(self) -> bool:
        """Whether a save has still to be waited for. Raises as `wait`."""
        if self._job is not None and self._job[1].done():
            self.wait()
        return self._job is not None

    def wait(self) -> None:
        """Until the save in flight, if any, is on disk.

        Raises:
            UserError: it cannot be written.
        """
        if self._job is not None:
            (step, future), self._job = self._job, None
            future.result()
            self.finished = step

    def close(self) -> None:
        """As `wait`, without a word of how it went: for the end after an error."""
        self._pool.shutdown()


class _WaitsForEach(ocp.type_handlers.NumpyHandler):
    """Reads every array to its end, then raises the first error.

    Left alone, orbax gives up with the first array that cannot be read, and what the
    others' reads then tell, to an event loop that is closed, Python prints.
    """

    async def deserialize(
        self,
        infos: Sequence[ocp.type_handlers.ParamInfo],
        args: Sequence[ocp.RestoreArgs] | None = None,
    ) -> Sequence[np.ndarray]:
        each = args or [ocp.RestoreArgs()] * len(infos)
        read = super().deserialize
        results = await asyncio.gather(
            *(read([info], [arg]) for info, arg in zip(infos, each, strict=True)),
            return_exceptions=True,
        )
        arrays: list[np.ndarray] = []
        for result in results:
            if isinstance(result, BaseException):
                raise result
            arrays.extend(result)
        return arrays


def _reason(error: Exception) -> str:
    """The first line of what an error says, without tensorstore's description."""
    line = next(iter(str(error).strip().splitlines()), type(error).__name__)
    return line.partition(" [tensorstore_spec")[0]
