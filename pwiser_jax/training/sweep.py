"""Many runs at once: runs of one shape in one program over shared batches.

Each run equals its solo run (`loop.train`) up to the rounding of two programs: it has
the same initial weights, order of the rows, dropout and early stopping, and its folder
ends up with the same files, except `checkpoints/last`.

A sweep in progress keeps its checkpoints in `.sweeps/NAME` beside the first run's
folder, and resumes from them; the folder is deleted when the sweep is over.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax

from pwiser_jax.atomic import write_whole
from pwiser_jax.config import Config, LossConfig
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.errors import UserError
from pwiser_jax.schema import Schema
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices.stacked import Stacked
from pwiser_jax.training.loop import (
    epoch_steps,
    group_notes,
    open_data,
    split_rows,
    train_runs,
)
from pwiser_jax.training.run.folder import (
    CONFIG,
    RESULT,
    check_run,
    config_hash,
    opened,
    read_result,
)
from pwiser_jax.training.run.loggers import check_logger
from pwiser_jax.training.run.progress import Reporter, Silent
from pwiser_jax.training.run.record import TrainResult
from pwiser_jax.training.run.store import FAILURE, SweepStore
from pwiser_jax.training.run.trace import Trace
from pwiser_jax.training.runs import Runs
from pwiser_jax.training.state import state_template
from pwiser_jax.training.warm_start import check_warm_start

SWEEPS = ".sweeps"
MEMBERS = "sweep.json"

# Options that are traced, besides lambdas and margins.
TRACED = (
    "constraint_weight",
    "ctcvr_weight",
    "cvr_weight",
    "focal_gamma",
    "propensity_floor",
    "ranknet_margin",
)
# And those whose default leaves a part out of the program, with another value.
OPTIONAL: dict[str, Any] = {
    "conversion_weight": 2.0,
    "focal_alpha": 0.5,
    "lambda_ramp_steps": 1,
    "margin_ramp_steps": 1,
}

# Maximum number of runs in a sweep: more gain nothing on a CPU, and a kill would cost
# more. Memory holds each state several times: in use, the best, and a copy of both for
# a checkpoint.
MOST_RUNS = 16
STATE_COPIES = 4
STATE_BYTES = 4 * 2**30


class RunsFailed(UserError):
    """Some runs of a sweep failed; all others are finished.

    Attributes:
        failures: the sentence of each by its folder.
    """

    def __init__(self, failures: dict[Path, str], runs: int) -> None:
        each = "; ".join(f"{folder}: {text}" for folder, text in failures.items())
        super().__init__(
            f"{len(failures)} of {runs} runs failed, the others are finished: {each}"
        )
        self.failures = failures


def sweep_key(config: Config) -> str:
    """The options that runs of one sweep share; equal for configs of one sweep.

    Seed, learning rate, L2, lambdas, margins, terms left out and the options in TRACED
    may differ; wide_l2 among runs that set it; those in OPTIONAL among runs in which
    none is at its default. With a bank margins may not differ.
    """
    loss = config.loss
    numbers = {name: getattr(LossConfig, name) for name in TRACED}
    numbers |= {name: OPTIONAL[name] for name in loss.changed() if name in OPTIONAL}
    margins = loss.margins if loss.bank else None
    wide_l2 = None if config.optimizer.wide_l2 is None else 0.0
    common = replace(
        config,
        loss=replace(loss, lambdas=0.0, margins=margins, **numbers),
        optimizer=replace(config.optimizer, learning_rate=1.0, l2=0.0, wide_l2=wide_l2),
        train=replace(config.train, seed=0),
    )
    return f"{config_hash(common)} {config.data.path}"


def most_runs(config: Config, schema: Schema) -> int:
    """Recommended number of runs of a configuration in one sweep."""
    size = state_bytes(config, schema)
    return max(1, min(MOST_RUNS, STATE_BYTES // (STATE_COPIES * size)))


def state_bytes(config: Config, schema: Schema) -> int:
    """Size of a run's state."""
    leaves = jax.tree.leaves(state_template(config, schema))
    return sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)


def sweeps_in_progress(parent: Path) -> dict[Path, list[Path]]:
    """The run folders of each interrupted sweep beside `parent`'s runs. Such a sweep
    resumes if `train_sweep` gets all of its runs. Keys are the sweeps' own folders.
    """
    return {
        path.parent: [
            Path(os.path.normpath(parent / name))
            for name in json.loads(path.read_text())
        ]
        for path in sorted((parent / SWEEPS).glob(f"*/{MEMBERS}"))
    }


