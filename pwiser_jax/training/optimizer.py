"""The optimizer of a whole model: Adam, and what `tables` has for large tables."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pwiser_jax.config import EmbeddingOptimizer
from pwiser_jax.models.layout import Layout
from pwiser_jax.training.sparse_embedding import (
    Distinct,
    distinct,
    of_rows,
    update_rows,
)

Params = dict[str, Any]

TABLE = "large"

B1, B2, EPSILON = 0.9, 0.999, 1e-8


def adam(
    learning_rate: jax.Array | float, l2: jax.Array | float
) -> optax.GradientTransformation:
    """Adam whose L2 is added to the gradient before the moments, as PyTorch's is."""
    return optax.chain(
        optax.add_decayed_weights(l2),
        optax.scale_by_adam(B1, B2, EPSILON),
        optax.scale_by_learning_rate(learning_rate),
    )


def last_updates(state: Any, learning_rate: jax.Array | float) -> Any:
    """What `adam` added last, from its state.

    Few steps ask for it. To keep it for them would write it at every step: in the step
    itself it is never stored but goes right into the parameters.
    """
    moments = state[1]
    mu = optax.tree.bias_correction(moments.mu, B1, moments.count)
    nu = optax.tree.bias_correction(moments.nu, B2, moments.count)
    return jax.tree.map(
        lambda m, v: -learning_rate * m / (jnp.sqrt(v) + EPSILON), mu, nu
    )


class Apart(NamedTuple):
    """The optimizer's state where large tables have one of their own."""

    others: optax.OptState
    tables: dict[str, Any]


class Narrowed(NamedTuple):
    """Parameters and inputs of one batch, with no more of a table than it reads.

    `which` are the rows that stand in place of each table; None: the tables are whole.
    """

    params: Params
    inputs: dict[str, Any]
    which: Distinct | None


@dataclass(frozen=True)
class Optimizer:
    """Adam of all parameters, or of all but the tables `large`.

    Attributes:
        embedding: what trains those tables; see `OptimizerConfig`.
        layout: of the model's tables; an embedding has one `large` of this layout.
        sharded: under a mapped axis, the tables in parameters and state are a device's
            parts of them (see `shards`).
    """

    embedding: EmbeddingOptimizer
    layout: Layout
    sharded: bool = False

    def init(self, params: Params) -> Any:
        rows = of_rows(self.embedding)
        if rows is None:
            return adam(0.0, 0.0).init(params)
        tables = {name: rows.init(table) for name, table in tables_of(params).items()}
        return Apart(adam(0.0, 0.0).init(others_of(params)), tables)

    def narrow(
        self,
        params: Params,
        inputs: dict[str, Any],
        mask: jax.Array,
        axis_name: str | None,
    ) -> Narrowed:
        """What a step differentiates: gradients are of the rows read, not of tables."""
        if of_rows(self.embedding) is None:
            return Narrowed(params, inputs, None)
        return narrowed(self.layout, params, inputs, mask, axis_name, self.sharded)

    def update(
        self,
        grads: Params,
        state: Any,
        params: Params,
        which: Distinct | None,
        *,
        count: jax.Array,
        learning_rate: jax.Array | float,
        l2: jax.Array | float,
    ) -> tuple[Params, Any, Callable[[], Params]]:
        """The parameters and the state after a step, and a function of what was added.

        Args:
            grads: with respect to the parameters that `narrow` gave, `which` its rows.
            state: the optimizer's.
            params: whole.
            which: as `narrow` gave it.
            count: the step's number, from 1.
            learning_rate: the step size.
            l2: weight decay.
        """
        dense, rows = adam(learning_rate, l2), of_rows(self.embedding)
        if rows is None:
            updates, state = dense.update(grads, state, params)
            new: Any = optax.apply_updates(params, updates)
            return new, state, partial(last_updates, state, learning_rate)
        others = others_of(params)
        updates, of_others = dense.update(others_of(grads), state.others, others)
        new = optax.apply_updates(others, updates)
        of_dense = partial(last_updates, of_others, learning_rate)
        if which is None:
            return new, Apart(of_others, state.tables), of_dense
        of_grads, tables, states, moved = tables_of(grads), {}, {}, {}
        for name, table in tables_of(params).items():
            tables[name], states[name], moved[name] = update_rows(
                rows,
                which,
                of_grads[name],
                table,
                state.tables[name],
                count,
                learning_rate,
                l2,
            )

        def added() -> Params:
            return with_tables(of_dense(), moved)

        return with_tables(new, tables), Apart(of_others, states), added

    def everywhere(self, added: Params, axis_name: str | None) -> Params:
        """What a step added, with the rows that other devices added to their parts."""
        if not self.sharded:
            return added
        return with_tables(added, jax.lax.psum(tables_of(added), axis_name))


def narrowed(
    layout: Layout,
    params: Params,
    inputs: dict[str, Any],
    mask: jax.Array,
    axis_name: str | None,
    sharded: bool,
) -> Narrowed:
    """Parameters in which the rows that a batch reads stand for the tables `large`.

    Args:
        layout: of the tables.
        params: the parameters; where `sharded`, with a device's parts of the tables.
        inputs: a device's part of the batch.
        mask: bool[B], False for padding.
        axis_name: the mapped axis that the batch is spread over, if any.
        sharded: whether the tables are spread over it, too.
    """
    tables, size = tables_of(params), layout.large_size
    if not tables:
        return Narrowed(params, inputs, None)
    which = distinct(_ids(layout, inputs, mask, size), axis_name)
    if sharded:
        if axis_name is None:
            raise ValueError("tables can only be sharded over a mapped axis")
        which = which.owned(size, axis_name)
        read = {k: which.read_everywhere(v, axis_name) for k, v in tables.items()}
    else:
        read = {k: which.read(v) for k, v in tables.items()}
    return Narrowed(
        with_tables(params, read), inputs | {"large_rows": which.places}, which
    )


def _ids(
    layout: Layout, inputs: dict[str, Any], mask: jax.Array, past: int
) -> jax.Array:
    """The rows of `large` that a batch reads; `past` for what is but padding."""
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
