"""Gates and mixtures of experts."""

from collections.abc import Mapping
from functools import reduce
from operator import add

import jax
import jax.numpy as jnp
from flax import linen as nn

SOWN = "mix_"  # before the gate's name, which a layer may have


def softmax_gate(module: nn.Module, name: str, scores: jax.Array) -> jax.Array:
    """softmax(scores): the weight of each expert for each row, f[B, E].

    Sows the weights into the collection "intermediates" as "mix_NAME", for diagnostics.
    """
    weights = nn.softmax(scores)
    module.sow("intermediates", SOWN + name, weights)
    return weights


def mix(
    gates: Mapping[str, Mapping[str, jax.Array]], groups: Mapping[str, jax.Array]
) -> dict[str, jax.Array]:
    """Mixes the experts that each gate reads.

    Args:
        gates: by gate, the weights of the experts of each group, [B, E_g] each.
        groups: outputs of the experts by group, [E_g, B, D] each.

    Returns:
        The mixture of each gate, [B, D].
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
    """`mixtures` as a small matrix product for each row.

    On a CPU, XLA fuses the computation of the experts, dropout included, into each sum
    over them and repeats it for each mixture; a product makes it store them once. The
    weights are on the left, so that the inner loop runs over the D columns.
    """
    y = jax.lax.dot_general(weights, experts, (((2,), (0,)), ((1,), (1,))))
    return y.swapaxes(0, 1)


@jax.custom_vjp
def by_sums(weights: jax.Array, experts: jax.Array) -> jax.Array:
    """`mixtures` as elementwise sums.

    On an accelerator this reads the experts in their layout, where a product would
    transpose them first. The gradient of the experts is one sum over all mixtures.
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
