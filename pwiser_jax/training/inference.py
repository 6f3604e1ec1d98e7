"""Logits of whole splits, and the trained model of a run folder."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from pwiser_jax.config import Config, EmbeddingOptimizer
from pwiser_jax.data.batches.batches import sequential_batches
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.errors import UserError
from pwiser_jax.models import build
from pwiser_jax.models.config import ModelConfig
from pwiser_jax.models.layout import layout
from pwiser_jax.schema import Schema
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices import processes
from pwiser_jax.training.devices.programs import (
    device_count,
    drawn_on_host,
    eval_program,
    made_whole,
    placed,
    split_rows,
)
from pwiser_jax.training.devices.shards import Parted, parameters
from pwiser_jax.training.objective import Objective
from pwiser_jax.training.run.checkpoint import Checkpoints
from pwiser_jax.training.step import TrainState, initial_state

# Drawing the weights is a large program that runs once a run: compiled without
# optimisation it is ready three times sooner.
RUN_ONCE = {"xla_backend_optimization_level": 0}


def example_inputs(schema: Schema) -> dict[str, Any]:
    """One row of zeros: what a model needs to know the shapes of its inputs."""
    inputs = {
        "categorical": np.zeros((1, len(schema.categorical)), np.int32),
        "numerical": np.zeros((1, len(schema.numerical)), np.float32),
    }
    if schema.multi_valued:
        inputs["multi_ids"] = np.zeros((1, schema.multi_width), np.int32)
        inputs["multi_weights"] = np.zeros((1, schema.multi_width), np.float32)
    return inputs


def new_state(config: Config, schema: Schema) -> TrainState:
    """The state at step 0, drawn from the config's seed."""
    program = draw_program(
        config.model, schema, _objective(config, schema), config.optimizer.embedding
    )
    with drawn_on_host() if config.optimizer.shard_tables else nullcontext():
        return program(config.train.seed)


@lru_cache(maxsize=16)
def draw_program(
    model: ModelConfig,
    schema: Schema,
    objective: Objective,
    embedding: EmbeddingOptimizer,
) -> Callable[[int], TrainState]:
    """Kept, as the programs of `parallel` are: runs of other seeds compile nothing."""
    module, inputs = build(model, schema), example_inputs(schema)
    draw = partial(initial_state, module, objective, inputs, embedding=embedding)
    return jax.jit(draw, compiler_options=RUN_ONCE)


def state_template(config: Config, schema: Schema) -> TrainState:
    """The shapes and types of a state, without its numbers."""
    module, inputs = build(config.model, schema), example_inputs(schema)
    objective = _objective(config, schema)
    return jax.eval_shape(
        lambda: initial_state(
            module,
            objective,
            inputs,
            config.train.seed,
            config.optimizer.embedding,
        )
    )


def table_rows(config: Config, schema: Schema) -> int:
    """The rows of a large table, on however many devices it is."""
    return layout(config.model, schema).large_size


def _objective(config: Config, schema: Schema) -> Objective:
    return objectives.build(config.loss, schema.labels, config.model.cvr_space)[0]


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
    config: Config, schema: Schema, state: TrainState | Parted, rows: Rows
) -> dict[str, np.ndarray]:
    """Logits f32[N] by name for every row, in order.

    Several processes look at a range of the rows each, and all of them get all logits.
    """
    shard_tables = config.optimizer.shard_tables
    program = eval_program(config.model, schema, shard_tables)
    if processes.count() > 1:
        state = made_whole(state, table_rows(config, schema))
    if not isinstance(state, Parted):
        state = placed(state, shard_tables, locally=True)
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
    program: Any, config: Config, state: TrainState | Parted, rows: Rows
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    devices = device_count()
    if isinstance(state, Parted):
        params, batch_stats = parameters(state), state.rest.batch_stats
    else:
        params, batch_stats = state.params, state.batch_stats
    size = -(-config.data.eval_batch_size // processes.count())
    for batch in sequential_batches(rows, size, *processes.share(len(rows))):
        inputs = split_rows(batch.inputs, devices)
        logits = program(params, batch_stats, inputs)
        yield jax.device_get(logits), int(np.sum(batch.mask))
