"""SingleTask: a network for each task, with nothing shared."""

import jax.numpy as jnp

from pwiser_jax.models.base import MultiTaskModel


class SingleTask(MultiTaskModel):
    """logit_k = tower_k(bottom_k(embedding_k(x))): the baseline of separate models."""

    reads = ("bottom",)

    def features(self, inputs, context):
        sizes = self.config
        features = []
        for head in self.heads:
            z = self.embed(f"embedding_{head}", inputs, context)
            bottom = self.blocks(sizes.bottom, sizes.dropout, name=f"bottom_{head}")
            features.append(bottom(z, context))
        return jnp.stack(features)
