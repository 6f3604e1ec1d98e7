"""From the columns of a batch to one vector a row."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pwiser_jax.data.schema import Pool, Schema
from pwiser_jax.models.context import Context
from pwiser_jax.models.layers import Linear


def table_offsets(schema: Schema) -> np.ndarray:
    """The table's first row of each field with ids: int32[F + V]."""
    rows = [field.rows for field in schema.embedded]
    return np.cumsum([0, *rows[:-1]]).astype(np.int32)


def own_rows(schema: Schema) -> np.ndarray:
    """bool[rows of the table]: True for a field's own ids, False for reserved ones."""
    return np.concatenate([np.arange(f.rows) < f.size for f in schema.embedded])


class Embedding(nn.Module):
    """All fields side by side, dim wide each: [B, (F + V + 1) * dim].

    F categorical fields, then V multi-valued ones, then, if there are any, the
    numerical columns together: a Linear on the whole vector. Fields with ids share one
    table, each with an offset: one lookup serves all, and a field is a slice of it. Own
    rows start Xavier uniform, ±sqrt(6 / (own rows of all fields + dim)); the reserved
    rows (missing, unseen, rare) start at zero, so that what train never showed adds
    nothing rather than noise. Ids are taken on trust: `data` wrote them.
    """

    schema: Schema
    dim: int

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array], context: Context) -> jax.Array:
        schema, fields = self.schema, []
        if schema.embedded:
            own, offsets = own_rows(schema), table_offsets(schema)
            table = self.param("table", _xavier(own), (len(own), self.dim))
            single = len(schema.categorical)
            if single:
                ids = inputs["categorical"] + offsets[None, :single]
                fields.append(_rows(table, ids).reshape(len(ids), -1))
            fields += _multi_valued(table, offsets[single:], schema, inputs, context)
        if schema.numerical:
            x = _of_real_rows(inputs["numerical"], context)
            fields.append(Linear(self.dim, name="numerical")(x))
        return jnp.concatenate(fields, axis=-1)


def pool(vectors: jax.Array, weights: jax.Array, how: Pool) -> jax.Array:
    """[B, W, dim] and [B, W] -> [B, dim]: sum_j w_j e_j, "mean" divides by sum_j w_j.

    Weights of 0, as padding has, leave their vectors out, with a gradient of 0; rows
    without any other weight give zeros.
    """
    total = jnp.einsum("bw,bwd->bd", weights, vectors)
    if how == "sum":
        return total
    weight = jnp.sum(weights, axis=1, keepdims=True)
    return total / jnp.where(weight == 0, 1, weight)


def _multi_valued(
    table: jax.Array,
    offsets: np.ndarray,
    schema: Schema,
    inputs: Mapping[str, jax.Array],
    context: Context,
) -> list[jax.Array]:
    pooled, start = [], 0
    for field, offset in zip(schema.multi_valued, offsets, strict=True):
        columns = slice(start, start + field.width)
        start += field.width
        vectors = _rows(table, inputs["multi_ids"][:, columns] + offset)
        weights = _of_real_rows(inputs["multi_weights"][:, columns], context)
        pooled.append(pool(vectors, weights, field.pool))
    return pooled


def _rows(table: jax.Array, ids: jax.Array) -> jax.Array:
    return jnp.take(table, ids, axis=0, mode="clip")


def _of_real_rows(x: jax.Array, context: Context) -> jax.Array:
    """x [B, ...] with 0 in padding: a NaN there would reach gradients as 0 * NaN."""
    return x if context.mask is None else jnp.where(context.mask[:, None], x, 0)


def _xavier(own: np.ndarray) -> nn.initializers.Initializer:
    def start(key, shape, dtype=jnp.float32, out_sharding=None):
        bound = math.sqrt(6 / (int(own.sum()) + shape[1]))
        table = jax.random.uniform(key, shape, dtype, -bound, bound)
        return jnp.where(own[:, None], table, 0)

    return start
