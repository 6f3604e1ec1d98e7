"""MMoE: a gate for each task mixes shared experts."""

import jax.numpy as jnp

from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.features import product, width
from pwiser_jax.models.gates import mixtures, softmax_gate
from pwiser_jax.models.layers import Linear


class MMoE(MultiTaskModel):
    """logit_k = tower_k(Σ_e softmax(gate_k(z))_e expert_e(z)), z = embedding(x).

    Reference: Ma et al., Modeling Task Relationships in Multi-task Learning with
    Multi-gate Mixture-of-Experts, KDD 2018, equations 6 and 7.
    """

    stacked = ("towers", "gates")
    reads = ("expert", "experts")

    def features(self, inputs, context):
        sizes = self.config
        z = self.embed("embedding", inputs, context)
        experts = self.blocks(
            sizes.expert, sizes.dropout, sizes.experts, name="experts"
        )
        outputs = experts(z, context)
        layer = Linear(sizes.experts, len(self.heads), name="gates")(width(z))
        scores = product(z, layer, context.dtype)
        weights = [
            softmax_gate(self, head, scores[:, k]) for k, head in enumerate(self.heads)
        ]
        return mixtures(jnp.stack(weights), outputs)
