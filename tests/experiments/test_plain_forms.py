"""The baselines of the training benchmark compute the same function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench.plain.plain_forms import FlaxDropout, plain_model
from pwiser_jax.models import build
from pwiser_jax.models.context import Context
from tests.models.data import make_inputs, make_schema, make_variables, tiny

SCHEMA = make_schema(sizes=(4, 2, 9))


def cut(tree, like):
    """A tree of our parameters as a plain form has them."""
    if "expert_0" in like:
        return {
            f"expert_{e}": jax.tree.map(lambda x, e=e: x[e], tree)
            for e in range(len(like))
        }
    if set(like) == {"BatchNorm_0"}:
        return {"BatchNorm_0": tree}
    if not isinstance(tree, dict):
        return tree
    return {
        name: cut(leaf, like[name]) if isinstance(leaf, dict) else leaf
        for name, leaf in tree.items()
    }


def measured(model, variables, inputs):
    def loss(params):
        logits, _ = model.apply(
            variables | {"params": params},
            inputs,
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": jax.random.key(0)},
        )
        return sum(jnp.sum(jnp.sin(x)) for x in logits.values()), logits

    (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        variables["params"]
    )
    return logits, gradient


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("experts", "mmoe"),
        ("experts", "ple"),
        ("experts", "shared_bottom"),
        ("batch_norm", "mmoe"),
        ("batch_norm", "ple"),
    ],
)
def test_a_plain_form_is_the_same_function(name, model):
    inputs = make_inputs(SCHEMA, 33)
    ours = build(tiny(model), SCHEMA)
    variables = make_variables(ours, inputs)
    logits, gradient = measured(ours, variables, inputs)
    plain = build(tiny(plain_model(model, name)), SCHEMA)
    like = make_variables(plain, inputs)
    cut_variables = {kind: cut(variables[kind], like[kind]) for kind in like}
    assert jax.tree.structure(cut_variables) == jax.tree.structure(like)
    assert jax.tree.structure(like) != jax.tree.structure(variables)
    plain_logits, found_gradient = measured(plain, cut_variables, inputs)
    gradient = cut(gradient, found_gradient)
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(gradient))
    for expected, got, size in (
        (logits, plain_logits, 1),
        (gradient, found_gradient, largest),
    ):
        jax.tree.map(
            lambda a, b, size=size: np.testing.assert_allclose(
                b, a, rtol=1e-4, atol=1e-5 * size
            ),
            expected,
            got,
        )


def test_plain_dropout_drops_at_the_rate():
    dropout = FlaxDropout(0.25, 0)
    x = jnp.ones((300, 4, 50))
    key = {"dropout": jax.random.key(0)}
    dropped = np.asarray(dropout.apply({}, x, Context(train=True), rngs=key))
    np.testing.assert_allclose(np.unique(dropped), [0, 4 / 3], rtol=1e-6)
    assert abs(np.mean(dropped == 0) - 0.25) < 0.01
    np.testing.assert_array_equal(dropout.apply({}, x, Context(train=False)), x)
