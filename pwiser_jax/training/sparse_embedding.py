"""Sparse updates of large embedding tables: a step changes only the rows it reads.

Dense Adam changes every row of a table at every step: moments and L2 move even the rows
that the batch does not read, and a step's time grows with the table. The optimizers
here skip such rows, so they differ from dense Adam unless every batch reads every row.
`distinct` lists the rows of a batch; the step differentiates with respect to their
values, which sums the gradients of repeated rows, and writes them back in place.

The two optimizers are optax transformations of gathered rows: `init` takes the whole
table, `update` takes gradients [U, D], the state's rows [U, ...], and `count`, the
number of the step, from 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pwiser_jax.config import EmbeddingOptimizer


class Distinct(NamedTuple):
    """The rows of a table [N, ...] that a batch reads; see `distinct`.

    Attributes:
        rows: int32[U], sorted (but see `local`), with repeats; N means no row.
        first: bool[U], True at the first occurrence of a row.
        places: int32[B, L], index in `rows` of the first occurrence of each id.
    """

    rows: jax.Array
    first: jax.Array
    places: jax.Array

    def read(self, table: jax.Array) -> jax.Array:
        """Reads the rows, [U, ...]; an index past the end reads the last row."""
        return jnp.take(table, self.rows, axis=0, mode="clip")

    def written(self, size: int) -> jax.Array:
        """bool[U]: True where a write to a table of `size` rows changes a row."""
        return self.first & (self.rows < size)

    def write(self, table: jax.Array, values: jax.Array) -> jax.Array:
        """The table with each row set to the value [U, ...] at its first occurrence."""
        # Repeats get unique indices past the end, whose values are dropped.
        past = len(table) + jnp.arange(len(self.rows), dtype=jnp.int32)
        to = jnp.where(self.written(len(table)), self.rows, past)
        return table.at[to].set(values, mode="drop", unique_indices=True)

    def local(self, size: int, axis_name: str) -> "Distinct":
        """The rows as indices into this device's shard of a table [size, ...].

        The table is sharded over the mapped axis (see `shards`). Rows of other devices,
        and N, become an index past the end of the shard.
        """
        devices = jax.lax.axis_size(axis_name)
        here = self.rows % devices == jax.lax.axis_index(axis_name)
        places = jnp.where(
            here & (self.rows < size), self.rows // devices, -(-size // devices)
        )
        return self._replace(rows=places)

    def read_shards(self, shard: jax.Array, axis_name: str) -> jax.Array:
        """Reads the rows, [U, ...], from the shards of all devices; zeros for N."""
        here = (self.rows < len(shard))[:, None]
        return jax.lax.psum(jnp.where(here, self.read(shard), 0), axis_name)


def distinct(ids: jax.Array, axis_name: str | None = None) -> Distinct:
    """The rows among ids int32[B, L] of all devices of a mapped axis.

    A sort of the ids and a binary search for each are much cheaper on a CPU than a sort
    that carries positions along. No array is as long as the table.
    """
    every = ids.reshape(-1)
    if axis_name is not None:
        every = jax.lax.all_gather(every, axis_name, tiled=True)
    rows = jnp.sort(every)
    first = jnp.concatenate([jnp.ones(1, bool), rows[1:] != rows[:-1]])
    return Distinct(rows, first, jnp.searchsorted(rows, ids).astype(jnp.int32))


class AdamRows(NamedTuple):
    """Moments of each row: [N, D] both."""

    mu: jax.Array
    nu: jax.Array


def scale_by_lazy_adam(
    b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8
) -> optax.GradientTransformationExtraArgs:
    """Adam of the rows in a batch; moments of other rows do not decay.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,
    update = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps),

    t counts steps, not reads of the row, as in PyTorch's SparseAdam and TensorFlow's
    LazyAdam.
    """

    def init(params: Any) -> AdamRows:
        return AdamRows(jnp.zeros_like(params), jnp.zeros_like(params))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        mu = b1 * state.mu + (1 - b1) * updates
        nu = b2 * state.nu + (1 - b2) * jnp.square(updates)
        t = extra_args["count"].astype(jnp.float32)
        scale = jnp.sqrt(nu / (1 - b2**t)) + eps
        return mu / (1 - b1**t) / scale, AdamRows(mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)


class AdagradRows(NamedTuple):
    """Sum over steps of the mean square of each row's gradient: [N]."""

    total: jax.Array


def scale_by_rowwise_adagrad(
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Adagrad with one number per row: a += mean_d g_d^2, update = g / (sqrt(a) + eps).

    Its state has 1/D the size of Adagrad's, and 1/(2 D) of Adam's.

    Reference: Mudigere et al., Software-Hardware Co-design for Fast and Scalable
    Training of Deep Learning Recommendation Models, 2021, section 4.1.
    """

    def init(params: Any) -> AdagradRows:
        return AdagradRows(jnp.zeros(len(params), params.dtype))

    def update(
        updates: Any, state: Any, params: Any = None, **extra_args: Any
    ) -> tuple[Any, Any]:
        del extra_args
        total = state.total + jnp.mean(jnp.square(updates), axis=1)
        return updates / (jnp.sqrt(total)[:, None] + eps), AdagradRows(total)

    return optax.GradientTransformationExtraArgs(init, update)


def of_rows(
    embedding: EmbeddingOptimizer,
) -> optax.GradientTransformationExtraArgs | None:
    """The transformation of a batch's rows; None for dense Adam."""
    if embedding == "lazy_adam":
        return scale_by_lazy_adam()
    if embedding == "rowwise_adagrad":
        return scale_by_rowwise_adagrad()
    return None


def update_rows(
    transformation: optax.GradientTransformationExtraArgs,
    distinct_rows: Distinct,
    grads: jax.Array,
    table: jax.Array,
    state: Any,
    count: jax.Array,
    learning_rate: jax.Array | float,
    l2: jax.Array | float,
) -> tuple[jax.Array, Any, jax.Array]:
    """The table and its optimizer state after a step, and the rows' directions.

    Args:
        distinct_rows: the batch's rows.
        grads: [U, D], of `distinct_rows.read(table)`: summed over repeats, at the
            first occurrence.
        table: [N, D].
        state: optimizer state of the whole table.
        count: the step's number, from 1.
        learning_rate: the step size.
        l2: L2 factor; l2 times a row is added to the row's gradient.
    """
    rows = distinct_rows.read(table)
    scaled: Any
    scaled, new = transformation.update(
        grads + l2 * rows, jax.tree.map(distinct_rows.read, state), rows, count=count
    )
    updates = -learning_rate * scaled
    state = jax.tree.map(distinct_rows.write, state, new)
    written = distinct_rows.written(len(table))[:, None]
    return (
        distinct_rows.write(table, rows + updates),
        state,
        jnp.where(written, scaled, 0),
    )
