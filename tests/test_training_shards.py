"""Large tables spread over devices by rows are the same tables."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from test_training_optimizer import (
    HYPER,
    MODEL,
    OBJECTIVE,
    SCHEMA,
    TAGS,
    USERS,
    start,
    tagged,
)
from training_helpers import small_config

from pwiser_jax.training.parallel import (
    made_whole,
    placed,
    split_rows,
    stack,
    train_program,
)
from pwiser_jax.training.shards import Parted, in_order, parts_of

ROWS = USERS + TAGS


@pytest.mark.parametrize("devices", [1, 2, 4, 7])
def test_parts_are_every_so_many_rows(devices: int) -> None:
    table = np.arange(2 * ROWS).reshape(ROWS, 2)
    parts = parts_of(table, devices)
    assert parts.shape == (devices, -(-ROWS // devices), 2)
    for device, part in enumerate(parts):
        own = table[device::devices]
        np.testing.assert_array_equal(part[: len(own)], own)
        assert not part[len(own) :].any()
    np.testing.assert_array_equal(in_order(parts, ROWS), table)


def steps(embedding: Any, shard_tables: bool) -> list[Any]:
    """A state as it lies on 4 devices: at first, after one step and after three; and
    the losses of the steps."""
    batches = [split_rows(tagged(53, 3, seed)[0], 4) for seed in range(3)]
    program = train_program(MODEL, SCHEMA, OBJECTIVE, embedding, shard_tables)
    state = placed(
        jax.device_get(start(MODEL, tagged(53, 3)[0], embedding)), shard_tables
    )
    found, losses = [copied(state)], []
    for first, count in ((0, 1), (1, 2)):
        given = state
        state, metrics = program(given, stack(batches[first:], 3), count, HYPER)
        # Its memory went over to the new state.
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        found.append(copied(state))
        losses.append({k: np.asarray(v)[:count] for k, v in metrics.items()})
    return [*found, *losses]


def copied(state: Any) -> Any:
    """In host memory and whole; the parts of tables are seen to be parts."""
    if isinstance(state, Parted):
        for leaf in jax.tree.leaves(state.tables):
            shapes = {shard.data.shape[:2] for shard in leaf.addressable_shards}
            assert shapes == {(1, -(-ROWS // 4))}
            assert len(leaf.addressable_shards) == 4
    return jax.tree.map(np.array, jax.device_get(made_whole(state, ROWS)))


@pytest.mark.parametrize("embedding", ["lazy_adam", "rowwise_adagrad"])
def test_steps_of_sharded_tables_are_those_of_whole_ones(embedding: str) -> None:
    expected, got = (steps(embedding, shard_tables) for shard_tables in (False, True))
    jax.tree.map(np.testing.assert_array_equal, got[0], expected[0])
    # The moments of the first step tell its gradients.
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7),
        got[1].optimizer.tables,
        expected[1].optimizer.tables,
    )
    tables = [state[2].params["embedding"]["large"] for state in (got, expected)]
    np.testing.assert_allclose(*tables, rtol=1e-5, atol=1e-5)
    assert np.any(tables[0] != got[0].params["embedding"]["large"])
    for name, value in expected[3].items():
        np.testing.assert_allclose(got[3][name], value, rtol=1e-5, err_msg=name)
    np.testing.assert_allclose(got[4]["loss"], expected[4]["loss"], rtol=1e-5)


def sharded_config(data: Path, shard_tables: bool) -> Any:
    return small_config(
        data,
        data={"batch_size": 64, "eval_batch_size": 128},
        model={"name": "shared_bottom"},
        optimizer={"embedding": "lazy_adam", "shard_tables": shard_tables},
    )
