"""Stores the checkpoints and results of a group of runs.

A solo run stores both series, last and best, in its folder. A sweep stores one series,
with the current and the best states of all runs, in the sweep's folder: one write for
many small runs. When it ends, each run gets its best checkpoint and its result.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np

from pwiser_jax.atomic import write_whole
from pwiser_jax.config import Config
from pwiser_jax.errors import UserError
from pwiser_jax.training.devices import processes
from pwiser_jax.training.devices.stack import stack, unstack
from pwiser_jax.training.objective import Objective
from pwiser_jax.training.run.checkpoint import Checkpoints
from pwiser_jax.training.run.folder import RESULT, write_json
from pwiser_jax.training.run.record import Progress, result

FAILURE = "failure.txt"


class Store(Protocol):
    """Stores the checkpoints and results of a group of runs."""

    def restore(
        self, template: Any, warn: Callable[[str], None]
    ) -> tuple[Any, dict[str, Any]] | None:
        """The states and the loop's tree of the newest checkpoint, if there is any."""
        ...

    def is_finished(self, output: Path) -> bool:
        """Whether a run already has a result."""
        ...

    def save(
        self, step: int, state: Any, tree: dict[str, Any], better: Sequence[int]
    ) -> None:
        """Writes a checkpoint; `better` lists the runs with a new best state."""
        ...

    def finish(
        self,
        configs: Sequence[Config],
        outputs: Sequence[Path],
        progress: Sequence[Progress],
        objectives: Sequence[Objective],
    ) -> None:
        """Writes the results of the runs."""
        ...

    def close(self) -> None: ...


class RunStore:
    """The store of a solo run, in its folder."""

    def __init__(self, output: Path) -> None:
        self._last, self._best = (
            Checkpoints(output, "last"),
            Checkpoints(output, "best"),
        )

    def restore(
        self, template: Any, warn: Callable[[str], None]
    ) -> tuple[Any, dict[str, Any]] | None:
        return self._last.restore(template, warn)

    def is_finished(self, output: Path) -> bool:
        return False

    def save(
        self, step: int, state: Any, tree: dict[str, Any], better: Sequence[int]
    ) -> None:
        # The best first: the tree of the last refers to it.
        for series in (self._best, self._last) if better else (self._last,):
            series.save(step, state, tree)

    def finish(
        self,
        configs: Sequence[Config],
        outputs: Sequence[Path],
        progress: Sequence[Progress],
        objectives: Sequence[Objective],
    ) -> None:
        (config,), (output,), (ended,) = configs, outputs, progress
        if ended.failure:
            step = self._last.newest()
            kept = "there is no checkpoint yet"
            if step is not None:
                kept = f"the checkpoint at step {step} stays"
            raise UserError(f"{ended.failure}; {kept}")
        if processes.first():
            write_json(output / RESULT, result(config, ended).to_dict())

    def close(self) -> None:
        self._last.close()
        self._best.close()


class SweepStore:
    """The store of a sweep of `runs` runs, in the folder `home`."""

    def __init__(self, home: Path, runs: int) -> None:
        self._home, self._runs = home, runs
        self._last = Checkpoints(home, "last")
        self._best: list[Any] = []

    def restore(
        self, template: Any, warn: Callable[[str], None]
    ) -> tuple[Any, dict[str, Any]] | None:
        restored = self._last.restore((template, template), warn)
        if restored is None:
            zeros = jax.tree.map(lambda x: np.zeros(x.shape[1:], x.dtype), template)
            self._best = [zeros] * self._runs
            return None
        (states, best), tree = restored
        self._best = unstack(best, self._runs)
        return states, tree

    def is_finished(self, output: Path) -> bool:
        return (output / RESULT).exists()

    def save(
        self, step: int, state: Any, tree: dict[str, Any], better: Sequence[int]
    ) -> None:
        for run in better:
            self._best[run] = jax.tree.map(lambda x, i=run: np.array(x[i]), state)
        self._last.save(step, (state, stack(self._best)), tree)

    def finish(
        self,
        configs: Sequence[Config],
        outputs: Sequence[Path],
        progress: Sequence[Progress],
        objectives: Sequence[Objective],
    ) -> None:
        for run, (output, ended) in enumerate(zip(outputs, progress, strict=True)):
            if ended.failure:
                write_whole(output / FAILURE, ended.failure + "\n")
                continue
            if self.is_finished(output):
                continue
            best, ranked = self._best[run], objectives[run].ranked
            banks = {name: bank for name, bank in best.banks.items() if name in ranked}
            checkpoints = Checkpoints(output, "best")
            try:
                tree = {"runs": [asdict(ended)]}
                checkpoints.save(ended.best_step, best._replace(banks=banks), tree)
            finally:
                checkpoints.close()
            write_json(output / RESULT, result(configs[run], ended).to_dict())
        shutil.rmtree(self._home)
        if not any(self._home.parent.iterdir()):
            self._home.parent.rmdir()

    def close(self) -> None:
        self._last.close()
