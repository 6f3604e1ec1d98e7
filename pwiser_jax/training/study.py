"""A study: many runs, split into parts of one shape that train together.

The split is stored beside the runs when the study starts. The same command later, on
one machine or on a cluster, trains the same programs.
"""

import json
import os
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pwiser_jax.atomic import write_whole
from pwiser_jax.config import Config
from pwiser_jax.errors import UserError
from pwiser_jax.host import free_programs
from pwiser_jax.training.loop import open_data, train
from pwiser_jax.training.run.folder import writing
from pwiser_jax.training.run.progress import Reporter
from pwiser_jax.training.sweep import RunsFailed, most_runs, sweep_key, train_sweep

PLAN = ".plan.json"


def planned(
    runs: Mapping[Path, Config],
    output: Path,
    size: int | None = None,
    slots: int = 1,
    gpus: int | None = None,
) -> list[list[Path]]:
    """The parts of a study; those that are stored stay as they are.

    Runs that have no part yet get new ones, which are stored too. A stored part that
    holds other runs as well, or is not of one shape any more, is split anew.

    Args:
        runs: the configuration of each run, by its folder in `output`.
        output: the study's folder.
        size: at most so many runs in a new part; None: as many as fit into memory, but
            enough parts for all slots.
        slots: how many parts train at the same time.
        gpus: of each part, where they are chosen; the study keeps them.
    Returns:
        The folders of the runs of each part.
    Raises:
        UserError: the stored plan is damaged or for other GPUs, there are no data, or
            the plan cannot be written.
    """
    plan = _stored(output / PLAN)
    before = plan["gpus_per_part"]
    if before is not None and gpus not in (None, before):
        raise UserError(
            f"{output} holds a study whose parts have {before} GPUs each, not {gpus}: "
            f"give --gpus-per-part {before}, or name another --output"
        )
    stored = [[output / name for name in part] for part in plan["parts"]]
    stored = [part for part in stored if _is_whole(part, runs)]
    placed = {folder for part in stored for folder in part}
    new = [folder for folder in runs if folder not in placed]
    groups: dict[str, list[Path]] = {}
    for folder in new:
        groups.setdefault(sweep_key(runs[folder]), []).append(folder)
    parts: list[list[Path]] = []
    for folders in groups.values():
        config = runs[folders[0]]
        most = most_runs(config, open_data(config).schema)
        if size is None:
            most = min(most, -(-len(new) // slots))
        elif size > most:
            raise UserError(f"--part-size is {size}; at most {most} of these runs fit")
        else:
            most = size
        if config.optimizer.shard_tables:  # such a run takes all devices
            most = 1
        # Parts of equal size, not full ones and a remainder.
        count = -(-len(folders) // most)
        ends = [len(folders) * i // count for i in range(count + 1)]
        parts += [folders[start:end] for start, end in pairwise(ends)]
    # The largest first, so that the last part does not train alone for long.
    parts = stored + sorted(parts, key=len, reverse=True)
    names = [[os.path.relpath(folder, output) for folder in part] for part in parts]
    plan = {"gpus_per_part": before if gpus is None else gpus, "parts": names}
    with writing(output):
        write_whole(output / PLAN, json.dumps(plan, indent=1) + "\n")
    return parts


def _stored(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {"gpus_per_part": None, "parts": []}
    try:
        plan = json.loads(path.read_text(encoding="utf-8"))
        gpus, parts = plan["gpus_per_part"], plan["parts"]
        return {"gpus_per_part": gpus, "parts": [[*map(str, part)] for part in parts]}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"{path} is damaged: remove it, and the runs that are not finished are "
            "split anew"
        ) from error


def _is_whole(part: list[Path], runs: Mapping[Path, Config]) -> bool:
    return set(part) <= set(runs) and len({sweep_key(runs[f]) for f in part}) == 1


def train_part(
    configs: Sequence[Config],
    folders: Sequence[Path],
    reporter: Reporter,
    logger: str = "tensorboard",
) -> dict[Path, str]:
    """Trains the runs of a part, or resumes them.

    Returns:
        The sentence of each run that failed, by its folder; all others are finished.
    Raises:
        UserError, Interrupted: as `train_sweep`.
    """
    free_programs()  # of the part before
    if configs[0].optimizer.shard_tables:
        train(configs[0], folders[0], reporter, logger=logger)
        return {}
    try:
        train_sweep(configs, folders, reporter, logger=logger)
    except RunsFailed as error:
        return error.failures
    return {}
