"""The optimizer: schedule, clipping, Adam, and sparse updates of large tables."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pwiser_jax.config import EmbeddingOptimizer
from pwiser_jax.models.layout import Layout
from pwiser_jax.training.balancing import TASK_WEIGHTS
from pwiser_jax.training.sparse_embedding import (
    Distinct,
    distinct,
    of_rows,
    update_rows,
)

Params = dict[str, Any]
Number = jax.Array | float

TABLE = "large"
WIDE = "wide"


class Rates(NamedTuple):
    """The traced numbers of the optimizer.

    Attributes:
        learning_rate: the peak of the schedule.
        l2: weight decay that is added to the gradient.
        wide_l2: that of the wide part; None for l2.
        warmup_steps: steps of linear warmup; None for no schedule.
        total_steps: the step at which cosine decay reaches 0; None for no decay.
        clip_norm: largest global norm of a gradient; None for no clipping.
    """

    learning_rate: Number
    l2: Number
    wide_l2: Number | None = None
    warmup_steps: Number | None = None
    total_steps: Number | None = None
    clip_norm: Number | None = None

    def l2_of(self, part: str) -> Number:
        """The weight decay of a part of the model; learned weights have none."""
        if part == TASK_WEIGHTS:
            return 0.0
        if part == WIDE and self.wide_l2 is not None:
            return self.wide_l2
        return self.l2

    def at(self, step: jax.Array) -> Number:
        """The learning rate at a step, from 0: warmup, then constant or cosine."""
        if self.warmup_steps is None:
            return self.learning_rate
        # optax's schedules take static lengths: these have length 1, and the step is
        # scaled instead. Step 0 has the rate of the first step after 0.
        done = jnp.asarray(step, jnp.float32)
        warm = optax.schedules.linear_schedule(0.0, 1.0, 1)
        rate: Any = warm((done + 1) / jnp.maximum(self.warmup_steps, 1))
        if self.total_steps is not None:
            length = jnp.maximum(self.total_steps - self.warmup_steps, 1)
            decay = optax.schedules.cosine_decay_schedule(1.0, 1)
            rate *= decay(jnp.maximum(done - self.warmup_steps, 0) / length)
        return self.learning_rate * rate


def adam_directions(l2_of: Callable[[str], Number]) -> optax.GradientTransformation:
    """Adam before the learning rate; L2 is added to the gradient, as in PyTorch.

    Args:
        l2_of: the L2 of each part of the model, by its name.
    """

    def decayed(grads: Any, params: Any) -> Any:
        def of_part(name: str) -> Any:
            l2 = l2_of(name)
            return jax.tree.map(lambda g, p: g + l2 * p, grads[name], params[name])

        return {name: of_part(name) for name in grads}

    return optax.chain(optax.stateless(decayed), optax.scale_by_adam())


class TableState(NamedTuple):
    """The optimizer state where large tables have a separate optimizer."""

    others: optax.OptState
    tables: dict[str, Any]


class Narrowed(NamedTuple):
    """Parameters and inputs in which each table is replaced by the rows a batch reads.

    Attributes:
        params: with [U, D] in place of each large table.
        inputs: with "large_rows", the index of each id among those rows.
        rows: the rows; None if tables are whole.
    """

    params: Params
    inputs: dict[str, Any]
    rows: Distinct | None


@dataclass(frozen=True)
class Optimizer:
    """Adam for all parameters, or for all except the tables `large`.

    Attributes:
        embedding: optimizer of the tables `large`; see `OptimizerConfig`.
        layout: layout of the model's tables; each embedding has one `large`.
        sharded: whether tables are sharded over the mapped axis (see `shards`).
    """

    embedding: EmbeddingOptimizer
    layout: Layout
    sharded: bool = False

    def init(self, params: Params) -> Any:
        rows, dense = of_rows(self.embedding), adam_directions(Rates(0.0, 0.0).l2_of)
        if rows is None:
            return dense.init(params)
        tables = {name: rows.init(table) for name, table in tables_of(params).items()}
        return TableState(dense.init(others_of(params)), tables)

    def narrow(
        self,
        params: Params,
        inputs: dict[str, Any],
        mask: jax.Array,
        axis_name: str | None,
    ) -> Narrowed:
        """Replaces tables by the rows that a step reads, for differentiation."""
        if of_rows(self.embedding) is None:
            return Narrowed(params, inputs, None)
        return narrowed(self.layout, params, inputs, mask, axis_name, self.sharded)

    def update(
        self,
        grads: Params,
        state: Any,
        params: Params,
        rows: Distinct | None,
        *,
        step: jax.Array,
        rates: Rates,
    ) -> tuple[Params, Any, Params]:
        """The parameters and the state after a step, and the directions of the step.

        A direction is a parameter's change over minus the learning rate.

        Args:
            grads: gradients of `narrow`'s parameters, averaged over devices.
            state: optimizer state.
            params: parameters before the step, with whole tables.
            rows: as `narrow` returned them.
            step: number of steps before this one.
            rates: traced numbers of the optimizer.
        """
        if rates.clip_norm is not None:
            # Each device has the gradient of all parameters and all rows of the batch.
            limit: Any = rates.clip_norm
            clip: Any = optax.clip_by_global_norm(limit)
            grads, _ = clip.update(grads, clip.init(grads))
        learning_rate = rates.at(step)
        dense, sparse = adam_directions(rates.l2_of), of_rows(self.embedding)

        def descend(params: Params, directions: Any) -> Any:
            updates = jax.tree.map(lambda d: -learning_rate * d, directions)
            return optax.apply_updates(params, updates)

        directions: Any
        if sparse is None:
            directions, state = dense.update(grads, state, params)
            return descend(params, directions), state, directions
        others = others_of(params)
        directions, dense_state = dense.update(others_of(grads), state.others, others)
        new = descend(others, directions)
        if rows is None:
            return new, TableState(dense_state, state.tables), directions
        row_grads, tables, states, moved = tables_of(grads), {}, {}, {}
        # Of Adam, which a warm start keeps; `step` then begins at 0.
        count: Any = optax.tree_utils.tree_get(dense_state, "count")
        for name, table in tables_of(params).items():
            tables[name], states[name], moved[name] = update_rows(
                sparse,
                rows,
                row_grads[name],
                table,
                state.tables[name],
                count,
                learning_rate,
                rates.l2_of(name),
            )
        return (
            with_tables(new, tables),
            TableState(dense_state, states),
            with_tables(directions, moved),
        )

    def gather_directions(self, directions: Params, axis_name: str | None) -> Params:
        """Directions over all devices: those of sharded tables are summed."""
        if not self.sharded:
            return directions
        return with_tables(directions, jax.lax.psum(tables_of(directions), axis_name))


def narrowed(
    layout: Layout,
    params: Params,
    inputs: dict[str, Any],
    mask: jax.Array,
    axis_name: str | None,
    sharded: bool,
) -> Narrowed:
    """Replaces each table `large` by the rows of it that a batch reads.

    Args:
        layout: layout of the tables.
        params: the parameters; if `sharded`, with a device's shards of the tables.
        inputs: a device's shard of the batch.
        mask: bool[B], False for padding.
        axis_name: mapped axis that the batch is sharded over, if any.
        sharded: whether tables are sharded over it, too.
    """
    tables, size = tables_of(params), layout.large_size
    if not tables:
        return Narrowed(params, inputs, None)
    rows = distinct(_ids(layout, inputs, mask, size), axis_name)
    if sharded:
        if axis_name is None:
            raise ValueError("tables can only be sharded over a mapped axis")
        rows = rows.local(size, axis_name)
        read = {k: rows.read_shards(v, axis_name) for k, v in tables.items()}
    else:
        read = {k: rows.read(v) for k, v in tables.items()}
    return Narrowed(
        with_tables(params, read), inputs | {"large_rows": rows.places}, rows
    )


def _ids(
    layout: Layout, inputs: dict[str, Any], mask: jax.Array, past: int
) -> jax.Array:
    """The rows of `large` that a batch reads; `past` for padding."""
    rows = layout.large_rows(inputs)
    read = jnp.broadcast_to(mask[:, None], rows.shape)
    width = layout.schema.multi_width
    if width:
        several = read[:, -width:] & (inputs["multi_weights"] != 0)
        read = jnp.concatenate([read[:, :-width], several], axis=1)
    return jnp.where(read, rows, past)


def tables_of(params: Params) -> dict[str, Any]:
    """The table `large` of each embedding, by the embedding's name."""
    return {name: tree[TABLE] for name, tree in params.items() if TABLE in tree}


def others_of(params: Params) -> Params:
    return {
        name: {key: leaf for key, leaf in tree.items() if key != TABLE}
        for name, tree in params.items()
    }


def with_tables(params: Params, tables: dict[str, Any]) -> Params:
    put = {name: params[name] | {TABLE: table} for name, table in tables.items()}
    return params | put
