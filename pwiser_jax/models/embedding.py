"""Embeds the columns of a batch."""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pwiser_jax.models.context import Context
from pwiser_jax.models.features import Feature, Features, product
from pwiser_jax.models.layers import Linear
from pwiser_jax.models.layout import Layout, own_rows
from pwiser_jax.models.start import uniform
from pwiser_jax.schema import Pool


class Embedding(nn.Module):
    """Concatenates the embeddings of all fields, dim each: z [B, (F + V + 1) * dim].

    F categorical fields, then V multi-valued ones, then, if there are any, one Linear
    of all numerical columns. z is returned as `Features`: small fields as one-hot
    vectors with their rows of the table `small`, large fields as rows of the table
    `large` (see `Layout`).

    The rows of a field's own ids start Xavier uniform, ±sqrt(6 / (own ids of all fields
    + dim)). Reserved rows (missing, unseen, rare) start at zero, so values that are not
    in train add no noise. Ids are not checked. With `zeros`, everything starts at zero.

    In place of the ids of large fields, inputs["large_rows"] int32[B, L] may give the
    rows of the table in the parameters, which then may hold only the rows that this
    batch reads (columns as in `Layout.large_rows`).
    """

    layout: Layout
    dim: int
    zeros: bool = False

    @nn.compact
    def __call__(self, inputs: Mapping[str, jax.Array], context: Context) -> Features:
        layout, schema = self.layout, self.layout.schema
        singles = self._large(inputs, context) if layout.large else {}
        hot = self._one_hot(inputs) if layout.small else {}
        parts = [
            Feature(hot[field.name], True)
            if field.name in hot
            else Feature(singles[field.name])
            for field in schema.categorical
        ]
        parts += [Feature(singles[field.name]) for field in schema.multi_valued]
        small = self._table("small", layout.small) if layout.small else None
        vectors = None
        if schema.numerical:
            x = context.zero_padding(inputs["numerical"], 0)
            linear = Linear(self.dim, zeros=self.zeros, name="numerical")(x.shape[1])
            if layout.factored:
                ones = jnp.ones((x.shape[0], 1))
                parts.append(Feature(jnp.concatenate([x, ones], axis=1), True))
                vectors = jnp.concatenate([linear.kernel, linear.bias[None]])
            else:
                parts.append(Feature(product(x, linear, context.dtype)))
        return Features.of(parts, small, vectors)

    def _one_hot(self, inputs: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        """The one-hot vectors [B, rows] of each small field, by name."""
        fields, categorical = self.layout.small, self.layout.schema.categorical
        sizes = [field.rows for field in fields]
        # One comparison for all fields: each would be a kernel.
        columns = np.repeat([categorical.index(field) for field in fields], sizes)
        rows = np.concatenate([np.arange(size) for size in sizes])
        hot = (
            jnp.take(inputs["categorical"], columns, axis=1, mode="clip") == rows[None]
        )
        several = jnp.split(hot.astype(jnp.float32), np.cumsum(sizes)[:-1], axis=1)
        return dict(zip((field.name for field in fields), several, strict=True))

    def _large(
        self, inputs: Mapping[str, jax.Array], context: Context
    ) -> dict[str, jax.Array]:
        """The vectors [B, dim] of each large field, by name."""
        layout = self.layout
        if "large_rows" in inputs:
            # `param` would raise: the table may have fewer rows than the layout.
            table = self.get_variable("params", "large")
            rows = inputs["large_rows"]
        else:
            table = self._table("large", layout.large)
            rows = layout.large_rows(inputs)
        vectors = jnp.take(table, rows, axis=0, mode="clip")
        multi_valued = layout.schema.multi_valued
        singles = [field for field in layout.large if field not in multi_valued]
        widths = [1] * len(singles) + [field.width for field in multi_valued]
        # One split: the gradient of each slice would have the size of the whole array.
        by_field = jnp.split(vectors, np.cumsum(widths)[:-1], axis=1)
        fields = {f.name: v[:, 0] for f, v in zip(singles, by_field, strict=False)}
        start = 0
        for field, several in zip(multi_valued, by_field[len(singles) :], strict=True):
            columns = slice(start, start + field.width)
            weights = context.zero_padding(inputs["multi_weights"][:, columns], 0)
            fields[field.name] = pool(several, weights, field.pool)
            start += field.width
        return fields

    def _table(self, name: str, fields: tuple) -> jax.Array:
        ids = sum(field.size for field in self.layout.schema.embedded)
        has_id = own_rows(fields)
        shape = len(has_id), self.dim
        if self.zeros:
            return self.param(name, nn.initializers.zeros, shape)
        return uniform(self, name, shape, math.sqrt(6 / (ids + self.dim)), has_id)


def pool(vectors: jax.Array, weights: jax.Array, how: Pool) -> jax.Array:
    """Pools vectors [B, W, dim] by weights [B, W]: sum_j w_j e_j, [B, dim].

    "mean" divides by sum_j w_j. Padding has weight 0 and affects neither value nor
    gradient; a row whose weights are all 0 gives zeros.
    """
    total = jnp.einsum("bw,bwd->bd", weights, vectors)
    if how == "sum":
        return total
    weight = jnp.sum(weights, axis=1, keepdims=True)
    return total / jnp.where(weight == 0, 1, weight)
