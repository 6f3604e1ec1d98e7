"""AITM: each task passes information to the next task of the conversion funnel."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.context import Context
from pwiser_jax.models.features import product
from pwiser_jax.models.layers import Linear


class AITM(MultiTaskModel):
    """logit_k = tower_k(z_k); z_k mixes the task's own q_k and p_k from task k - 1.

        q_k = bottom_k(embedding(x)),   z_1 = q_1,   p_k = info_k(z_{k-1})
        z_k = w_q h1(q_k) + w_p h1(p_k)
        w   = softmax of <h2(u), h3(u)> / sqrt(d) over u in {q_k, p_k}

    h1, h2 and h3 are linear layers, separate for each k; info_k is one hidden layer; d
    is the last width of `bottom`. The paper adds a constraint to the loss:
    `label_constraint_loss`.

    Reference: Xi et al., Modeling the Sequential Dependence among Audience Multi-step
    Conversions with Multi-task Learning in Targeted Display Advertising, KDD 2021,
    https://arxiv.org/abs/2105.08489
    """

    reads = ("bottom",)

    def features(self, inputs, context):
        sizes = self.config
        if not sizes.bottom:
            raise ValueError(
                "model.bottom must name at least one hidden layer for AITM"
            )
        z = self.embed("embedding", inputs, context)
        bottoms = self.blocks(
            sizes.bottom, sizes.dropout, len(self.heads), name="bottoms"
        )
        first, *others = bottoms(z, context)
        outputs = [first]
        for head, hidden in zip(self.heads[1:], others, strict=True):
            info = self.blocks(sizes.bottom[-1:], sizes.dropout, name=f"info_{head}")
            received = info(outputs[-1], context)
            outputs.append(self._transfer(head, hidden, received, context))
        return jnp.stack(outputs)

    def towers_reading(self, path, ndim):
        # What a task knows is handed on to all later ones.
        towers = super().towers_reading(path, ndim)
        if path[0] == "bottoms":
            count = len(self.heads)
            return np.tri(count, dtype=bool).reshape(count, count, *(1,) * (ndim - 1))
        if path[0].startswith(("info_", "transfer_")):
            return np.logical_or.accumulate(towers)
        return towers

    def _transfer(
        self, head: str, hidden: jax.Array, received: jax.Array, context: Context
    ) -> jax.Array:
        """z_k [B, d] from q_k and p_k."""
        width = hidden.shape[-1]
        layer = Linear(width, 3, name=f"transfer_{head}")(width)
        h1, h2, h3 = jnp.stack(
            [product(u, layer, context.dtype) for u in (hidden, received)], axis=1
        ).transpose(2, 0, 1, 3)  # [B, 2, d] each
        weights = nn.softmax(jnp.sum(h2 * h3, axis=-1) / math.sqrt(width))
        return jnp.sum(weights[..., None] * h1, axis=1)
