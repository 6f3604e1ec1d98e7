"""Weights in PyTorch's layout give the same logits as in PyTorch."""

import re
from functools import lru_cache, partial

import jax
import numpy as np
import pytest

from pwiser_jax.models import MODELS, build
from pwiser_jax.models.from_torch import BODIES, variables_from_torch
from pwiser_jax.models.layout import layout
from tests.models.data import BRANDS, SHOPS, make_inputs, make_schema, tiny
from tests.models.mtreclib_numpy import NumpyMtreclib, random_state

# Three tasks; 4 experts in MMoE; 2 own and 3 shared ones in PLE.
SCHEMA = make_schema(sizes=(4, 2, 5))
NAMES = [name for name, cls in MODELS.items() if cls in BODIES]
sized = partial(tiny, shared_experts=3)


def own_id_inputs(schema, batch):
    inputs = make_inputs(schema, batch)
    return inputs | {"categorical": inputs["categorical"] % schema.field_sizes}


INPUTS = own_id_inputs(SCHEMA, 9)


@lru_cache
def logits(name):
    """Ours, one array a task, from random_state."""
    model = build(sized(name), SCHEMA)
    variables = variables_from_torch(model, random_state(model.config, SCHEMA))
    by_name = jax.jit(partial(model.apply, train=False))(variables, INPUTS)
    return [by_name[head] for head in model.heads]


@pytest.mark.parametrize("name", NAMES)
def test_equals_the_layout_s_own_forward_pass(name):
    config = sized(name)
    expected = NumpyMtreclib(config, SCHEMA, random_state(config, SCHEMA))
    assert np.std(expected.logits(INPUTS), axis=1).min() > 0.05
    np.testing.assert_allclose(
        logits(name), expected.logits(INPUTS), rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("name", NAMES)
def test_equals_a_plain_pytorch_network(name):
    torch = pytest.importorskip("torch")
    from experiments.bench.plain.plain_torch import MODELS as NETWORKS

    config = sized(name)
    network = NETWORKS[name](config, SCHEMA)
    tensors = {k: torch.from_numpy(v) for k, v in random_state(config, SCHEMA).items()}
    network.load_state_dict(tensors, strict=True)
    network.double().eval()
    with torch.no_grad():
        expected = network(
            torch.from_numpy(INPUTS["categorical"].astype(np.int64)),
            torch.from_numpy(INPUTS["numerical"].astype(np.float64)),
        )
    expected = [x.numpy() for x in expected]
    np.testing.assert_allclose(logits(name), expected, rtol=1e-5, atol=1e-5)


CASES = {
    "all": (SCHEMA, {}),
    "no categorical field": (make_schema(sizes=()), {}),
    "no numerical field": (make_schema(numerical=0), {}),
    "towers of one layer": (SCHEMA, {"tower": ()}),
    "one task": (make_schema(labels=("click",)), {"levels": ((3,),)}),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NAMES)
def test_has_every_variable_of_a_new_model(name, case):
    schema, sizes = CASES[case]
    model = build(sized(name, **sizes), schema)
    variables = variables_from_torch(model, random_state(model.config, schema))
    new = jax.eval_shape(
        lambda key: model.init(key, make_inputs(schema, 2), train=False),
        jax.random.key(0),
    )
    jax.tree.map(np.testing.assert_equal, kinds(variables), kinds(new))


def kinds(tree):
    return jax.tree.map(lambda leaf: f"{leaf.shape} {leaf.dtype}", tree)


def test_reserved_ids_have_rows_of_zeros_and_own_ids_those_of_the_state():
    model = build(sized("mmoe"), SCHEMA)
    state = random_state(model.config, SCHEMA)
    tables = variables_from_torch(model, state)["params"]["embedding"]
    theirs, start = state["embedding.embedding.weight"], 0
    places = layout(model.config, SCHEMA)
    for field in SCHEMA.categorical:
        table = tables["small" if places.is_small(field) else "large"]
        ours = table[places.places[field.name] :][: field.rows]
        rows = theirs[start : start + field.size]
        np.testing.assert_array_equal(ours[: field.size], rows)
        assert not ours[field.size :].any()
        start += field.size


@pytest.mark.parametrize("name", NAMES)
def test_what_nothing_reads_may_be_absent(name):
    model = build(sized(name), SCHEMA)
    state = random_state(model.config, SCHEMA)
    read = {
        k: v
        for k, v in state.items()
        if "num_batches_tracked" not in k and not k.startswith("share_gates.1")
    }
    assert len(read) < len(state)
    both = (variables_from_torch(model, arrays) for arrays in (state, read))
    jax.tree.map(np.testing.assert_array_equal, *both)


def test_shares_no_memory_with_the_state():
    model = build(sized("ple"), SCHEMA)
    state = random_state(model.config, SCHEMA)
    variables = variables_from_torch(model, state)
    before = jax.tree.map(np.copy, variables)
    for array in state.values():
        array *= 2
    jax.tree.map(np.testing.assert_array_equal, variables, before)


WRONG = {
    "missing": (
        "mmoe",
        lambda state: state.pop("expert.3.mlp.4.weight"),
        "the state dict has no expert.3.mlp.4.weight, of shape (4, 5)",
    ),
    "missing statistics": (
        "shared_bottom",
        lambda state: state.pop("bottom.mlp.1.running_var"),
        "the state dict has no bottom.mlp.1.running_var, of shape (6,)",
    ),
    "another expert": (
        "mmoe",
        lambda state: state.update(
            {f"expert.4.mlp.0.{leaf}": np.zeros(5) for leaf in ("weight", "bias")}
        ),
        "the state dict has expert.4.mlp.0.weight and 1 more names, which a mmoe",
    ),
    "a shared gate for no level": (
        "ple",
        lambda state: state.update({"share_gates.2.0.bias": np.zeros(5)}),
        "the state dict has share_gates.2.0.bias, which a ple of this model's sizes",
    ),
    "a gate without shared experts": (
        "ple",
        lambda state: state.update({"task_gates.1.2.0.weight": np.zeros((2, 5))}),
        "task_gates.1.2.0.weight must have shape (5, 5), not (2, 5)",
    ),
    "rows for reserved ids": (
        "single_task",
        lambda state: state.update({"embedding.1.embedding.weight": np.ones((20, 2))}),
        "embedding.1.embedding.weight must have shape (11, 2), not (20, 2)",
    ),
    "integers": (
        "shared_bottom",
        lambda state: state.update({"numerical_layer.bias": np.array([1, 2])}),
        "numerical_layer.bias must hold floating-point numbers, not int64",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_wrong_state_is_refused_by_name(case):
    name, spoil, message = WRONG[case]
    model = build(sized(name), SCHEMA)
    state = random_state(model.config, SCHEMA)
    spoil(state)
    with pytest.raises(ValueError, match=re.escape(message)):
        variables_from_torch(model, state)


def test_models_that_the_layout_cannot_hold_are_refused():
    multi_valued = build(tiny("mmoe"), make_schema(multi_valued=(BRANDS, SHOPS)))
    with pytest.raises(ValueError, match=r"multi-valued fields.*brands, shops"):
        variables_from_torch(multi_valued, {})
    click = build(tiny("mmoe", cvr_space="click"), SCHEMA)
    with pytest.raises(ValueError, match=r"cvr_space must be 'ctcvr', not 'click'"):
        variables_from_torch(click, {})
