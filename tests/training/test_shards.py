"""Large tables sharded over devices by rows give the same results."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.errors import UserError
from pwiser_jax.inference.load import load_best
from pwiser_jax.training.devices.programs import (
    shard,
    split_rows,
    stack,
    train_program,
    unshard,
)
from pwiser_jax.training.devices.shards import (
    is_sharded,
    shard_rows,
    unshard_rows,
)
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.logits import predict_logits
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from pwiser_jax.training.sweep import train_sweep
from tests.data.multi_valued import write_folder
from tests.training.helpers import small_config
from tests.training.large_tables import (
    HYPER,
    MODEL,
    TAGS,
    USERS,
    parts_on_devices,
    sharded_config,
    spec_of,
    start,
    table_leaves,
    tagged,
)
from tests.training.processes import ended
from tests.training.processes import start as start_process

ROWS = USERS + TAGS


@pytest.mark.parametrize("devices", [1, 2, 4, 7])
def test_parts_are_every_so_many_rows(devices: int) -> None:
    table = np.arange(2 * ROWS).reshape(ROWS, 2)
    parts = shard_rows(table, devices)
    assert parts.shape == (devices, -(-ROWS // devices), 2)
    for device, part in enumerate(parts):
        own = table[device::devices]
        np.testing.assert_array_equal(part[: len(own)], own)
        assert not part[len(own) :].any()
    np.testing.assert_array_equal(unshard_rows(parts, ROWS), table)


def steps(embedding: Any, shard_tables: bool) -> list[Any]:
    """A state as it lies on 4 devices: at first, after one step and after three; and
    the losses of the steps."""
    batches = [split_rows(tagged(53, 3, seed)[0], 4) for seed in range(3)]
    program = train_program(replace(spec_of(MODEL, embedding), sharded=shard_tables))
    state = shard(jax.device_get(start(MODEL, embedding)), shard_tables)
    found, losses = [copied(state)], []
    for first, count in ((0, 1), (1, 2)):
        given = state
        state, (metrics, _) = program(given, stack(batches[first:], 3), count, HYPER)
        # Its memory went over to the new state.
        assert all(leaf.is_deleted() for leaf in jax.tree.leaves(given))
        found.append(copied(state))
        losses.append({k: np.asarray(v)[:count] for k, v in metrics.items()})
    return [*found, *losses]


def copied(state: Any) -> Any:
    """In host memory and whole; the parts of tables are seen to be parts."""
    if is_sharded(state.params):
        for leaf in table_leaves(state):
            shapes = {shard.data.shape[:2] for shard in leaf.addressable_shards}
            assert shapes == {(1, -(-ROWS // 4))}
            assert len(leaf.addressable_shards) == 4
        state = unshard(state, ROWS)
    return jax.tree.map(np.array, jax.device_get(state))


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


ON_TWO_DEVICES = """
import sys
import jax, numpy as np
from pathlib import Path
from tests.training.large_tables import parts_on_devices

run, data = map(Path, sys.argv[1:])
assert jax.device_count() == 2
np.savez(run / "two.npz", *parts_on_devices(run, data))
"""


def test_a_run_goes_on_and_is_read_on_other_devices_or_unsharded(
    tmp_path: Path,
) -> None:
    data = write_folder(tmp_path / "folder")
    sharded, plain = (sharded_config(data, shard) for shard in (True, False))
    whole, cut, other = (tmp_path / name for name in ("whole", "cut", "other"))
    train(sharded, whole, Silent())
    with pytest.raises(Interrupted):
        train(sharded, cut, Silent(), stop_after=13)
    shutil.copytree(cut, other)

    # The same numbers on 4 devices and on 2.
    here = parts_on_devices(cut, data)
    code, said = ended(start_process(2, "-c", ON_TWO_DEVICES, str(cut), str(data)))
    assert code == 0, said
    with np.load(cut / "two.npz") as two:
        for at, leaf in enumerate(here):
            np.testing.assert_array_equal(two[f"arr_{at}"], leaf)

    # Going on sharded is the uninterrupted run, bit for bit; unsharded, to rounding.
    train(sharded, cut, Silent())
    assert read_metrics(cut) == read_metrics(whole)
    train(plain, other, Silent())
    losses = [
        [line["loss"] for line in read_metrics(run) if line["kind"] == "train"]
        for run in (whole, other)
    ]
    np.testing.assert_allclose(losses[1], losses[0], rtol=1e-4)

    # Either configuration reads the best checkpoint.
    prepared = Prepared(data)
    state, rows = load_best(whole, plain, prepared.schema), prepared.load("valid")
    expected, got = (
        predict_logits(config, prepared.schema, state, rows)
        for config in (plain, sharded)
    )
    for name, logits in expected.items():
        np.testing.assert_allclose(got[name], logits, rtol=1e-5, atol=1e-6)


def test_dense_adam_and_sweeps_refuse(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shard_tables needs .* lazy_adam"):
        small_config(tmp_path, optimizer={"shard_tables": True})
    config = sharded_config(tmp_path, True)
    with pytest.raises(UserError, match="shard_tables: the runs of a sweep"):
        train_sweep([config], [tmp_path / "run"], Silent())
