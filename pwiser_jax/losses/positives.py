"""Packs the positives, all-gathers them, and sums their pairs with local rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import Array

from pwiser_jax.losses.pairs import FORMS, Others, PairOptions, Positives, form_name
from pwiser_jax.losses.pairs.search import first_rows
from pwiser_jax.losses.rows import AxisName

# Packs hold a 64th or an 8th of a device's rows, or all. Each size compiles a program
# of its own, which small batches are not worth.
PACKS = {64: 65_536, 8: 4096}  # share of the rows: from how many rows on

Sums = tuple[Array, Array]


def pair_row_sums(
    positives: Positives,
    others: Others,
    options: PairOptions,
    axis_name: AxisName | None,
    bank: Positives | None = None,
) -> Sums:
    """The sums of `pwiser_jax.losses.pairs` over the positives of all devices.

    Positives of weight 0 are ignored. `bank` holds further positives, the same on every
    device.
    """
    form = FORMS[form_name(options, len(others.scores))]

    def sums(positives: Positives) -> Sums:
        if bank is not None:
            positives = jax.tree.map(
                lambda x, past: jnp.concatenate([x, past.astype(x.dtype)]),
                positives,
                bank,
            )
        return form(positives, others, options)

    return _over_packed(positives, sums, axis_name)


def _over_packed(
    rows: Positives, use: Callable[[Positives], Sums], axis_name: AxisName | None
) -> Sums:
    """Applies `use` to the rows of nonzero weight of all devices.

    Shapes are static, so there is a program for each size of pack. The largest count of
    any device chooses the smallest pack that holds it: rows packed to the front, with
    weight 0 and score 0 behind, or else all rows as they are. Devices exchange packs:
    traffic is proportional to the number of positives, not to the batch size.
    """
    size = rows.scores.shape[0]

    def gathered(rows: Positives) -> Positives:
        if axis_name is None:
            return rows
        return jax.tree.map(
            lambda array: jax.lax.all_gather(array, axis_name, tiled=True), rows
        )

    def packed(capacity: int) -> Callable[[Positives], Sums]:
        def run(rows: Positives) -> Sums:
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
