"""Mixtures of experts against their definition, gradients too."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pwiser_jax.models.gates import by_products, by_sums, mixtures, softmax_gate


@pytest.mark.parametrize("form", [mixtures, by_products, by_sums])
def test_mixtures_are_weighted_sums_of_the_experts(form):
    random = np.random.default_rng(0)
    weights = random.random((2, 7, 3), np.float32)  # mixtures, rows, experts
    experts = random.normal(size=(3, 7, 5)).astype(np.float32)

    def definition(weights, experts):
        return jnp.einsum("tbe,ebd->tbd", weights, experts, precision="highest")

    def measured(mix):
        def total(weights, experts):
            mixed = mix(weights, experts)
            return jnp.sum(jnp.sin(mixed)), mixed

        both = jax.value_and_grad(total, argnums=(0, 1), has_aux=True)
        return jax.jit(both)(weights, experts)

    actual, expected = measured(form), measured(definition)
    assert actual[0][1].shape == (2, 7, 5)
    chex.assert_trees_all_close(actual, expected, rtol=1e-5, atol=1e-5)


def test_a_gate_sows_its_weights():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, scores):
            nn.Dense(1, name="gate_ctr")(scores)  # a layer may have the gate's name
            return softmax_gate(self, "ctr", scores)

    scores = np.float32([[0, 0], [9, -9], [np.log(3), 0]])
    model = Model()
    variables = model.init(jax.random.key(0), scores)
    weights, actual = model.apply(
        {"params": variables["params"]}, scores, mutable=["intermediates"]
    )
    np.testing.assert_allclose(weights, [[0.5, 0.5], [1, 0], [0.75, 0.25]], atol=1e-6)
    np.testing.assert_array_equal(actual["intermediates"]["mix_ctr"][0], weights)
