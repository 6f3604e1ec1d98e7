"""Each model against an independent forward pass in NumPy float64."""

from functools import partial

import jax
import numpy as np
import pytest

from pwiser_jax import tasks
from pwiser_jax.models import MODELS, build
from tests.models.data import (
    BRANDS,
    SHOPS,
    make_inputs,
    make_schema,
    make_variables,
    open_relus,
    tiny,
)
from tests.models.numpy_models import NumpyModel, logit, sigmoid

CASES = {
    "all fields": ("ctcvr", make_schema()),
    "no numerical field": ("click", make_schema(numerical=0)),
    "no categorical field": ("product", make_schema(sizes=())),
    "multi-valued": ("ctcvr", make_schema(multi_valued=(BRANDS, SHOPS))),
    "multi-valued alone": (
        "ctcvr",
        make_schema(sizes=(), numerical=0, multi_valued=(SHOPS,)),
    ),
}


def with_joint(logits, schema, space):
    """Adds P(level >= k), the product of the first k heads' probabilities."""
    names = [head.name for head in tasks.heads(schema.labels, space)]
    if space == "ctcvr":
        assert names == ["ctr", "cart", "order"]
        return logits
    assert names == ["ctr", "cart_given_click", "order_given_cart"]
    p = [sigmoid(logits[name]) for name in names]
    return logits | {"cart": logit(p[0] * p[1]), "order": logit(p[0] * p[1] * p[2])}


@pytest.mark.parametrize(
    ("case", "train"),
    [
        ("all fields", False),
        ("all fields", True),
        ("no numerical field", True),
        ("no categorical field", False),
        ("multi-valued", True),
        ("multi-valued alone", False),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_equals_the_equations(name, case, train):
    space, schema = CASES[case]
    config = tiny(name, cvr_space=space)
    model, inputs = build(config, schema), make_inputs(schema, 7)
    variables = make_variables(model, inputs)
    apply = jax.jit(partial(model.apply, train=train, mutable=["batch_stats"]))
    logits, state = apply(variables, inputs)

    numpy_model = NumpyModel(config, schema, variables, train)
    heads = [head.name for head in tasks.heads(schema.labels, space)]
    expected = with_joint(numpy_model.logits(inputs, heads), schema, space)
    assert set(logits) == set(expected)
    for task, values in expected.items():
        assert logits[task].dtype == np.float32
        np.testing.assert_allclose(logits[task], values, rtol=2e-4, atol=2e-5)
    before, after = variables["batch_stats"], state["batch_stats"]
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    jax.tree.map(close, after, numpy_model.stats)
    # In training every statistic moves, otherwise none.
    moved = jax.tree.map(lambda old, new: bool((old != new).all()), before, after)
    assert set(jax.tree.leaves(moved)) == {train}


@pytest.mark.parametrize("case", ["all fields", "multi-valued"])
def test_a_wide_part_adds_a_weight_for_each_id_and_column(case):
    space, schema = CASES[case]
    inputs = make_inputs(schema, 7)
    for changes in ({}, {"small_rows": 0}):
        config = tiny("shared_bottom", cvr_space=space, wide=True, **changes)
        model = build(config, schema)
        fresh = model.init(jax.random.key(0), inputs, train=False)
        assert not any(leaf.any() for leaf in jax.tree.leaves(fresh["params"]["wide"]))
        variables = make_variables(model, inputs)
        logits = model.apply(variables, inputs, train=False)
        heads = [head.name for head in tasks.heads(schema.labels, space)]
        numpy_model = NumpyModel(config, schema, variables, False)
        expected = with_joint(numpy_model.logits(inputs, heads), schema, space)
        for task, values in expected.items():
            np.testing.assert_allclose(logits[task], values, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", MODELS)
def test_a_row_changes_only_its_own_logits(name):
    schema = make_schema()
    model, inputs = build(tiny(name), schema), make_inputs(schema, 6)
    variables = open_relus(make_variables(model, inputs))
    other = make_inputs(schema, 6, seed=1)
    changed = {key: x.copy() for key, x in inputs.items()}
    for key, x in changed.items():
        x[2] = other[key][2]
    apply = jax.jit(partial(model.apply, train=False))
    before, after = apply(variables, inputs), apply(variables, changed)
    for task in before:
        different = np.asarray(before[task]) != np.asarray(after[task])
        np.testing.assert_array_equal(different, np.arange(6) == 2)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient(name):
    schema = make_schema()
    model, inputs = build(tiny(name), schema), make_inputs(schema, 64)
    inputs["categorical"] %= 3  # some rows of the table, not all
    variables = open_relus(make_variables(model, inputs))

    @jax.jit
    @jax.grad
    def gradient(params):
        logits = model.apply({**variables, "params": params}, inputs, train=False)
        return sum((x**2).sum() for x in logits.values())

    used = {"large": np.zeros((4 + 3, 1), bool), "small": np.zeros((2 + 3, 1), bool)}
    for i, table in enumerate(used):
        used[table][inputs["categorical"][:, i]] = True
    for path, leaf in jax.tree_util.tree_leaves_with_path(
        gradient(variables["params"])
    ):
        place = jax.tree_util.keystr(path)
        if path[-1].key in used:
            expected = used[path[-1].key] | np.zeros((1, 2), bool)
            np.testing.assert_array_equal(leaf != 0, expected)
        elif "experts" in place:
            assert (leaf != 0).any(axis=tuple(range(1, leaf.ndim))).all(), place
        else:
            assert (leaf != 0).any(), place
