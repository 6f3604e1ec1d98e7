"""Diagnostics of a step, computed every `log_every` steps over the rows of all devices.

norm/gradient, norm/update    Euclidean norm over all parameters: of the gradient
                              before clipping and L2, and of the parameters' change
pairs/HEAD/HI>LO              pairs of a term in the batch, with those of its bank
active/HEAD/HI>LO             pairs with a cost above 0
groups/conversions_paired     share of conversions with a lower row of their group in
                              the batch; null in a batch without conversions
gate/entropy/GATE             mean over rows of -sum_e w_e ln w_e, in nats: 0 for one
                              expert a row, ln E for equal weights
gate/dead/GATE                experts whose weight, averaged over rows, is below
                              1/100 of an equal share, 1 / (100 E)

Pairs are counted for `ranking: pwiser` without `segments: group`. With groups the share
of paired conversions is logged instead, for every ranking.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from pwiser_jax.models.gates import SOWN

Diagnostics = dict[str, jax.Array]

DEAD = 0.01
SMALL = 1 << 18
"""The largest leaf that norms take together with others: 1 MiB."""


def when(due: jax.Array, diagnostics: Callable[[], Diagnostics]) -> Diagnostics:
    """diagnostics() if the traced flag `due` is True, else zeros at almost no cost."""
    shapes = jax.eval_shape(diagnostics)

    def zeros() -> Diagnostics:
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    return jax.lax.cond(due, diagnostics, zeros)


def norms(
    gradient: Any, directions: Any, learning_rate: jax.Array | float
) -> Diagnostics:
    """Norms of the gradient and of the update, learning_rate * directions."""
    return {
        "norm/gradient": _norm(gradient),
        "norm/update": learning_rate * _norm(directions),
    }


def _norm(tree: Any) -> jax.Array:
    """The Euclidean norm of all leaves.

    Small leaves are summed as one array: XLA compiles three kernels for each sum.
    """
    leaves = jax.tree.leaves(tree)
    parts = [leaf for leaf in leaves if leaf.size > SMALL]
    if small := [leaf.ravel() for leaf in leaves if leaf.size <= SMALL]:
        parts.append(jnp.concatenate(small))
    return optax.tree.norm(parts)


def gates(
    intermediates: Mapping[str, Any], mask: jax.Array, axis_name: str | None
) -> Diagnostics:
    """Entropy and number of dead experts of each gate.

    Args:
        intermediates: sown by a model: "mix_NAME", f[B, E], for each gate.
        mask: bool[B], False for padding.
        axis_name: mapped axis that the rows are sharded over, if any.
    """

    def total(x: jax.Array) -> jax.Array:
        return x if axis_name is None else jax.lax.psum(x, axis_name)

    rows = jnp.maximum(total(jnp.sum(mask, dtype=jnp.float32)), 1)
    result: Diagnostics = {}
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
        result[f"gate/entropy/{gate}"] = total(entropy) / rows
        result[f"gate/dead/{gate}"] = jnp.sum(
            share < DEAD / len(share), dtype=jnp.int32
        )
    return result
