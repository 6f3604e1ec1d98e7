"""Gates of experts: a softmax a row, and the mixtures that it weighs."""

from collections.abc import Mapping
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
from flax import linen as nn

SOWN = "mix_"  # and the gate's name: a layer may have that name alone


def softmax_gate(module: nn.Module, name: str, scores: jax.Array) -> jax.Array:
    """softmax(scores), f[B, E]: a row's weights of the experts.

    They are sown into "intermediates" as "mix_NAME", for whoever wants to watch them.
    """
    weights = nn.softmax(scores)
    module.sow("intermediates", SOWN + name, weights)
    return weights


def mix(
    gates: Mapping[str, Mapping[str, jax.Array]], groups: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """The mixture [B, D] of each gate, by its name.

    Args:
        gates: a gate's weights of the groups of experts that it reads, [B, E_g] each.
        groups: experts by the name of their group, [E_g, B, D] each.
    """
    terms: dict[str, list[jax.Array]] = {gate: [] for gate in gates}
    for group, experts in groups.items():
        readers = [gate for gate, weights in gates.items() if group in weights]
        weights = jnp.stack([gates[gate][group] for gate in readers])
        for gate, term in zip(readers, mixtures(weights, experts), strict=True):
            terms[gate].append(term)
    return {gate: reduce(add, some) for gate, some in terms.items()}


def mixtures(weights: jax.Array, experts: jax.Array) -> jax.Array:
    """Σ_e weights_te experts_e: [T, B, D], T mixtures, from [T, B, E] and [E, B, D]."""
    return jax.lax.platform_dependent(
        weights, experts, cpu=by_products, default=by_sums
    )


def by_products(weights: jax.Array, experts: jax.Array) -> jax.Array:
    """`mixtures` as small products of matrices, one a row.

    On a CPU products make XLA store the experts, once for all mixtures; into sums it
    draws what made them, dropout's bits among that, again for each mixture. With the
    weights to the left the longer rows, of D numbers, are the inner ones.
    """
    y = jax.lax.dot_general(weights, experts, (((2,), (0,)), ((1,), (1,))))
    return y.swapaxes(0, 1)


@jax.custom_vjp
def by_sums(weights: jax.Array, experts: jax.Array) -> jax.Array:
    """`mixtures` as sums of terms.

    An accelerator reads the experts as they lie; for products XLA transposes them
    first. The gradient of the experts is one sum over all mixtures.
    """
    return jnp.stack([jnp.sum(w.T[:, :, None] * experts, axis=0) for w in weights])


def _by_sums_forward(weights, experts):
    return by_sums(weights, experts), (weights, experts)


def _by_sums_backward(saved, gradient):
    weights, experts = saved
    of_weights = [jnp.sum(of_one[None] * experts, axis=-1).T for of_one in gradient]
    of_experts = reduce(
        add, (w.T[:, :, None] * g[None] for w, g in zip(weights, gradient, strict=True))
    )
    return jnp.stack(of_weights), of_experts


by_sums.defvjp(_by_sums_forward, _by_sums_backward)
