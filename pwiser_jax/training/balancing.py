"""Tasks against each other: learned weights of their losses, and PCGrad."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Parameters beside the model's, which predictions do not read.
TASK_WEIGHTS = "task_weights"


def initial_task_weights(tasks: int) -> dict[str, Any]:
    """Parameters of `uncertainty_weighted`: s = 0, which is weight 1."""
    return {TASK_WEIGHTS: {"log_variances": jnp.zeros(tasks)}}


def model_parameters(params: dict[str, Any]) -> dict[str, Any]:
    """The parameters without those of task weights."""
    return {name: leaf for name, leaf in params.items() if name != TASK_WEIGHTS}


def uncertainty_weighted(loss: jax.Array, log_variance: jax.Array) -> jax.Array:
    """e^-s L + s / 2, the term of a task whose s is learned.

    The sum over tasks is the loss. For a constant L it is least at e^-s = 1 / (2 L).

    Reference:
        Kendall et al., Multi-Task Learning Using Uncertainty to Weigh Losses for Scene
        Geometry and Semantics, CVPR 2018: https://arxiv.org/abs/1705.07115
    """
    return jnp.exp(-log_variance) * loss + log_variance / 2


def pcgrad(gradients: Sequence[Any], shared: Any, key: jax.Array) -> Any:
    """The sum of the tasks' gradients, projected on shared parameters (PCGrad).

    Each task's gradient g_i goes over the other tasks in a random order, and where it
    conflicts with g_j, its part along g_j is removed:

        if g_i · g_j < 0:  g_i = g_i - (g_i · g_j) / |g_j|^2 g_j

    with the g_j as they were. Products are over shared parameters alone; all others get
    the plain sum.

    Args:
        gradients: of T tasks, over the rows of all devices.
        shared: bool of each leaf, broadcast to it: True for shared parameters.
        key: of the orders; two tasks have one order.

    Returns:
        A tree like each gradient.

    Reference:
        Yu et al., Gradient Surgery for Multi-Task Learning, NeurIPS 2020, algorithm 1:
        https://arxiv.org/abs/2001.06782
    """
    tasks = len(gradients)

    def product(a: Any, b: Any) -> jax.Array:
        each = jax.tree.map(lambda s, x, y: jnp.sum(s * x * y), shared, a, b)
        return jnp.sum(jnp.stack(jax.tree.leaves(each)))

    # A projected gradient is a sum of the gradients: its factors are a row here.
    products = jnp.stack(
        [jnp.stack([product(a, b) for b in gradients]) for a in gradients]
    )
    factors = jnp.eye(tasks)
    for i, key_of_task in enumerate(jax.random.split(key, tasks)):
        order = jnp.arange(tasks)
        if tasks > 2:
            order = jax.random.permutation(key_of_task, tasks)
        for place in range(tasks):
            j = order[place]
            along = factors[i] @ products[:, j]
            conflict = (along < 0) & (j != i)
            removed = along / jnp.where(conflict, products[j, j], 1)
            factors = factors.at[i, j].add(-jnp.where(conflict, removed, 0))
    total = jnp.sum(factors, axis=0)

    def combined(is_shared: jax.Array, *leaves: jax.Array) -> jax.Array:
        weights = [jnp.where(is_shared, factor, 1) for factor in total]
        return sum(
            (w * g for w, g in zip(weights, leaves, strict=True)),
            jnp.zeros_like(leaves[0]),
        )

    return jax.tree.map(combined, shared, *gradients)
