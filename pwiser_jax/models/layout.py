"""The embedding table of each field, `small` or `large`, and its rows there."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import jax
import jax.numpy as jnp
import numpy as np

from pwiser_jax.models.config import ModelConfig
from pwiser_jax.schema import CategoricalField, MultiValuedField, Schema

Field = CategoricalField | MultiValuedField


@dataclass(frozen=True)
class Layout:
    """The rows of each field in two embedding tables, `small` and `large`.

    A categorical field of at most `limit` rows, reserved ones included, is small: a
    layer multiplies its table once a batch, not the vector of each row. Multi-valued
    fields are large.

    Attributes:
        schema: the fields.
        limit: maximum number of rows of a small field.
        factored: whether layers multiply the numerical layer's weights once a batch.
    """

    schema: Schema
    limit: int
    factored: bool

    def is_small(self, field: Field) -> bool:
        return isinstance(field, CategoricalField) and field.rows <= self.limit

    @cached_property
    def small(self) -> tuple[Field, ...]:
        """Fields in the table `small`, in its order: the schema's."""
        return tuple(field for field in self.schema.embedded if self.is_small(field))

    @cached_property
    def large(self) -> tuple[Field, ...]:
        """Fields in the table `large`, in its order: the schema's."""
        return tuple(f for f in self.schema.embedded if not self.is_small(f))

    @cached_property
    def places(self) -> dict[str, int]:
        """The first row of each field in its table, by the field's name."""
        places = {}
        for fields in (self.small, self.large):
            starts = np.cumsum([0, *(field.rows for field in fields)])
            names = (field.name for field in fields)
            places |= dict(zip(names, starts[:-1].tolist(), strict=True))
        return places

    @property
    def large_size(self) -> int:
        """The number of rows of `large`."""
        return sum(field.rows for field in self.large)

    def large_rows(self, inputs: Mapping[str, jax.Array]) -> jax.Array:
        """The rows of `large` that each row of a batch reads: int32[B, L].

        One column for each large categorical field, then those of multi-valued fields.
        """
        singles = [
            inputs["categorical"][:, i] + np.int32(self.places[field.name])
            for i, field in enumerate(self.schema.categorical)
            if not self.is_small(field)
        ]
        several = [
            np.full(field.width, self.places[field.name], np.int32)
            for field in self.schema.multi_valued
        ]
        columns = [jnp.stack(singles, axis=1)] if singles else []
        if several:
            columns.append(inputs["multi_ids"] + np.concatenate(several)[None, :])
        if not columns:
            return jnp.zeros((inputs["categorical"].shape[0], 0), jnp.int32)
        return jnp.concatenate(columns, axis=1)


def layout(config: ModelConfig, schema: Schema) -> Layout:
    """Returns the layout of a model's tables."""
    limit = config.small_rows
    limit = config.embedding_dim if limit is None else limit
    return Layout(schema, limit, 0 < len(schema.numerical) < limit)


def own_rows(fields: tuple[Field, ...]) -> np.ndarray:
    """bool[rows of a table]: True for the fields' own ids, False for reserved ones."""
    return np.concatenate([np.arange(f.rows) < f.size for f in fields] or [[]]) > 0
