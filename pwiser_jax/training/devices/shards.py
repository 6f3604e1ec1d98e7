"""Large tables spread over devices by rows.

Of D devices, device d holds the rows d, d + D, d + 2 D, ... of a table [N, ...] and of
its optimizer's state: neighbouring ids, of which the first are often the frequent ones,
lie on different devices. A part has ceil(N / D) rows; what is past the table's end is
zero and never read. Checkpoints hold tables whole, rows in order.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from pwiser_jax.training.optimizer import others_of, tables_of, with_tables
from pwiser_jax.training.step import TrainState


class Parted(NamedTuple):
    """A train state, or parameters, with what belongs to large tables taken out.

    On the devices, arrays of `tables` are [devices, ceil(N / D), ...], those of `rest`
    whole.
    """

    tables: Any
    rest: Any


def parted(state: TrainState) -> Parted:
    """Of a state whose large tables have an optimizer of their own."""
    optimizer: Any = state.optimizer
    tables = tables_of(state.params), optimizer.tables
    rest = state._replace(
        params=others_of(state.params), optimizer=optimizer._replace(tables={})
    )
    return Parted(tables, rest)


def joined(state: Parted) -> TrainState:
    (tables, of_tables), rest = state
    return rest._replace(
        params=with_tables(rest.params, tables),
        optimizer=rest.optimizer._replace(tables=of_tables),
    )


def parameters(state: Parted) -> Parted:
    """The parameters of a state."""
    return Parted(state.tables[0], state.rest.params)


def of_parted(step: Callable[..., tuple[TrainState, Any]]) -> Callable[..., Any]:
    """A training step of a `Parted` state."""

    def stepped(state: Parted, batch: Any, hyper: Any) -> tuple[Parted, Any]:
        new, metrics = step(joined(state), batch, hyper)
        return parted(new), metrics

    return stepped


def parts_of(table: Any, devices: int) -> np.ndarray:
    """A table [N, ...] as its parts: [devices, ceil(N / devices), ...]."""
    table = np.asarray(table)
    short = -len(table) % devices
    padded = np.pad(table, [(0, short)] + [(0, 0)] * (table.ndim - 1))
    return padded.reshape(-1, devices, *table.shape[1:]).swapaxes(0, 1)


def in_order(parts: np.ndarray, rows: int) -> np.ndarray:
    """The table [rows, ...] of its parts, a copy."""
    whole = np.array(parts.swapaxes(0, 1), order="C")
    return whole.reshape(-1, *parts.shape[2:])[:rows]
