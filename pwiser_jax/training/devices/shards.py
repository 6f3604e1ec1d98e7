"""Large tables that are sharded over devices by rows.

With D devices, device d has the rows d, d + D, d + 2 D, ... of a table [N, ...] and of
its optimizer state. Neighbouring ids are on different devices, because low ids are
often the most frequent. A sharded table is [D, ceil(N / D), ...]; rows past N are
zeros. Other arrays of a state are replicated. Checkpoints hold whole tables.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from pwiser_jax.training.optimizer import TABLE


def is_table(path: tuple[Any, ...]) -> bool:
    """Whether a leaf of a state or of parameters belongs to a large table."""
    names = {getattr(key, "key", getattr(key, "name", None)) for key in path}
    return not names.isdisjoint((TABLE, "tables"))


def table_axes(tree: Any) -> Any:
    """The mapped axis of each leaf, for `jax.pmap`: 0 for tables, else None."""
    return jax.tree.map_with_path(lambda path, _: 0 if is_table(path) else None, tree)


def is_sharded(params: Any) -> bool:
    """Whether the tables of parameters are sharded, [D, N / D, dim]."""
    leaves = jax.tree.leaves_with_path(params)
    return any(is_table(path) and leaf.ndim == 3 for path, leaf in leaves)


def map_tables(
    tables: Callable[[Any], Any], others: Callable[[Any], Any], tree: Any
) -> Any:
    """Applies `tables` to the leaves of large tables and `others` to all others."""
    return jax.tree.map_with_path(
        lambda path, leaf: (tables if is_table(path) else others)(leaf), tree
    )


def shard_rows(table: Any, devices: int) -> np.ndarray:
    """[N, ...] -> [devices, ceil(N / devices), ...]."""
    table = np.asarray(table)
    short = -len(table) % devices
    padded = np.pad(table, [(0, short)] + [(0, 0)] * (table.ndim - 1))
    return padded.reshape(-1, devices, *table.shape[1:]).swapaxes(0, 1)


def unshard_rows(shards: np.ndarray, rows: int) -> np.ndarray:
    """[devices, ceil(N / devices), ...] -> [N, ...], N = rows; a copy."""
    whole = np.array(shards.swapaxes(0, 1), order="C")
    return whole.reshape(-1, *shards.shape[2:])[:rows]
