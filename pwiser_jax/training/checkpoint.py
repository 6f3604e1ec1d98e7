"""Checkpoints through orbax; no other module knows it.

A run folder holds two series: `checkpoints/last`, the newest two, to go on from, and
`checkpoints/best`, the one with the best validation AUC. A checkpoint is the train
state and a small JSON tree of the loop's own state (position, early stopping). Orbax
writes into a temporary folder and renames it: a kill leaves whole checkpoints only.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from pwiser_jax.errors import UserError

KEPT = {"last": 2, "best": 1}


class Checkpoints:
    """One series of checkpoints of a run: "last" or "best"."""

    def __init__(self, run: Path, series: str) -> None:
        newest = ocp.training.preservation_policies.LatestN
        self._folder = run / "checkpoints" / series
        self._checkpointer = ocp.training.Checkpointer(
            str(self._folder.resolve()),
            preservation_policy=newest(KEPT[series]),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )

    def save(self, step: int, state: Any, loop: dict[str, Any]) -> None:
        """Writes `state` and the loop's state; returns when both are on disk."""
        # A copy: the next step gives the buffers of `state` away.
        host = jax.tree.map(np.array, jax.device_get(state))
        self._checkpointer.save(
            step, host, custom_metadata=loop, force=True, overwrite=True
        )

    def restore(
        self, template: Any, warn: Callable[[str], None]
    ) -> tuple[Any, dict[str, Any]] | None:
        """The newest whole checkpoint as (state, loop's state); None if there is none.

        A checkpoint that cannot be read is skipped for the one before it, with a
        warning.

        Raises:
            UserError: there are checkpoints, and none can be read.
        """
        device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        abstract = jax.tree.map(
            lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
            template,
        )
        # From the folder's names, not from orbax's list: reading that list opens each
        # checkpoint's metadata, and one damaged file would hide the good ones.
        steps = sorted(
            (int(path.name) for path in self._folder.iterdir() if path.name.isdigit()),
            reverse=True,
        )
        for step in steps:
            try:
                state = self._checkpointer.load(step, abstract)
                loop = self._checkpointer.metadata(step).custom_metadata
                if not isinstance(loop, dict):
                    raise ValueError("its metadata is missing")
            except Exception as error:  # orbax raises many kinds on damage
                reason = (
                    str(error).strip().splitlines()[0] if str(error).strip() else ""
                )
                warn(f"the checkpoint {self._folder / str(step)} is damaged: {reason}")
                continue
            return state, loop
        if steps:
            raise UserError(f"no checkpoint in {self._folder} can be read")
        return None

    def close(self) -> None:
        self._checkpointer.close()
