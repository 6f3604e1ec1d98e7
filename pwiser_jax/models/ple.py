"""PLE: levels of experts, some of one task and some shared, mixed level by level."""

from typing import Any

import jax
from flax import linen as nn

from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.context import Context
from pwiser_jax.models.layers import Blocks, Linear, Mix
from pwiser_jax.models.product import Features, product, width


class PLE(MultiTaskModel):
    """logit_k = tower_k(g_k of the last level), as in the reference.

    Level j has experts of each task k, which read the task's output g_k of the level
    before, and shared experts, which read the shared output g_s. In the first level all
    read the embedding.

        g_k = Σ softmax(gate_k(previous g_k)) · (experts of k, then shared experts)
        g_s = Σ softmax(gate_s(previous g_s)) · (experts of all tasks, then shared ones)

    Nothing would read g_s of the last level: it has no shared gate. One level is CGC.

    Reference: Tang et al., Progressive Layered Extraction (PLE), RecSys 2020,
    equations 1 to 8.
    """

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
                name=f"level_{i}",
            )
            tasks, shared = level(tasks, shared, context)
        return tasks


class ExtractionLevel(nn.Module):
    """(g_k by task, g_s) of one level from those of the one before.

    The last level returns the g_s that it was given.
    """

    hidden: tuple[int, ...]
    task_experts: int
    shared_experts: int
    dropout: float
    last: bool

    @nn.compact
    def __call__(
        self,
        tasks: dict[str, jax.Array | Features],
        shared: jax.Array | Features,
        context: Context,
    ) -> tuple[dict[str, jax.Array], jax.Array | Features]:
        def experts(name: str, count: int, x: jax.Array | Features) -> jax.Array:
            return Blocks(self.hidden, self.dropout, count, name=name)(x, context)

        of_task = {
            task: experts(f"experts_{task}", self.task_experts, x)
            for task, x in tasks.items()
        }
        of_all = experts("shared_experts", self.shared_experts, shared)

        def gated(
            gate: str, mix: str, x: jax.Array | Features, *groups: jax.Array
        ) -> jax.Array:
            layer = Linear(sum(len(group) for group in groups), name=gate)(width(x))
            return Mix(name=mix)(product(x, layer, context.dtype), *groups)

        mixed = {
            task: gated(f"gate_{task}", f"mix_{task}", x, of_task[task], of_all)
            for task, x in tasks.items()
        }
        if self.last:
            return mixed, shared
        everything = (*of_task.values(), of_all)
        return mixed, gated("shared_gate", "shared_mix", shared, *everything)