def train_sweep(
    configs: Sequence[Config],
    outputs: Sequence[Path],
    reporter: Reporter | None = None,
    *,
    stop_after: int | None = None,
    logger: str = "tensorboard",
) -> list[TrainResult]:
    """Trains runs of one `sweep_key` together, or resumes them.

    jax's configuration stays as it is; see `train`.

    Args:
        configs: one a run.
        outputs: the runs' folders; finished runs among them are left as they are.
        reporter: receives steps (a step of all runs is one), epochs and lines; None:
            nothing is shown.
        stop_after: stops this call after so many steps, with a checkpoint.
        logger: gets the metrics: "tensorboard", "mlflow" or "wandb".
    Returns:
        What result.json of each run holds.
    Raises:
        ValueError: the configs do not share a sweep, or a folder is named twice.
        UserError: the data, a configuration or a folder do not fit, large tables are to
            be sharded, or another process trains in one of the folders.
        RunsFailed: the loss of some runs was not finite; each stopped alone there, with
            the sentence in its failure.txt.
        Interrupted: stopped by a signal or `stop_after`, after saving.
    """
    reporter = reporter or Silent()
    check_logger(logger)
    outputs = [Path(os.path.normpath(output)) for output in outputs]
    if len({sweep_key(config) for config in configs}) != 1:
        raise ValueError("the configs do not share a sweep_key")
    if len(set(outputs)) != len(configs) or len(outputs) != len(configs):
        raise ValueError("each config needs its own folder")
    if configs[0].optimizer.shard_tables:
        raise UserError(
            "optimizer.shard_tables: the runs of a sweep are whole on a device each; "
            "leave it out, or train such runs one by one"
        )
    prepared, data = open_data(configs[0]), Path(configs[0].data.path)
    by_folder = dict(zip(outputs, configs, strict=True))
    finished = [check_run(output, by_folder[output], data) for output in outputs]
    if not all(finished):
        if not all((output / CONFIG).is_file() for output in outputs):
            check_warm_start(configs[0])
        with ExitStack() as locks:
            # In one order, so that of two sweeps with the same runs one gets them all.
            # The sweep's own folder needs no lock: whoever holds its runs owns it.
            for output in sorted(outputs):
                locks.enter_context(opened(output, by_folder[output], data))
            _train(by_folder, prepared, reporter, stop_after, logger)
    failures = {
        folder: (folder / FAILURE).read_text().strip()
        for folder in outputs
        if not (folder / RESULT).exists()
    }
    if failures:
        raise RunsFailed(failures, len(outputs))
    return [read_result(folder) for folder in outputs]


def _train(
    configs: Mapping[Path, Config],
    prepared: Prepared,
    reporter: Reporter,
    stop_after: int | None,
    logger: str,
) -> None:
    """Trains the runs that are not finished, by folder."""
    missing = [folder for folder in configs if not (folder / RESULT).exists()]
    if not missing:
        return
    home, members = _home(missing, list(configs))
    each = [configs[folder] for folder in members]
    labels, space = prepared.schema.labels, each[0].model.cvr_space
    built = [objectives.build(config.loss, labels, space) for config in each]
    union, weights = objectives.union(built)
    train_rows, valid_rows = split_rows(each, prepared)
    for text in group_notes(each[0], train_rows):
        reporter.line(text)
    steps = epoch_steps(each[0], train_rows)
    total = each[0].train.epochs * steps
    runs = Runs(
        each,
        members,
        [objective for objective, _ in built],
        Stacked(each, prepared.schema, union, weights, train_rows, total),
        SweepStore(home, len(members)),
        steps,
        valid_rows,
        reporter,
        logger,
    )
    train_runs(runs, prepared.manifest, stop_after, Trace(None))


def _home(missing: list[Path], outputs: Sequence[Path]) -> tuple[Path, list[Path]]:
    """The sweep's own folder and its runs: one in progress, or else a new one."""
    parent = outputs[0].parent
    for home, members in sweeps_in_progress(parent).items():
        if set(missing) <= set(members) <= set(outputs):
            return home, members
        if not set(missing).isdisjoint(members):
            shutil.rmtree(home)  # its runs are taken over
    names = [os.path.relpath(folder, parent) for folder in missing]
    digest = hashlib.sha256(json.dumps(names).encode()).hexdigest()
    home = parent / SWEEPS / digest[:12]
    shutil.rmtree(home, ignore_errors=True)
    for folder in missing:
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)
        (folder / FAILURE).unlink(missing_ok=True)
    home.mkdir(parents=True)
    write_whole(home / MEMBERS, json.dumps(names))
    return home, missing
