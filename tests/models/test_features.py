"""Products by factors, and of several layers at once, against the plain ones."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax.models import MODELS, build
from pwiser_jax.models.features import (
    ALIGNED,
    Feature,
    Features,
    LinearWeights,
    product,
    take_rows,
)
from pwiser_jax.models.layout import layout
from tests.models.data import (
    BRANDS,
    make_inputs,
    make_schema,
    make_variables,
    tiny,
)

SCHEMA = make_schema(sizes=(4, 2, 9, 3), multi_valued=(BRANDS,))
SMALL = {"all": 100, "some": 6, "none": 0}  # small_rows


def random(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def test_a_stack_over_one_input_is_one_product():
    x = random(0, 7, 5)
    alone = LinearWeights(random(1, 5, 3), random(2, 3))
    stack = LinearWeights(random(3, 4, 5, 2), random(4, 4, 2))
    first, second = product(x, alone), product(x, stack)
    np.testing.assert_allclose(first, x @ alone.kernel + alone.bias, rtol=1e-5)
    for e in range(4):
        expected = x @ stack.kernel[e] + stack.bias[e]
        np.testing.assert_allclose(second[:, e], expected, rtol=1e-5, atol=1e-6)
    for layer in (alone, stack):
        text = str(jax.make_jaxpr(product)(x, layer))
        assert text.count("dot_general") == 1


def test_factors_give_the_product_of_what_they_stand_for():
    parts = [
        Feature(random(0, 7, 2)),
        Feature(random(1, 7, 3), has_rows=True),
        Feature(random(2, 7, 1), has_rows=True),
    ]
    table = random(3, 4, 5)
    z = Features.of(parts, table)
    assert z.width == 12
    blocks = [parts[0].x, parts[1].x @ table[:3], parts[2].x @ table[3:]]
    np.testing.assert_allclose(
        z.concatenated(), np.concatenate(blocks, axis=1), rtol=1e-5
    )
    layers = (
        LinearWeights(random(5, 3, 12, 2), random(6, 3, 2)),
        LinearWeights(random(7, 12, 5), random(8, 5)),
    )
    for layer in layers:
        actual, plain = product(z, layer), product(z.concatenated(), layer)
        np.testing.assert_allclose(actual, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("columns", [1, 6, 7, 8, 17])
def test_factors_fill_whole_rows_of_a_fast_kernel(columns):
    z = Features.of([Feature(random(0, 5, columns))])
    factors = z.factors()
    assert factors.shape[1] % ALIGNED == 0
    assert 0 < factors.shape[1] - columns <= ALIGNED
    np.testing.assert_array_equal(factors[:, -1], 1)  # the bias's
    np.testing.assert_array_equal(factors[:, columns:-1], 0)


@pytest.mark.parametrize("stack", [(), (3,)])
def test_products_of_about_one_size_are_one(stack):
    """And none is another than it was alone: values and gradients."""
    rows = (5, 1, 8, 6, 9, 16, 2)  # up to 1, 2, 8 and 16
    parts = [Feature(random(i, 3, n), has_rows=True) for i, n in enumerate(rows)]
    table, kernel = random(20, sum(rows), 4), random(21, *stack, 4 * len(rows), 3)
    bias = random(22, *stack, 3)

    def alone(table, kernel):
        tables = jnp.split(table, np.cumsum(rows)[:-1])
        blocks = jnp.split(kernel, len(rows), axis=-2)
        pairs = zip(tables, blocks, strict=True)
        return jnp.concatenate([a @ b for a, b in pairs], axis=-2)

    def together(table, kernel):
        weights = LinearWeights(kernel, bias)
        projected = Features.of(parts, table).projected(weights, jnp.float32)
        return projected[..., : sum(rows), :]

    def measured(products):
        def total(table, kernel):
            y = products(table, kernel)
            return jnp.sum(jnp.sin(y)), y

        return jax.value_and_grad(total, argnums=(0, 1), has_aux=True)(table, kernel)

    chex.assert_trees_all_close(
        measured(together), measured(alone), rtol=1e-5, atol=1e-5
    )
    assert str(jax.make_jaxpr(together)(table, kernel)).count("dot_general[") == 4


def test_taken_rows_have_the_gradient_of_indexed_ones():
    x, weights = random(0, 2, 6, 3), random(1, 2, 5, 3)
    indices = np.array([4, -1, 0]), np.array([[2], [5]])

    def taken(x):
        parts = [part.reshape(2, -1, 3) for part in take_rows(x, *indices)]
        return jnp.concatenate(parts, axis=-2)

    def indexed(x):
        zeros = jnp.zeros((2, 1, 3))
        return jnp.concatenate([x[:, 4:5], zeros, x[:, 0:1], x[:, 2::3]], axis=-2)

    def gradient(rows):
        return jax.grad(lambda x: jnp.sum(weights * rows(x)))(x)

    np.testing.assert_array_equal(taken(x), indexed(x))
    np.testing.assert_array_equal(gradient(taken), gradient(indexed))
    assert "scatter" not in str(jax.make_jaxpr(lambda _: gradient(taken))(0))


def with_small(params, config, other):
    """The parameters of a model whose fields lie in the tables of another layout."""
    ours, theirs = layout(config, SCHEMA), layout(other, SCHEMA)

    def moved(tables):
        actual = {}
        for name, fields in (("small", theirs.small), ("large", theirs.large)):
            rows = [
                tables["small" if ours.is_small(field) else "large"][
                    ours.places[field.name] :
                ][: field.rows]
                for field in fields
            ]
            if rows:
                actual[name] = np.concatenate(rows)
        return actual | {"numerical": tables["numerical"]}

    return {
        name: moved(tree) if name.startswith("embedding") else tree
        for name, tree in params.items()
    }


@pytest.mark.parametrize("name", MODELS)
def test_small_fields_change_the_work_and_not_the_function(name):
    """Outputs and gradients of all layouts are those of the plain one."""
    inputs = make_inputs(SCHEMA, 33)
    configs = {how: tiny(name, small_rows=rows) for how, rows in SMALL.items()}
    plain = make_variables(build(configs["none"], SCHEMA), inputs)

    def measured(config):
        model = build(config, SCHEMA)
        params = with_small(plain["params"], configs["none"], config)

        def loss(params):
            variables = {"params": params, "batch_stats": plain["batch_stats"]}
            logits, _ = model.apply(
                variables, inputs, train=True, mutable=["batch_stats"]
            )
            return sum(jnp.sum(jnp.sin(x)) for x in logits.values()), logits

        (_, logits), gradient = jax.jit(jax.value_and_grad(loss, has_aux=True))(params)
        return logits, with_small(gradient, config, configs["none"])

    expected, expected_gradient = measured(configs["none"])
    largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected_gradient))
    for how in ("some", "all"):
        actual, gradient = measured(configs[how])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-5),
            expected,
            actual,
        )
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(
                b, a, rtol=1e-4, atol=1e-5 * largest
            ),
            expected_gradient,
            gradient,
        )


def test_rows_of_a_part_of_the_table_may_stand_for_the_ids():
    inputs = make_inputs(SCHEMA, 9)
    model = build(tiny("mmoe"), SCHEMA)
    variables = make_variables(model, inputs)
    expected = model.apply(variables, inputs, train=False)
    rows, places = np.unique(
        layout(model.config, SCHEMA).large_rows(inputs), return_inverse=True
    )
    part = variables["params"]["embedding"]["large"][rows]
    variables["params"]["embedding"]["large"] = part
    given = inputs | {"large_rows": places.astype(np.int32)}
    actual = model.apply(variables, given, train=False)
    jax.tree.map(np.testing.assert_array_equal, expected, actual)


def test_bfloat16_rounds_factors_of_products_and_nothing_else():
    inputs = make_inputs(SCHEMA, 40)
    model = build(tiny("mmoe"), SCHEMA)
    rounded = build(tiny("mmoe", compute="bfloat16"), SCHEMA)
    variables = make_variables(model, inputs)

    def measured(model):
        def loss(params):
            both = {**variables, "params": params}
            logits, stats = model.apply(
                both, inputs, train=True, mutable=["batch_stats"]
            )
            return sum(jnp.sum(jnp.sin(x)) for x in logits.values()), (logits, stats)

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(variables["params"])

    for exact, actual in zip(measured(model), measured(rounded), strict=True):
        leaves = jax.tree.leaves(exact)
        largest = max(np.abs(leaf).max() for leaf in leaves)
        differences = []
        for a, b in zip(leaves, jax.tree.leaves(actual), strict=True):
            assert b.dtype == np.float32
            differences.append(np.abs(a - b).max() / largest)
        assert 1e-5 < max(differences) < 0.1
    text = str(
        jax.make_jaxpr(lambda v: rounded.apply(v, inputs, train=False))(variables)
    )
    products = [line for line in text.splitlines() if "dot_general[" in line]
    # All but the mixtures of the experts (a softmax's weights stay as they are).
    assert sum(":bf16" in line for line in products) >= len(products) - 2 * 3
