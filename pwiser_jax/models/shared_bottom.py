"""SharedBottom: the towers of all tasks read one shared representation."""

from pwiser_jax.models.base import MultiTaskModel


class SharedBottom(MultiTaskModel):
    """logit_k = tower_k(bottom(embedding(x))).

    Reference: Caruana, Multitask Learning, 1997.
    """

    reads = ("bottom",)

    def features(self, inputs, context):
        sizes = self.config
        z = self.embed("embedding", inputs, context)
        return self.blocks(sizes.bottom, sizes.dropout, name="bottom")(z, context)
