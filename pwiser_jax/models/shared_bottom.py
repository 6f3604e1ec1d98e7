"""SharedBottom: all tasks read one representation."""

from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.embedding import Embedding
from pwiser_jax.models.layers import Blocks


class SharedBottom(MultiTaskModel):
    """logit_k = tower_k(bottom(embedding(x))).

    Reference: Caruana, Multitask Learning, 1997.
    """

    def features(self, inputs, context):
        sizes = self.config
        embed = Embedding(self.schema, sizes.embedding_dim, name="embedding")
        bottom = Blocks(sizes.bottom, sizes.dropout, name="bottom")
        shared = bottom(embed(inputs, context), context)
        return dict.fromkeys(self.heads, shared)
