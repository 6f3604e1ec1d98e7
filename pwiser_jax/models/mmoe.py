"""MMoE: each task mixes the same experts in its own way, row by row."""

from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.embedding import Embedding
from pwiser_jax.models.layers import Blocks, Linear, Mix


class MMoE(MultiTaskModel):
    """logit_k = tower_k(Σ_e softmax(gate_k(z))_e expert_e(z)), z = embedding(x).

    Reference: Ma et al., Modeling Task Relationships in Multi-task Learning with
    Multi-gate Mixture-of-Experts, KDD 2018, equations 6 and 7.
    """

    def features(self, inputs, context):
        sizes = self.config
        embed = Embedding(self.schema, sizes.embedding_dim, name="embedding")
        z = embed(inputs, context)
        experts = Blocks(sizes.expert, sizes.dropout, sizes.experts, name="experts")
        expert_outputs = experts(z, context)
        gates = {
            head: Linear(sizes.experts, name=f"gate_{head}")(z) for head in self.heads
        }
        return {
            head: Mix(name=f"mix_{head}")(gate, expert_outputs)
            for head, gate in gates.items()
        }
