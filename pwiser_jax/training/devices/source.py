"""Sources of batches: the mapped files, or rows resident in device memory.

Both give the same batches, bit for bit.
"""

import functools
from collections.abc import Sequence
from typing import Any, Literal, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from pwiser_jax.data.batches.batches import Batch, Selection, gather
from pwiser_jax.data.batches.rows import Inputs, Rows, Runs
from pwiser_jax.training.devices.programs import (
    device_count,
    free_bytes,
    per_device_program,
    replicated,
    split_rows,
    stack,
    stacked,
)

# Largest share of an accelerator's free memory for a split: the rest is for tables,
# their moments and activations.
SHARE = 0.25

# (name, own runs, shared runs) of each input; a run is (source, target, length).
Layout = tuple[tuple[str, tuple[Any, ...], tuple[Any, ...]], ...]


class Source(Protocol):
    """Gathers a call's batches, [devices, steps, B / devices, ...], zero-padded."""

    def __call__(self, selections: Sequence[Selection], steps: int) -> Batch: ...


def source(rows: Rows, where: Literal["auto", "device", "files"]) -> Source:
    """The source of a split's batches.

    "auto" is "device" where an accelerator has enough memory. On a CPU the files stay
    mapped, and the rows are never all in memory.
    """
    if where == "auto":
        free = free_bytes()
        where = "device" if free and size(rows) < SHARE * free else "files"
    return Resident(rows) if where == "device" else Streamed(rows)


def size(rows: Rows) -> int:
    """Size in bytes of the arrays that steps read from a split."""
    return sum(array.nbytes for array in jax.tree.leaves(_arrays(rows)))


class Streamed:
    """Gathers rows on the host, from the mapped files."""

    def __init__(self, rows: Rows) -> None:
        self._rows = rows

    def __call__(self, selections: Sequence[Selection], steps: int) -> Batch:
        return stacked([gather(self._rows, each) for each in selections], steps)


class Resident:
    """Gathers rows on the devices, each of which holds the whole split.

    Inputs shared by several rows are stored once.
    """

    def __init__(self, rows: Rows) -> None:
        self._data = replicated(_arrays(rows))
        self._program = _gather_program(_layout(rows))

    def __call__(self, selections: Sequence[Selection], steps: int) -> Batch:
        devices = device_count()
        index, places = [], []
        for each in selections:
            missing = len(each.rows) - len(each.indices)
            padded = np.pad(each.indices.astype(np.int32), (0, missing))
            real = np.arange(len(padded)) < len(each.indices)
            # Padding to a multiple of the number of devices is masked too.
            index.append(split_rows((padded, real), devices))
            places.append(split_rows(each.rows, devices))
        weight = np.float32(selections[0].conversion_weight)
        return self._program(
            self._data, stack(index, steps), stack(places, steps), weight
        )


def _arrays(rows: Rows) -> dict[str, Any]:
    data: dict[str, Any] = {"own": rows.inputs, "labels": rows.labels}
    if rows.shared is not None:
        data |= {"line": rows.shared.line, "shared": rows.shared.inputs}
    columns = {
        "weight": rows.weight,
        "groups": rows.group_codes,
        "values": rows.pair_values,
    }
    return data | {name: a for name, a in columns.items() if a is not None}


def _layout(rows: Rows) -> Layout:
    def flat(runs: Runs) -> tuple[Any, ...]:
        return tuple((a.start, b.start, a.stop - a.start) for a, b in runs)

    shared = rows.shared
    if shared is None:
        return tuple((name, (), ()) for name in rows.inputs)
    return tuple(
        (name, flat(shared.own[name]), flat(shared.common[name]))
        for name in rows.inputs
    )


@functools.lru_cache(maxsize=16)
def _gather_program(layout: Layout) -> Any:
    """`data.batches.gather` and `Rows.take`, on a device."""

    def gathered(data: Any, index: Any, places: jax.Array, weight: jax.Array) -> Batch:
        at, real = index

        def take(array: jax.Array, at: jax.Array) -> jax.Array:
            return jnp.take(array, at, axis=0, mode="clip")

        def padded(values: jax.Array) -> jax.Array:
            kept = real.reshape(real.shape + (1,) * (values.ndim - real.ndim))
            return jnp.where(kept, values, jnp.zeros((), values.dtype))

        inputs: Inputs | dict[str, jax.Array] = {}
        for name, own_runs, shared_runs in layout:
            values = take(data["own"][name], at)
            if "line" in data:
                common = take(data["shared"][name], take(data["line"], at))
                width = values.shape[-1] + common.shape[-1]
                joined = jnp.zeros((*at.shape, width), values.dtype)
                for part, runs in ((values, own_runs), (common, shared_runs)):
                    for source, target, length in runs:
                        columns = part[..., source : source + length]
                        joined = joined.at[..., target : target + length].set(columns)
                values = joined
            inputs[name] = padded(values)
        labels = padded(take(data["labels"], at))
        weights = jnp.where(labels[..., -1] == 1, weight, jnp.float32(1))
        columns = {
            name: padded(take(data[name], at)) if name in data else None
            for name in ("weight", "groups", "values")
        }
        row_weights = columns["weight"]
        if row_weights is not None:
            weights = row_weights * weights
        return Batch(
            inputs,
            labels,
            real,
            places,
            padded(weights),
            row_weights,
            columns["groups"],
            columns["values"],
        )

    return per_device_program(gathered, in_axes=(None, 0, 0, None))
