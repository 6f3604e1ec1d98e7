"""A model with a large table, its batches and its steps, for tests of such tables."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pwiser_jax.config import Config, LossConfig
from pwiser_jax.data.batches.batches import Batch
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.schema import MultiValuedField
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices.programs import shard, unshard
from pwiser_jax.training.devices.shards import is_sharded, is_table
from pwiser_jax.training.run.checkpoint import Checkpoints
from pwiser_jax.training.state import state_template, table_rows
from pwiser_jax.training.step import Hyper, StepSpec, initial_state, train_step
from tests.training.helpers import SMALL, small_config
from tests.training.steps import SCHEMA as PLAIN
from tests.training.steps import make_batch

SCHEMA = replace(PLAIN, multi_valued=(MultiValuedField("tags", 30, width=3),))
OBJECTIVE, WEIGHTS = objectives.build(
    LossConfig(ranking="pwiser", lambdas=0.5), SCHEMA.labels, "ctcvr"
)
HYPER = Hyper(seed=3, learning_rate=1e-2, l2=1e-3, weights=WEIGHTS)
# "user" (12 rows) and the tags are in the large table, "item" (8 rows) is not.
MODEL = replace(SMALL, small_rows=8)
USERS, TAGS = 12, 33


def tagged(rows: int, padding: int, seed: int = 0) -> tuple[Batch, set[int]]:
    """A batch, and the rows of the table `large` that it reads."""
    batch = make_batch(rows, seed, padding)
    rng = np.random.default_rng(5 + seed)
    ids = rng.integers(0, 12, (rows + padding, 3)).astype(np.int32)
    weights = rng.uniform(0.5, 2, ids.shape) * (rng.random(ids.shape) < 0.5)
    users = batch.inputs["categorical"][:, 0]
    # What is padding names ids that nothing else does.
    users[:rows] %= 7
    users[rows:], ids[rows:], ids[weights == 0] = 9, 29, 30
    batch.inputs["multi_ids"] = ids
    batch.inputs["multi_weights"] = weights.astype(np.float32)
    used = (weights > 0) & batch.mask[:, None]
    return batch, set(users[:rows].tolist()) | set((USERS + ids[used]).tolist())


def spec_of(model: Any, embedding: Any, axis_name: str | None = None) -> StepSpec:
    return StepSpec(
        model=model,
        schema=SCHEMA,
        objective=OBJECTIVE,
        embedding=embedding,
        axis_name=axis_name,
    )


def start(model: Any, embedding: Any) -> Any:
    return jax.jit(lambda: initial_state(spec_of(model, embedding), 0))()


def step_of(model: Any, embedding: Any, axis_name: str | None = None) -> Any:
    return partial(train_step, spec_of(model, embedding, axis_name))


def table_leaves(state: Any) -> list[Any]:
    leaves = jax.tree.leaves_with_path(state)
    return [leaf for path, leaf in leaves if is_table(path)]


def sharded_config(data: Path, shard_tables: bool) -> Config:
    return small_config(
        data,
        data={"batch_size": 64, "eval_batch_size": 128},
        model={"name": "shared_bottom"},
        optimizer={"embedding": "lazy_adam", "shard_tables": shard_tables},
    )


def parts_on_devices(run: Path, data: Path) -> list[np.ndarray]:
    """A checkpoint put onto the devices, its tables spread, and brought back whole: as
    it was written, bit for bit."""
    config, schema = sharded_config(data, True), Prepared(data).schema
    series = Checkpoints(run, "last")
    found = series.restore(state_template(config, schema), pytest.fail)
    series.close()
    assert found is not None
    state = shard(found[0], True)
    assert is_sharded(state.params)
    for leaf in table_leaves(state):
        assert len(leaf) == jax.device_count()
    whole = unshard(state, table_rows(config, schema))
    jax.tree.map(np.testing.assert_array_equal, whole, found[0])
    return [np.asarray(leaf) for leaf in jax.tree.leaves(whole)]
