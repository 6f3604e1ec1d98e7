"""Positives of a batch, packed and gathered: they are few, and the batch is not."""

from collections.abc import Callable
from typing import Protocol, TypeVar

import jax
import jax.numpy as jnp
from jax import Array

from pwiser_jax.losses.pairs.search import first_rows
from pwiser_jax.losses.rows import AxisName

# Packs hold a 64th or an 8th of a device's rows, or all. Each size compiles a program
# of its own, which small batches are not worth.
PACKS = {64: 65_536, 8: 4096}  # share of the rows: from how many rows on


Sums = tuple[Array, Array]


class Scored(Protocol):
    """`Positives`, or other arrays with an entry a row."""

    @property
    def scores(self) -> Array: ...  # f[B]
    @property
    def weights(self) -> Array: ...  # f[B]


Rows = TypeVar("Rows", bound=Scored)


def over_positives(
    rows: Rows, use: Callable[[Rows], Sums], axis_name: AxisName | None
) -> Sums:
    """use(the rows of weight other than 0, of all devices).

    Shapes are static, so there is a program for each size of pack, and the batch's own
    count chooses the smallest that holds each device's: packed to the front, with
    weight 0 and score 0 behind, or else all rows as they are. Devices exchange packs:
    traffic is that of the conversions, not of the batch.
    """
    size = rows.scores.shape[0]

    def gathered(rows: Rows) -> Rows:
        if axis_name is None:
            return rows
        return jax.tree.map(
            lambda array: jax.lax.all_gather(array, axis_name, tiled=True), rows
        )

    def packed(capacity: int) -> Callable[[Rows], Sums]:
        def run(rows: Rows) -> Sums:
            index = first_rows(rows.weights != 0, capacity)
            pack = jax.tree.map(
                lambda array: array.at[index].get(mode="fill", fill_value=0), rows
            )
            return use(gathered(pack))

        return run

    capacities = [size // share for share, least in PACKS.items() if size >= least]
    programs = [*map(packed, capacities), lambda rows: use(gathered(rows))]
    if not capacities:
        return programs[0](rows)
    count = jnp.sum(rows.weights != 0, dtype=jnp.int32)
    if axis_name is not None:
        count = jax.lax.pmax(count, axis_name)
    chosen = sum((count > capacity).astype(jnp.int32) for capacity in capacities)
    return jax.lax.switch(chosen, programs, rows)
