"""Programs of a run on all devices, by `jax.pmap`, and their arguments.

The state is replicated without a device axis (`in_axes=None`), except for large tables
that are sharded (see `shards`); a batch is split evenly over the devices. With several
processes the mapped axis spans the devices of all of them, and each process passes its
share of the batch.
"""

import dataclasses
import functools
from collections.abc import Sequence
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pwiser_jax.data.batches.batches import Batch
from pwiser_jax.training.devices import processes
from pwiser_jax.training.devices.several import several_steps
from pwiser_jax.training.devices.shards import (
    is_table,
    map_tables,
    shard_rows,
    table_axes,
    unshard_rows,
)
from pwiser_jax.training.step import (
    ModelSpec,
    StepSpec,
    TrainState,
    eval_step,
    parameter_shapes,
    state_shapes,
    train_step,
)

AXIS = "devices"


def device_count() -> int:
    return jax.local_device_count()


# Programs are cached by their static spec: a second run of the same shapes in one
# process (another seed, lambda or margins) does not recompile.


@functools.lru_cache(maxsize=16)
def train_program(spec: StepSpec) -> Any:
    """(state, batches, count, hyper) -> (state, metrics), see `several_steps`, pmapped.

    Batches come from `stacked`. The old state is donated: `shard` it first.

    Args:
        spec: spec of one step; `axis_name` is set here.
    """
    # Even a sum over one device is a copy.
    axis = AXIS if spec.sharded or jax.device_count() > 1 else None
    step = functools.partial(train_step, dataclasses.replace(spec, axis_name=axis))
    steps = several_steps(step)
    if not spec.sharded:
        return _pmapped(steps, None)
    # With several processes pmap hashes the axes, so they are a tuple, of the leaves.
    shapes = jax.tree.leaves_with_path(state_shapes(spec))
    tree = jax.tree.structure(state_shapes(spec))
    axes = tuple(0 if is_table(path) else None for path, _ in shapes)

    def of_leaves(leaves: tuple[Any, ...], *rest: Any) -> tuple[Any, Any]:
        state, metrics = steps(tree.unflatten(leaves), *rest)
        return tuple(jax.tree.leaves(state)), metrics

    program = _pmapped(of_leaves, axes)

    def of_state(state: TrainState, *rest: Any) -> tuple[TrainState, Any]:
        leaves, metrics = program(tuple(jax.tree.leaves(state)), *rest)
        return tree.unflatten(leaves), metrics

    return of_state


def _pmapped(steps: Any, axes: Any) -> Any:
    return jax.pmap(
        steps,
        axis_name=AXIS,
        in_axes=(axes, 0, None, None),
        out_axes=(axes, None),
        donate_argnums=0,
    )


@functools.lru_cache(maxsize=16)
def eval_program(spec: ModelSpec) -> Any:
    """The pmapped evaluation step; logits have a leading device axis.

    Runs on this process's devices only: each process evaluates its own rows. Large
    tables are sharded over those devices if the spec says so.
    """
    axes = table_axes(parameter_shapes(spec)) if spec.sharded else None
    step = functools.partial(eval_step, dataclasses.replace(spec, axis_name=AXIS))
    return per_device_program(step, in_axes=(axes, None, 0))


def per_device_program(function: Any, in_axes: Any) -> Any:
    """Pmaps a function over this process's devices only."""
    return jax.pmap(
        function, axis_name=AXIS, in_axes=in_axes, devices=jax.local_devices()
    )


def drawn_on_host() -> Any:
    """Computes on the host, if jax has a CPU device: host memory holds any table."""
    try:
        return jax.default_device(jax.local_devices(backend="cpu")[0])
    except RuntimeError:
        return nullcontext()


def free_bytes() -> int:
    """Smallest free memory of the local devices; 0 on a CPU."""
    stats = [device.memory_stats() for device in jax.local_devices()]
    if jax.default_backend() == "cpu" or not all(stats):
        return 0
    return min(int(s["bytes_limit"]) - int(s["bytes_in_use"]) for s in stats if s)


@functools.lru_cache(maxsize=1)
def _largest_program() -> Any:
    return jax.pmap(
        lambda value: jax.lax.pmax(value, AXIS), axis_name=AXIS, out_axes=None
    )


def largest(value: int) -> Any:
    """Maximum over processes, as a scalar that may still be computing."""
    if processes.count() == 1:
        return value
    return _largest_program()(np.full(device_count(), value, np.int32))


def split_rows(tree: Any, devices: int) -> Any:
    """[B, ...] arrays -> [devices, B / devices, ...]; B is padded with zeros to fit.

    A padded row is 0 everywhere; its mask is False.
    """

    def cut(array: Any) -> np.ndarray:
        array = np.asarray(array)
        short = -len(array) % devices
        if short:
            zeros = np.zeros((short, *array.shape[1:]), array.dtype)
            array = np.concatenate([array, zeros])
        return array.reshape(devices, len(array) // devices, *array.shape[1:])

    return jax.tree.map(cut, tree)


def stacked(batches: Sequence[Batch], steps: int) -> Batch:
    """Stacks up to `steps` batches, [devices, steps, B / devices, ...], on the devices;
    zeros where there are fewer."""
    return stack([split_rows(batch, device_count()) for batch in batches], steps)


def stack(parts: Sequence[Any], steps: int) -> Any:
    """Trees of arrays [devices, ...] as one tree of [devices, steps, ...] on the
    devices; zeros where there are fewer trees than steps."""

    def side_by_side(*arrays: np.ndarray) -> np.ndarray:
        devices, *row = arrays[0].shape
        whole = np.zeros((devices, steps, *row), arrays[0].dtype)
        np.stack(arrays, axis=1, out=whole[:, : len(arrays)])
        return whole

    return jax.device_put(jax.tree.map(side_by_side, *parts), _sharding(AXIS))


def replicated(tree: Any) -> Any:
    """Replicates a tree on each local device."""
    return jax.device_put(tree, _sharding())


def shard(state: TrainState, sharded: bool, *, locally: bool = False) -> TrainState:
    """Puts a state on the devices: replicated, or with its large tables sharded.

    Args:
        state: in host memory, if tables are sharded.
        sharded: whether to shard large tables by rows.
        locally: use the devices of this process only, not of all processes.
    """
    if not sharded:
        return replicated(state)
    here = device_count()
    devices, start = (
        (here, 0) if locally else (jax.device_count(), processes.index() * here)
    )

    def put(table: Any) -> jax.Array:
        shards = shard_rows(table, devices)[start : start + here]
        return jax.device_put(shards, _sharding(AXIS))

    return map_tables(put, replicated, state)


def unshard(state: TrainState, rows: int) -> TrainState:
    """Gathers a state with whole tables in host memory; all processes call it.

    Args:
        state: as `shard` returned it, with tables sharded over all processes.
        rows: number of rows of a large table.
    """

    def whole(shards: jax.Array) -> np.ndarray:
        # In pieces: each device holds a whole piece for a moment.
        local = np.asarray(shards)
        each = local.shape[1]
        step = max(1, each * processes.PIECE_BYTES // local.nbytes)
        pieces = [
            processes.gathered(local[:, at : at + step]) for at in range(0, each, step)
        ]
        return unshard_rows(np.concatenate(pieces, axis=1), rows)

    return map_tables(whole, lambda leaf: leaf, state)


def _sharding(*axes: str) -> NamedSharding:
    mesh = Mesh(np.array(jax.local_devices()), (AXIS,))
    return NamedSharding(mesh, PartitionSpec(*axes))
