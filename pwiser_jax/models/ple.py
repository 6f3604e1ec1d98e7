"""PLE: levels of experts, those of each task and shared ones, mixed at each level."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.context import Context
from pwiser_jax.models.features import Features, product, width
from pwiser_jax.models.gates import mix, softmax_gate
from pwiser_jax.models.layers import Blocks, Linear

ALL = ""  # name of the shared experts and their gate; no task has an empty name


class PLE(MultiTaskModel):
    """logit_k = tower_k(g_k of the last level), as in the reference.

    Level j has experts of each task k, which read the task's output g_k of the level
    before, and shared experts, which read the shared output g_s. In the first level all
    read the embedding.

        g_k = Σ softmax(gate_k(previous g_k)) · (experts of k, then shared experts)
        g_s = Σ softmax(gate_s(previous g_s)) · (experts of all tasks, then shared ones)

    The last level has no shared gate, since no layer would read its g_s. A single level
    is CGC.

    Reference: Tang et al., Progressive Layered Extraction (PLE), RecSys 2020,
    equations 1 to 8.
    """

    reads = ("levels", "shared_experts", "task_experts")

    def features(self, inputs, context):
        sizes = self.config
        shared = self.embed("embedding", inputs, context)
        tasks: dict[str, Any] = dict.fromkeys(self.heads, shared)
        for i, hidden in enumerate(sizes.levels):
            level = ExtractionLevel(
                hidden=hidden,
                task_experts=sizes.task_experts,
                shared_experts=sizes.shared_experts,
                dropout=sizes.dropout,
                last=i == len(sizes.levels) - 1,
                blocks=self.blocks,
                name=f"level_{i}",
            )
            tasks, shared = level(tasks, shared, context)
        return jnp.stack(list(tasks.values()))

    def owner(self, path):
        # Below the last level a shared gate mixes all experts.
        last = f"level_{len(self.config.levels) - 1}"
        if len(path) > 1 and path[1].startswith("experts_") and path[0] != last:
            return None
        return super().owner(path)


class ExtractionLevel(nn.Module):
    """Computes a level's (g_k by task, g_s) from those of the level before.

    The last level returns its input g_s unchanged.
    """

    hidden: tuple[int, ...]
    task_experts: int
    shared_experts: int
    dropout: float
    last: bool
    blocks: type[Blocks] = Blocks

    @nn.compact
    def __call__(
        self,
        tasks: dict[str, jax.Array | Features],
        shared: jax.Array | Features,
        context: Context,
    ) -> tuple[dict[str, jax.Array], jax.Array | Features]:
        def experts(name: str, count: int, x: jax.Array | Features) -> jax.Array:
            return self.blocks(self.hidden, self.dropout, count, name=name)(x, context)

        groups = {
            task: experts(f"experts_{task}", self.task_experts, x)
            for task, x in tasks.items()
        }
        groups[ALL] = experts("shared_experts", self.shared_experts, shared)
        # The groups that each gate mixes, in the order of its columns.
        reads: dict[str, Sequence[str]] = {task: (task, ALL) for task in tasks}
        if not self.last:
            reads[ALL] = tuple(groups)
        gates = {
            gate: self._gate(
                gate,
                tasks.get(gate, shared),
                {group: len(groups[group]) for group in read},
                context,
            )
            for gate, read in reads.items()
        }
        mixed: dict[str, Any] = mix(gates, groups)
        return {task: mixed[task] for task in tasks}, mixed.get(ALL, shared)

    def _gate(
        self,
        gate: str,
        x: jax.Array | Features,
        sizes: Mapping[str, int],
        context: Context,
    ) -> dict[str, jax.Array]:
        """Returns a gate's weights of the experts of each group, [B, E_g] each."""
        name = f"gate_{gate}" if gate else "shared_gate"
        layer = Linear(sum(sizes.values()), name=name)(width(x))
        scores = product(x, layer, context.dtype)
        weights = softmax_gate(self, gate or "shared", scores)
        parts = jnp.split(weights, np.cumsum([*sizes.values()])[:-1], axis=1)
        return dict(zip(sizes, parts, strict=True))
