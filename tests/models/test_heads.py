"""Logits of products of probabilities against float64 probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax.models import MODELS, build
from pwiser_jax.models.heads import both_logits, joint_logits, product_logit
from tests.models.data import make_inputs, make_schema, make_variables, tiny
from tests.models.numpy_models import logit, sigmoid

GRID = np.array([-50, -20, -3, -0.1, 0, 1, 4, 15, 50], np.float32)
A, B = (x.ravel() for x in np.meshgrid(GRID, GRID))


def exact_product_logit(a, b):
    """From p = σ(a) σ(b) and 1 - p = σ(-a) + σ(a) σ(-b): no term cancels."""
    a, b = a.astype(np.float64), b.astype(np.float64)
    p, complement = sigmoid(a) * sigmoid(b), sigmoid(-a) + sigmoid(a) * sigmoid(-b)
    return np.log(p) - np.log(complement)


def test_product_logit_is_the_logit_of_the_product():
    exact = exact_product_logit(A, B)
    np.testing.assert_allclose(product_logit(A, B), exact, rtol=1e-6, atol=1e-6)
    near = (abs(A) < 20) & (abs(B) < 20)
    a, b = A[near].astype(np.float64), B[near].astype(np.float64)
    naive = logit(sigmoid(a) * sigmoid(b))
    np.testing.assert_allclose(product_logit(A, B)[near], naive, rtol=1e-5, atol=1e-6)


def test_gradient_of_product_logit():
    """d logit(p) / da = (1 - σ(a)) / (1 - p)."""
    gradient = jax.vmap(jax.grad(product_logit, argnums=(0, 1)))(A, B)
    a, b = A.astype(np.float64), B.astype(np.float64)
    rest = sigmoid(-a) + sigmoid(a) * sigmoid(-b)
    np.testing.assert_allclose(gradient[0], sigmoid(-a) / rest, rtol=1e-5, atol=1e-30)
    np.testing.assert_allclose(gradient[1], sigmoid(-b) / rest, rtol=1e-5, atol=1e-30)


def test_product_logit_at_extremes_is_finite_with_its_gradient():
    value, gradient = jax.value_and_grad(product_logit)(jnp.float32(1e4), -1e4)
    assert value == -1e4
    assert gradient == 0


@pytest.mark.parametrize("space", ["click", "product"])
def test_joint_tasks_of_four_labels_are_products_of_all_heads_below(space):
    labels = ("click", "cart", "order", "review")
    names = ["ctr", "cart_given_click", "order_given_cart", "review_given_order"]
    random = np.random.default_rng(0)
    logits = {name: random.normal(size=5).astype(np.float32) for name in names}
    together = joint_logits(logits, labels, space)
    assert list(together) == [*names, "cart", "order", "review"]
    p = np.cumprod([sigmoid(logits[name].astype(np.float64)) for name in names], axis=0)
    for k, task in enumerate(["cart", "order", "review"], start=1):
        np.testing.assert_allclose(together[task], logit(p[k]), rtol=1e-5)
    assert all(together[name] is logits[name] for name in names)


def test_two_labels_have_the_fields_names():
    logits = {"ctr": np.zeros(1, np.float32), "cvr": np.zeros(1, np.float32)}
    labels = ("click", "conversion")
    assert list(joint_logits(logits, labels, "product")) == ["ctr", "cvr", "ctcvr"]


@pytest.mark.parametrize("space", ["ctcvr", "click", "product"])
@pytest.mark.parametrize("name", MODELS)
def test_a_head_of_two_logits_has_their_difference_as_its_logit(name, space):
    schema = make_schema()
    model = build(tiny(name, cvr_space=space, two_logits=True), schema)
    inputs = make_inputs(schema, 5)
    variables = make_variables(model, inputs)
    assert variables["params"]["towers"]["out"]["kernel"].shape[-1] == 2
    trained, _ = model.apply(variables, inputs, train=True, mutable=["batch_stats"])
    both = {head: trained.pop(both_logits(head)) for head in model.heads}
    for head, logits in both.items():
        assert logits.shape == (5, 2)
        np.testing.assert_array_equal(trained[head], logits[:, 1] - logits[:, 0])
    assert np.ptp(np.stack(list(both.values())), axis=1).min() > 0
    # One logit whose weights are the difference of the two gives the same logits, joint
    # ones too: nothing but the ranking loss sees more than the difference.
    one = build(tiny(name, cvr_space=space), schema)
    out = jax.tree.map(
        lambda x: x[..., 1:] - x[..., :1], variables["params"]["towers"]["out"]
    )
    towers = {**variables["params"]["towers"], "out": out}
    same = {**variables, "params": {**variables["params"], "towers": towers}}
    expected = one.apply(same, inputs, train=False)
    actual = model.apply(variables, inputs, train=False)
    assert actual.keys() == expected.keys() == trained.keys()
    for task in expected:
        np.testing.assert_allclose(actual[task], expected[task], rtol=1e-4, atol=1e-5)
