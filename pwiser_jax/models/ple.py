"""PLE: levels of experts, some of one task and some shared, mixed level by level."""

from typing import Any

import jax
from flax import linen as nn

from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.context import Context
from pwiser_jax.models.layers import Blocks, Linear, Mix
from pwiser_jax.models.product import Features, Weights, product, width


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
        # Each reads its own input; in the first level all inputs are one.
        readers: dict[str, jax.Array | Features] = {}
        experts: dict[str, Blocks] = {}
        first: dict[str, Weights] = {}

        def reads(name: str, x: jax.Array | Features, layer: Weights) -> None:
            readers[name], first[name] = x, layer

        def add_experts(name: str, count: int, x: jax.Array | Features) -> None:
            experts[name] = Blocks(self.hidden, self.dropout, count, name=name)
            reads(name, x, experts[name].first(width(x)))

        def add_gate(name: str, count: int, x: jax.Array | Features) -> None:
            reads(name, x, Linear(count, name=name)(width(x)))

        for task, x in tasks.items():
            add_experts(f"experts_{task}", self.task_experts, x)
            add_gate(f"gate_{task}", self.task_experts + self.shared_experts, x)
        add_experts("shared_experts", self.shared_experts, shared)
        if not self.last:
            count = self.task_experts * len(tasks) + self.shared_experts
            add_gate("shared_gate", count, shared)

        ys = _products(readers, first, context)
        outputs = {name: blocks(ys[name], context) for name, blocks in experts.items()}
        of_task = {task: outputs[f"experts_{task}"] for task in tasks}
        of_all = outputs["shared_experts"]
        mixed = {
            task: Mix(name=f"mix_{task}")(ys[f"gate_{task}"], of_task[task], of_all)
            for task in tasks
        }
        if self.last:
            return mixed, shared
        mix = Mix(name="shared_mix")
        return mixed, mix(ys["shared_gate"], *of_task.values(), of_all)


def _products(
    inputs: dict[str, jax.Array | Features],
    layers: dict[str, Weights],
    context: Context,
) -> dict[str, jax.Array]:
    """The first product of each layer by name; an input is made once."""
    found: dict[str, jax.Array] = {}
    by_input = {id(x): x for x in inputs.values()}
    for key, x in by_input.items():
        names = [name for name in inputs if id(inputs[name]) == key]
        ys = product(x, *(layers[name] for name in names), dtype=context.dtype)
        found |= dict(zip(names, ys, strict=True))
    return found
