"""Positives of a batch, packed and gathered: they are few, and the batch is not."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pwiser_jax.losses.pairs import Positives
from pwiser_jax.losses.rows import AxisName
from pwiser_jax.losses.search import first_rows

# Positives up to a sixteenth of the rows are packed. Of the published datasets only
# KuaiRand's long views are more frequent.
PACKED_SHARE = 16
# Below this many rows packing costs more than it saves: compiling twice, first of all.
PACKED_FROM = 4096

Sums = tuple[Array, Array]


def over_positives(
    rows: Positives, use: Callable[[Positives], Sums], axis_name: AxisName | None
) -> Sums:
    """use(the rows of weight other than 0, of all devices).

    Shapes are static, so there are two programs, and the batch's own count chooses: at
    most a sixteenth of each device's rows, packed to the front with weight 0 and score
    0 behind them, or all rows as they are. Devices exchange the pack, not the batch.
    """
    size = rows.scores.shape[0]

    def gathered(rows: Positives) -> Positives:
        if axis_name is None:
            return rows
        return jax.tree.map(
            lambda array: jax.lax.all_gather(array, axis_name, tiled=True), rows
        )

    def of_all(rows: Positives) -> Sums:
        return use(gathered(rows))

    if size < PACKED_FROM:
        return of_all(rows)
    few = size // PACKED_SHARE

    def of_few(rows: Positives) -> Sums:
        index = first_rows(rows.weights != 0, few)
        pack = jax.tree.map(
            lambda array: array.at[index].get(mode="fill", fill_value=0), rows
        )
        return use(gathered(pack))

    count = jnp.sum(rows.weights != 0, dtype=jnp.int32)
    if axis_name is not None:
        count = jax.lax.pmax(count, axis_name)
    return jax.lax.cond(count <= few, of_few, of_all, rows)
