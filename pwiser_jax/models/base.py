"""The base class of models: from a batch of inputs to logits by name."""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pwiser_jax.models.config import ModelConfig
from pwiser_jax.models.context import Context
from pwiser_jax.models.embedding import Embedding
from pwiser_jax.models.features import Features
from pwiser_jax.models.heads import both_logits, joint_logits
from pwiser_jax.models.layers import Blocks, Towers
from pwiser_jax.models.layout import layout
from pwiser_jax.schema import Schema
from pwiser_jax.tasks import IMPUTATION, heads


class MultiTaskModel(nn.Module):
    """A model with a tower for each head; a subclass defines what the towers read.

    Attributes:
        config: the sizes.
        schema: the fields and labels.
        axis_name: the mapped axis over whose devices a batch is split.
        blocks: what hidden layers are made of; a benchmark's subclass has others.
        stacked: names of parameters with a first axis of towers.
        reads: the sizes that not every model has, of those that this one reads; None:
            not known.
    """

    config: ModelConfig
    schema: Schema
    axis_name: str | None = None
    blocks: ClassVar[type[Blocks]] = Blocks
    stacked: ClassVar[tuple[str, ...]] = ("towers",)
    reads: ClassVar[tuple[str, ...] | None] = None

    @nn.compact
    def __call__(
        self,
        inputs: Mapping[str, jax.Array],
        *,
        train: bool,
        mask: jax.Array | None = None,
        rows: jax.Array | None = None,
    ) -> dict[str, jax.Array]:
        """Computes logits by task name, f32[B] each.

        Args:
            inputs: "categorical" int[B, F] and "numerical" f32[B, M]; F or M may be 0.
                With multi-valued fields also "multi_ids" int[B, W] and "multi_weights"
                f32[B, W], the fields side by side; padding has weight 0. B may be
                symbolic (`jax.export`).
            train: use batch statistics and dropout (rng "dropout"), not running
                statistics.
            mask: bool[B], False for padding rows. They may hold any values and change
                no other row; their own logits are meaningless.
            rows: uint32[B], the position of each row in the batch of all devices, on
                which its dropout depends; default 0 .. B - 1.

        Returns:
            The logit of each head, then of each joint task (see `joint_logits`). With
            `config.two_logits`, in training, also the two logits f32[B, 2] of each
            head, under `both_logits(head)`. In the space "escm2_dr", in training, also
            that of its imputation tower, under `tasks.IMPUTATION`.

        Raises:
            AssertionError: a shape or dtype does not fit the schema.
        """
        self._check(inputs, mask, rows)
        context = Context(
            train, mask, rows, self.axis_name, jnp.dtype(self.config.compute)
        )
        features = self.features(inputs, context)
        sizes = self.config
        outputs = Towers(
            len(self.heads),
            sizes.tower,
            sizes.dropout,
            outputs=2 if sizes.two_logits else 1,
            blocks=self.blocks,
            name="towers",
        )(features, context)
        if sizes.wide:
            # To the last logit alone: of two logits only the difference is calibrated.
            outputs = outputs.at[..., -1].add(self._wide_logits(inputs, context))
        logits = outputs[..., 0]
        if sizes.two_logits:
            logits = outputs[..., 1] - logits
        by_tower = dict(zip(self.heads, logits, strict=True))
        result = joint_logits(by_tower, self.schema.labels, sizes.cvr_space)
        if not train:
            result.pop(IMPUTATION, None)
        if sizes.two_logits and train:
            names = map(both_logits, self.heads)
            result = result | dict(zip(names, outputs, strict=True))
        return result

    def features(
        self, inputs: Mapping[str, jax.Array], context: Context
    ) -> jax.Array | Features:
        """The input of the towers: one for all, [B, D], or one each, [T, B, D]."""
        raise NotImplementedError

    def embed(
        self, name: str, inputs: Mapping[str, jax.Array], context: Context
    ) -> Features:
        """Embeds the inputs by an `Embedding` of this name."""
        dim = self.config.embedding_dim
        embedding = Embedding(layout(self.config, self.schema), dim, name=name)
        return embedding(inputs, context)

    def _wide_logits(
        self, inputs: Mapping[str, jax.Array], context: Context
    ) -> jax.Array:
        """The linear part: Σ of the weights of a row's ids and columns, [T, B]."""
        tasks = len(self.heads)
        tables = layout(self.config, self.schema)
        weights = Embedding(tables, tasks, zeros=True, name="wide")(inputs, context)
        by_field = weights.concatenated()
        return by_field.reshape(by_field.shape[0], -1, tasks).sum(axis=1).T

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the towers: the heads in the ladder's order, then an imputation."""
        space = self.config.cvr_space
        names = tuple(task.name for task in heads(self.schema.labels, space))
        return (*names, IMPUTATION) if space == "escm2_dr" else names

    def shared_by(self, params: Any, tasks: Sequence[Collection[str]]) -> Any:
        """Which parameters two tasks or more depend on: bool, broadcast to each leaf.

        Args:
            params: the parameters, or a tree like them.
            tasks: the towers that each task reads.
        """
        reads = np.array([[head in names for head in self.heads] for names in tasks])

        def of_leaf(path: tuple[Any, ...], leaf: jax.Array) -> np.ndarray:
            names = tuple(key.key for key in path)
            towers = self.towers_reading(names, leaf.ndim)
            readers = np.tensordot(reads.astype(int), towers.astype(int), 1) > 0
            return readers.sum(axis=0) > 1

        return jax.tree.map_with_path(of_leaf, params)

    def towers_reading(self, path: tuple[str, ...], ndim: int) -> np.ndarray:
        """Which towers depend on a parameter: bool[T, ...], ... broadcast to its shape.

        By names: parameters in `stacked` are one for each tower, a name that ends in
        _HEAD is that head's own, and all others are read by all. A model in which that
        is not so has a method of its own.
        """
        count = len(self.heads)
        own = np.eye(count, dtype=bool)
        if path[0] in self.stacked:
            return own.reshape(count, count, *(1,) * (ndim - 1))
        if path[0] == "wide":
            return own.reshape(count, *(1,) * (ndim - 1), count)
        head = self.owner(path)
        towers = np.ones(count, bool) if head is None else own[self.heads.index(head)]
        return towers.reshape(count, *(1,) * ndim)

    def owner(self, path: tuple[str, ...]) -> str | None:
        """The head whose name ends one of a parameter's names, the longest one."""
        ends = [h for h in self.heads if any(name.endswith(f"_{h}") for name in path)]
        return max(ends, key=len, default=None)

    def _check(self, inputs, mask, rows) -> None:
        batch = inputs["categorical"].shape[0]
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
