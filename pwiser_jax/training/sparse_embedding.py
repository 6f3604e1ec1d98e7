"""Large embedding tables: a step reads and writes only the rows that its batch names.

Dense Adam changes every row of a table at every step: a row that the batch does not
name still moves, by its old moments and by L2, and a step's time grows with the table.
The optimizers here leave such rows alone, so they compute another function than dense
Adam does; the two agree where every batch names every row. `Distinct` finds the rows;
the step differentiates with respect to their values, in which the gradients of a row
named more than once are summed, and writes them back in place.

The two optimizers are optax transformations of gathered rows: `init` takes the whole
table, `update` takes gradients [U, D], the rows U of the state, and `count`, the number
of the step, from 1.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pwiser_jax.config import EmbeddingOptimizer


class Distinct(NamedTuple):
    """The rows of a table [N, ...] that a batch names; see `distinct`.

    Attributes:
        rows: int32[U], ascending (but see `owned`); a row named more than once stands
            there as often, and N stands for no row.
        first: bool[U], True where a row stands for the first time.
        places: int32[B, L], where in `rows` each id first stands.
    """

    rows: jax.Array
    first: jax.Array
    places: jax.Array

    def read(self, table: jax.Array) -> jax.Array:
        """The rows, [U, ...]; what stands for no row is read from the last."""
        return jnp.take(table, self.rows, axis=0, mode="clip")

    def written(self, size: int) -> jax.Array:
        """bool[U], which of `rows` a write to a table of `size` rows changes."""
        return self.first & (self.rows < size)

    def write(self, table: jax.Array, values: jax.Array) -> jax.Array:
        """The table with its rows set to values [U, ...], each to its first one."""
        # What is not to be written goes past the end, to places that differ too.
        past = len(table) + jnp.arange(len(self.rows), dtype=jnp.int32)
        to = jnp.where(self.written(len(table)), self.rows, past)
        return table.at[to].set(values, mode="drop", unique_indices=True)

    def owned(self, size: int, axis_name: str) -> "Distinct":
        """The same rows of a table [size, ...] whose rows are dealt to the devices of a
        mapped axis (see `shards`), as places in this device's part of it.

        Rows of other devices, and no rows, are past the part's end.
        """
        devices = jax.lax.axis_size(axis_name)
        here = self.rows % devices == jax.lax.axis_index(axis_name)
        places = jnp.where(
            here & (self.rows < size), self.rows // devices, -(-size // devices)
        )
        return self._replace(rows=places)

    def read_everywhere(self, part: jax.Array, axis_name: str) -> jax.Array:
        """The rows, [U, ...], each from the device that owns it; zeros for no row."""
        here = (self.rows < len(part))[:, None]
        return jax.lax.psum(jnp.where(here, self.read(part), 0), axis_name)


def distinct(ids: jax.Array, axis_name: str | None = None) -> Distinct:
    """The distinct rows among ids int32[B, L], on all devices of a mapped axis.

    One sort of the ids alone, and a binary search for each: much cheaper on a CPU than
    a sort that carries their places along, and nothing is as long as the table.
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
    """Adam of the rows in a batch; the moments of the others do not decay.

    m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,
    update = m / (1 - b1^t) / (sqrt(v / (1 - b2^t)) + eps),

    with t the step's number and not how often the row has been read, as in PyTorch's
    SparseAdam and TensorFlow's LazyAdam.
    """

    def init(table: Any) -> AdamRows:
        return AdamRows(jnp.zeros_like(table), jnp.zeros_like(table))

    def update(
        grads: Any, state: AdamRows, params: Any = None, *, count: jax.Array
    ) -> tuple[Any, AdamRows]:
        mu = b1 * state.mu + (1 - b1) * grads
        nu = b2 * state.nu + (1 - b2) * jnp.square(grads)
        t = count.astype(jnp.float32)
        scale = jnp.sqrt(nu / (1 - b2**t)) + eps
        return mu / (1 - b1**t) / scale, AdamRows(mu, nu)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


class AdagradRows(NamedTuple):
    """Sum over steps of the mean square of each row's gradient: [N]."""

    total: jax.Array


def scale_by_rowwise_adagrad(
    eps: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """Adagrad with a number a row: a = a + mean_d g_d^2, update = g / (sqrt(a) + eps).

    It keeps 1/D of what Adagrad does, and 1/(2 D) of what Adam does.

    Reference: Mudigere et al., Software-Hardware Co-design for Fast and Scalable
    Training of Deep Learning Recommendation Models, 2021, section 4.1.
    """

    def init(table: Any) -> AdagradRows:
        return AdagradRows(jnp.zeros(len(table), table.dtype))

    def update(
        grads: Any, state: AdagradRows, params: Any = None, *, count: jax.Array
    ) -> tuple[Any, AdagradRows]:
        del count
        total = state.total + jnp.mean(jnp.square(grads), axis=1)
        return grads / (jnp.sqrt(total)[:, None] + eps), AdagradRows(total)

    return optax.GradientTransformationExtraArgs(init, update)  # pyright: ignore[reportArgumentType]


def of_rows(
    embedding: EmbeddingOptimizer,
) -> optax.GradientTransformationExtraArgs | None:
    """The transformation of a batch's rows; None for dense Adam, which has no such."""
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
    """The table, its optimizer state and what was added to the rows, after a step.

    Args:
        distinct_rows: the batch's rows.
        grads: [U, D], of `distinct_rows.read(table)`: the sum over all uses of a row,
            at its first place.
        table: [N, D].
        state: of the whole table.
        count: the step's number, from 1.
        learning_rate: the step size.
        l2: added to the gradient, times the row, once for each row read.
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
        jnp.where(written, updates, 0),
    )
