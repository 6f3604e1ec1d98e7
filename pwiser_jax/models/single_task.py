"""SingleTask: one network a task, nothing shared."""

from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.embedding import Embedding
from pwiser_jax.models.layers import Blocks


class SingleTask(MultiTaskModel):
    """logit_k = tower_k(bottom_k(embedding_k(x))): the baseline of separate models."""

    def features(self, inputs, context):
        sizes, schema = self.config, self.schema
        features = {}
        for head in self.heads:
            embed = Embedding(schema, sizes.embedding_dim, name=f"embedding_{head}")
            bottom = Blocks(sizes.bottom, sizes.dropout, name=f"bottom_{head}")
            features[head] = bottom(embed(inputs, context), context)
        return features
