"""Logits of whole splits, and the trained model of a run folder."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pwiser_jax.config import Config
from pwiser_jax.data.batches.batches import sequential_batches
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.errors import UserError
from pwiser_jax.models.layout import layout
from pwiser_jax.schema import Schema
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices import processes
from pwiser_jax.training.devices.programs import (
    device_count,
    drawn_on_host,
    eval_program,
    shard,
    split_rows,
    unshard,
)
from pwiser_jax.training.devices.shards import is_sharded
from pwiser_jax.training.run.checkpoint import Checkpoints
from pwiser_jax.training.step import (
    ModelSpec,
    StepSpec,
    TrainState,
    initial_state,
    state_shapes,
    step_spec,
)

# Drawing the weights is a large program that runs once a run: compiled without
# optimisation it is ready three times sooner.
RUN_ONCE = {"xla_backend_optimization_level": 0}


def new_state(config: Config, schema: Schema) -> TrainState:
    """The state at step 0, drawn from the config's seed."""
    program = draw_program(_spec(config, schema))
    with drawn_on_host() if config.optimizer.shard_tables else nullcontext():
        return program(config.train.seed)


@lru_cache(maxsize=16)
def draw_program(spec: StepSpec) -> Callable[[int], TrainState]:
    """Cached, as the programs of `devices` are: another seed does not recompile."""
    return jax.jit(partial(initial_state, spec), compiler_options=RUN_ONCE)


def state_template(config: Config, schema: Schema) -> TrainState:
    """The shapes and types of a state, without its numbers."""
    return state_shapes(_spec(config, schema))


def table_rows(config: Config, schema: Schema) -> int:
    """The rows of a large table, on however many devices it is."""
    return layout(config.model, schema).large_size


def _spec(config: Config, schema: Schema) -> StepSpec:
    space = config.model.cvr_space
    objective, _ = objectives.build(config.loss, schema.labels, space)
    return step_spec(config, schema, objective)


def load_best(run: Path, config: Config, schema: Schema) -> TrainState:
    """The state with the best validation AUC.

    Raises:
        UserError: the run has none yet, or it is damaged.
    """
    best = Checkpoints(run, "best")
    try:
        found = best.restore(state_template(config, schema), warnings.warn)
    finally:
        best.close()
    if found is None:
        raise UserError(f"{run} has no best checkpoint yet; train it first")
    return found[0]


def predict_logits(
    config: Config, schema: Schema, state: TrainState, rows: Rows
) -> dict[str, np.ndarray]:
    """Logits f32[N] by name for every row, in order.

    Several processes look at a range of the rows each, and all of them get all logits.
    """
    sharded = config.optimizer.shard_tables
    spec = ModelSpec(model=config.model, schema=schema, sharded=sharded)
    program = eval_program(spec)
    if processes.count() > 1 and is_sharded(state.params):
        state = unshard(state, table_rows(config, schema))
    if not is_sharded(state.params):
        state = shard(state, sharded, locally=True)
    chunks: dict[str, list[np.ndarray]] = {}
    for logits, count in _logits(program, config, state, rows):
        for name, values in logits.items():
            chunks.setdefault(name, []).append(values.reshape(-1)[:count])
    each = -(-len(rows) // processes.count())

    def whole(parts: list[np.ndarray]) -> np.ndarray:
        own = np.concatenate(parts)
        return processes.gathered(np.pad(own, (0, each - len(own))))[: len(rows)]

    return {name: whole(parts) for name, parts in chunks.items()}


def _logits(
    program: Any, config: Config, state: TrainState, rows: Rows
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    devices = device_count()
    size = -(-config.data.eval_batch_size // processes.count())
    for batch in sequential_batches(rows, size, *processes.share(len(rows))):
        inputs = split_rows(batch.inputs, devices)
        logits = program(state.params, state.batch_stats, inputs)
        yield jax.device_get(logits), int(np.sum(batch.mask))
