"""SharedBottom: all tasks read one representation."""

from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.layers import Blocks


class SharedBottom(MultiTaskModel):
    """logit_k = tower_k(bottom(embedding(x))).

    Reference: Caruana, Multitask Learning, 1997.
    """

    def features(self, inputs, context):
        sizes = self.config
        z = self.embed("embedding", inputs, context)
        return Blocks(sizes.bottom, sizes.dropout, name="bottom")(z, context)
