"""From the columns of a batch to one vector a row."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pwiser_jax.data.schema import Schema
from pwiser_jax.models.context import Context
from pwiser_jax.models.layers import Linear


def table_offsets(schema: Schema) -> np.ndarray:
    """The table's first row of each categorical field: int32[F]."""
    rows = [field.rows for field in schema.categorical]
    return np.cumsum([0, *rows[:-1]]).astype(np.int32)


def own_rows(schema: Schema) -> np.ndarray:
    """bool[rows of the table]: True for a field's own ids, False for reserved ones."""
    return np.concatenate([np.arange(f.rows) < f.size for f in schema.categorical])


class Embedding(nn.Module):
    """All fields side by side: [B, (F + 1) * dim], or F * dim without numericals.

    Categorical fields share one table, each with an offset. Its own rows start Xavier
    uniform, ±sqrt(6 / (own rows of all fields + dim)); the reserved rows (missing,
    unseen, rare) start at zero, so that what train never showed adds nothing rather
    than noise. The numerical columns together are one more field, the last: a Linear on
    the whole vector. Ids are taken on trust: `data` wrote them.
    """

    schema: Schema
    dim: int

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array], context: Context) -> jax.Array:
        fields = []
        if self.schema.categorical:
            own = own_rows(self.schema)
            table = self.param("table", _xavier(own), (len(own), self.dim))
            ids = inputs["categorical"] + table_offsets(self.schema)[None, :]
            embedded = jnp.take(table, ids, axis=0, mode="clip")
            fields.append(embedded.reshape(len(ids), -1))
        if self.schema.numerical:
            x = inputs["numerical"]
            if context.mask is not None:
                # A NaN in padding would reach the kernel's gradient as 0 * NaN.
                x = jnp.where(context.mask[:, None], x, 0)
            fields.append(Linear(self.dim, name="numerical")(x))
        return jnp.concatenate(fields, axis=-1)


def _xavier(own: np.ndarray) -> nn.initializers.Initializer:
    def start(key, shape, dtype=jnp.float32, out_sharding=None):
        bound = math.sqrt(6 / (int(own.sum()) + shape[1]))
        table = jax.random.uniform(key, shape, dtype, -bound, bound)
        return jnp.where(own[:, None], table, 0)

    return start
