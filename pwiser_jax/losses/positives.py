"""Positives of a batch, packed and gathered: they are few, and the batch is not."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pwiser_jax.losses.pairs import Positives
from pwiser_jax.losses.rows import AxisName

# Positives up to a sixteenth of the rows are packed. Of the published datasets only
# KuaiRand's long views are more frequent.
PACKED_SHARE = 16
# Below this many rows packing costs more than it saves.
PACKED_FROM = 256

Sums = tuple[Array, Array]


def over_positives(
    rows: Positives, use: Callable[[Positives], Sums], axis_name: AxisName | None
) -> Sums:
    """use(the rows of weight other than 0, of all devices), packed to the front.

    Shapes are static, so there are two programs: one for at most a sixteenth of each
    device's rows, one for all of them, and the batch's own count chooses. The rest of
    a pack has weight 0 and score 0. Devices exchange a pack, not the batch.
    """
    size = rows.scores.shape[0]

    def packed(capacity: int) -> Callable[[Positives], Sums]:
        def run(rows: Positives) -> Sums:
            index = jnp.nonzero(rows.weights, size=capacity, fill_value=size)[0]

            def pack(array: Array) -> Array:
                part = array.at[index].get(mode="fill", fill_value=0)
                if axis_name is None:
                    return part
                return jax.lax.all_gather(part, axis_name, tiled=True)

            return use(jax.tree.map(pack, rows))

        return run

    if size < PACKED_FROM:
        return packed(size)(rows)
    few = size // PACKED_SHARE
    count = jnp.sum(rows.weights != 0, dtype=jnp.int32)
    if axis_name is not None:
        count = jax.lax.pmax(count, axis_name)
    return jax.lax.cond(count <= few, packed(few), packed(size), rows)
