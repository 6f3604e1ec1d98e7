"""Logits of whole splits."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from pwiser_jax.config import Config
from pwiser_jax.data.batches.batches import sequential_batches
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.schema import Schema
from pwiser_jax.training.balancing import model_parameters
from pwiser_jax.training.devices import processes
from pwiser_jax.training.devices.programs import (
    device_count,
    eval_program,
    shard,
    split_rows,
    unshard,
)
from pwiser_jax.training.devices.shards import is_sharded
from pwiser_jax.training.state import table_rows
from pwiser_jax.training.step import ModelSpec, TrainState


def predict_logits(
    config: Config, schema: Schema, state: TrainState, rows: Rows
) -> dict[str, np.ndarray]:
    """Logits f32[N] by name for every row, in order.

    Each of several processes computes a range of the rows; all return all logits.
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
        local = np.concatenate(parts)
        return processes.gathered(np.pad(local, (0, each - len(local))))[: len(rows)]

    return {name: whole(parts) for name, parts in chunks.items()}


def _logits(
    program: Any, config: Config, state: TrainState, rows: Rows
) -> Iterator[tuple[dict[str, np.ndarray], int]]:
    """The logits of each batch of this process, and its number of valid rows."""
    devices, params = device_count(), model_parameters(state.params)
    size = -(-config.data.eval_batch_size // processes.count())
    for batch in sequential_batches(rows, size, *processes.share(len(rows))):
        inputs = split_rows(batch.inputs, devices)
        logits = program(params, state.batch_stats, inputs)
        yield jax.device_get(logits), int(np.sum(batch.mask))
