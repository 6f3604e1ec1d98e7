"""What a step tells of itself besides its losses, on the steps that are logged.

    norm/gradient, norm/update    Euclidean norm over all parameters: of the gradient
                                  before L2 and Adam, and of what is added to them
    pairs/HEAD/HI>LO              pairs of a term of the batch, its bank's among them
    active/HEAD/HI>LO             those of them that cost something
    gate/entropy/GATE             mean over rows of -Σ_e w_e ln w_e, in nats: from 0,
                                  one expert a row, to ln E, all alike
    gate/dead/GATE                dead experts: those whose weight, averaged over the
                                  rows, is below 1/100 of an equal share, 1 / (100 E)

All are over the rows of all devices.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pwiser_jax.models.gates import SOWN

Observations = dict[str, jax.Array]

PREFIXES = ("norm/", "pairs/", "active/", "gate/")
DEAD = 0.01


def is_observation(name: str) -> bool:
    """Whether a metric of a step is one of those above: 0 on steps not logged."""
    return name.startswith(PREFIXES)


def numbers(values: Mapping[str, Any]) -> dict[str, float | int | None]:
    """Observations for JSON: counts stay integers, what is not finite is None."""
    items = ((name, np.asarray(value).item()) for name, value in sorted(values.items()))
    return {name: value if math.isfinite(value) else None for name, value in items}


def when(due: jax.Array, observe: Callable[[], Observations]) -> Observations:
    """observe() where `due`, a traced flag, holds; zeros, for next to nothing, else."""
    shapes = jax.eval_shape(observe)

    def nothing() -> Observations:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(due, observe, nothing)


def norms(gradient: Any, update: Any) -> Observations:
    return {
        "norm/gradient": optax.tree.norm(gradient),
        "norm/update": optax.tree.norm(update),
    }


def gates(
    intermediates: Mapping[str, Any], mask: jax.Array, axis_name: str | None
) -> Observations:
    """Entropy and dead experts of each gate.

    Args:
        intermediates: what a model has sown: "mix_NAME", f[B, E], for each gate.
        mask: bool[B], False for padding.
        axis_name: the mapped axis that the rows are spread over, if any.
    """

    def total(x: jax.Array) -> jax.Array:
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    rows = jnp.maximum(total(jnp.sum(mask, dtype=jnp.float32)), 1)
    found: Observations = {}
    for keys, weights in jax.tree.leaves_with_path(intermediates):
        names = [key.key for key in keys if isinstance(key, jax.tree_util.DictKey)]
        *path, name = names
        if not name.startswith(SOWN):
            continue
        gate = "/".join([*path, name.removeprefix(SOWN)])
        real = jnp.where(mask[:, None], weights.astype(jnp.float32), 0)
        # x ln x is 0 at 0.
        entropy = jnp.sum(jax.scipy.special.entr(real))
        share = total(jnp.sum(real, axis=0)) / rows
        found[f"gate/entropy/{gate}"] = total(entropy) / rows
        found[f"gate/dead/{gate}"] = jnp.sum(share < DEAD / len(share), dtype=jnp.int32)
    return found
