"""What the four models share: inputs in, a tower a task, logits by name out."""

from collections.abc import Mapping

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from pwiser_jax.models.config import ModelConfig
from pwiser_jax.models.context import Context
from pwiser_jax.models.embedding import Embedding
from pwiser_jax.models.heads import joint_logits
from pwiser_jax.models.layers import Towers
from pwiser_jax.models.layout import layout
from pwiser_jax.models.product import Features
from pwiser_jax.schema import Schema
from pwiser_jax.tasks import heads


class MultiTaskModel(nn.Module):
    """A model with one tower a head; a subclass says what each tower reads.

    Attributes:
        config: the sizes.
        schema: the fields and labels.
        axis_name: of pmap or shard_map, where several devices share a batch.
    """

    config: ModelConfig
    schema: Schema
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self,
        inputs: Mapping[str, jax.Array],
        *,
        train: bool,
        mask: jax.Array | None = None,
        rows: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Logits f32[B] by task name: the heads, then joint tasks (see joint_logits).

        Args:
            inputs: "categorical" int[B, F] and "numerical" f32[B, M]; F or M may be 0.
                With multi-valued fields also "multi_ids" int[B, W] and "multi_weights"
                f32[B, W], the fields side by side; padding has weight 0.
            train: batch statistics and dropout (rng "dropout"), or running statistics.
            mask: bool[B], False for padding rows, which may hold anything and change
                no other row; their own logits mean nothing.
            rows: uint32[B], each row's position in the batch of all devices; the
                row's dropout depends on it. Counted from 0 if not given.

        Raises:
            AssertionError: a shape or dtype that does not fit the schema.
        """
        self._check(inputs, mask, rows)
        context = Context(
            train, mask, rows, self.axis_name, jnp.dtype(self.config.compute)
        )
        features = self.features(inputs, context)
        sizes = self.config
        towers = Towers(len(self.heads), sizes.tower, sizes.dropout, name="towers")
        logits = dict(zip(self.heads, towers(features, context), strict=True))
        return joint_logits(logits, self.schema.labels, self.config.cvr_space)

    def features(
        self, inputs: Mapping[str, jax.Array], context: Context
    ) -> jax.Array | Features:
        """What all towers read, [B, D], or each of them, [T, B, D]."""
        raise NotImplementedError

    def embed(
        self, name: str, inputs: Mapping[str, jax.Array], context: Context
    ) -> Features:
        """z of an embedding of this name; see `Embedding`."""
        dim = self.config.embedding_dim
        embedding = Embedding(layout(self.config, self.schema), dim, name=name)
        return embedding(inputs, context)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the heads, in the ladder's order."""
        return tuple(t.name for t in heads(self.schema.labels, self.config.cvr_space))

    def _check(self, inputs, mask, rows) -> None:
        batch = len(inputs["categorical"])
        expected = (
            ("categorical", len(self.schema.categorical), jnp.integer),
            ("numerical", len(self.schema.numerical), jnp.floating),
        )
        if self.schema.multi_valued:
            width = self.schema.multi_width
            expected += (
                ("multi_ids", width, jnp.integer),
                ("multi_weights", width, jnp.floating),
            )
        for name, columns, kind in expected:
            message = f"inputs[{name!r}] of a schema with {columns} such columns"
            _check_array(inputs[name], (batch, columns), kind, message)
        if mask is not None:
            _check_array(mask, (batch,), bool, "mask")
        if rows is not None:
            _check_array(rows, (batch,), jnp.uint32, "rows")


def _check_array(x, shape: tuple[int, ...], kind, message: str) -> None:
    chex.assert_shape(x, shape, custom_message=message)
    chex.assert_type(x, kind, custom_message=message)
