"""A new model: number, names and initial values of parameters; errors."""

import math

import jax
import numpy as np
import pytest
from flax import linen as nn
from flax.traverse_util import flatten_dict

from pwiser_jax.config import LossConfig
from pwiser_jax.models import (
    MODELS,
    ModelConfig,
    MultiTaskModel,
    build,
    register_model,
)
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.state import new_state
from pwiser_jax.training.step import StepSpec, state_shapes
from tests.models.data import make_inputs, make_schema, tiny

ALIEXPRESS = (11, 4, 7, 2, 33, 7, 50, 8, 8, 2, 2, 2, 2, 2, 2, 2)


def linear(inputs, outputs):
    return inputs * outputs + outputs


def block(inputs, outputs):
    return linear(inputs, outputs) + 2 * outputs  # and the scale and bias of the norm


EMBEDDING = (sum(ALIEXPRESS) + 16 * 3) * 128 + linear(63, 128)
TOWER = block(256, 128) + block(128, 64) + linear(64, 1)
BOTTOM = block(2176, 512) + block(512, 256)
COUNTS = {
    "single_task": 2 * (EMBEDDING + BOTTOM + TOWER),
    "shared_bottom": EMBEDDING + BOTTOM + 2 * TOWER,
    "mmoe": EMBEDDING + 8 * BOTTOM + 2 * linear(2176, 8) + 2 * TOWER,
    "ple": EMBEDDING
    + 3 * 4 * (block(2176, 512) + block(512, 256))
    + 2 * linear(2176, 8)
    + linear(2176, 12)
    + 2 * linear(512, 8)
    + 2 * TOWER,
    "aitm": EMBEDDING + 2 * BOTTOM + block(256, 256) + 3 * linear(256, 256) + 2 * TOWER,
}


@pytest.mark.parametrize("name", MODELS)
def test_number_of_parameters_at_the_default_sizes(name):
    schema = make_schema(ALIEXPRESS, 63, ("click", "conversion"))
    model, inputs = build(ModelConfig(name=name), schema), make_inputs(schema, 2)
    shapes = jax.eval_shape(
        lambda key: model.init(key, inputs, train=False), jax.random.key(0)
    )
    count = sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))
    assert count == COUNTS[name]
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}


@pytest.fixture(scope="module", params=["new_state", "init"])
def fresh(request):
    """An MMoE wide enough for the extremes of its values to come near the bounds."""
    schema = make_schema(sizes=(40, 30), numerical=5)
    config = tiny("mmoe", embedding_dim=16, small_rows=33, expert=(32,), experts=3)
    inputs = make_inputs(schema, 2)
    if request.param == "new_state":  # of a run, by NumPy
        state = new_state(spec_of(config, schema), 0)
        variables = {"params": state.params, "batch_stats": state.batch_stats}
        return jax.tree.map(np.asarray, variables)
    init = jax.jit(lambda key: build(config, schema).init(key, inputs, train=False))
    return jax.tree.map(np.asarray, init(jax.random.key(0)))


def spec_of(config, schema):
    objective, _ = objectives.build(LossConfig(), schema.labels, config.cvr_space)
    return StepSpec(model=config, schema=schema, objective=objective)


def assert_uniform(values, bound):
    assert abs(values).max() <= bound
    assert abs(values).max() > 0.9 * bound
    deviation = bound / math.sqrt(3)
    assert abs(values.mean()) < 5 * deviation / math.sqrt(values.size)
    assert 0.8 * deviation < values.std() < 1.2 * deviation


def test_table_starts_xavier_uniform_with_reserved_rows_zero(fresh):
    for table, size in (("large", 40), ("small", 30)):
        table = fresh["params"]["embedding"][table]
        assert table.shape == (size + 3, 16)
        assert (table[size:] == 0).all()
        assert_uniform(table[:size], math.sqrt(6 / (70 + 16)))


def test_linear_layers_start_as_pytorch_ones(fresh):
    params = fresh["params"]
    assert params["experts"]["layer_0"]["kernel"].shape == (3, 48, 32)
    for part, inputs in [
        (params["embedding"]["numerical"], 5),
        (params["experts"]["layer_0"], 48),
        (params["gates"], 48),
        (params["towers"]["hidden"]["layer_0"], 32),
    ]:
        bound = 1 / math.sqrt(inputs)
        assert_uniform(part["kernel"], bound)
        assert abs(part["bias"]).max() <= bound
    biases = params["experts"]["layer_0"]["bias"]
    assert biases.shape == (3, 32)
    assert_uniform(biases, 1 / math.sqrt(48))
    assert len(np.unique(params["experts"]["layer_0"]["kernel"])) > 3 * 48 * 32 - 10


class WithDense(MultiTaskModel):
    """A model with a layer of flax, whose initial values flax draws."""

    def features(self, inputs, context):
        z = self.embed("embedding", inputs, context).concatenated()
        return nn.Dense(32, name="dense")(z)


@pytest.fixture
def with_dense():
    register_model("with_dense", WithDense)
    yield tiny("with_dense", embedding_dim=8, wide=True)
    del MODELS["with_dense"]


def test_a_run_starts_by_its_seed_with_all_that_the_model_declares(with_dense):
    spec = spec_of(with_dense, make_schema())
    first, again, other = (new_state(spec, seed) for seed in (3, 3, 4))
    jax.tree.map(np.testing.assert_array_equal, first, again)
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), first)
    assert shapes == state_shapes(spec)
    one, two = (flatten_dict(state.params) for state in (first, other))
    for layer in (("dense",), ("embedding", "numerical"), ("towers", "out")):
        assert (one[*layer, "kernel"] != two[*layer, "kernel"]).mean() > 0.9
    # Flax's lecun_normal for 8 * 3 inputs.
    values = np.asarray(first.params["dense"]["kernel"])
    assert 0.8 < values.std() * math.sqrt(24) < 1.2
    assert not any(x.any() for x in jax.tree.leaves(first.params["wide"]))


def test_layers_of_equal_shape_start_differently():
    state = new_state(spec_of(tiny("ple"), make_schema()), 0)
    level = state.params["level_0"]
    ctr, cart = (
        level[f"experts_{head}"]["layer_0"]["kernel"] for head in ("ctr", "cart")
    )
    assert (ctr != cart).mean() > 0.9
    assert (ctr[0] != ctr[1]).mean() > 0.9


def test_norms_start_as_the_identity(fresh):
    assert (fresh["params"]["experts"]["norm_0"]["scale"] == 1).all()
    assert (fresh["params"]["experts"]["norm_0"]["bias"] == 0).all()
    assert (fresh["batch_stats"]["experts"]["norm_0"]["mean"] == 0).all()
    assert (fresh["batch_stats"]["experts"]["norm_0"]["var"] == 1).all()


def test_names_in_the_parameter_tree():
    schema = make_schema()
    inputs = make_inputs(schema, 2)

    def names(name):
        model = build(tiny(name), schema)
        init = lambda key: model.init(key, inputs, train=False)  # noqa: E731
        return jax.eval_shape(init, jax.random.key(0))["params"]

    heads = ("ctr", "cart", "order")
    towers = {"towers"}
    gates = {f"gate_{head}" for head in heads}
    assert set(names("mmoe")) == {"embedding", "experts", "gates"} | towers
    assert set(names("shared_bottom")) == {"embedding", "bottom"} | towers
    parts = {f"{part}_{head}" for part in ("embedding", "bottom") for head in heads}
    assert set(names("single_task")) == parts | towers
    ple = names("ple")
    assert set(ple) == {"embedding", "level_0", "level_1"} | towers
    last = gates | {f"experts_{head}" for head in heads} | {"shared_experts"}
    assert set(ple["level_1"]) == last
    assert set(ple["level_0"]) == last | {"shared_gate"}


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("dropout", 1.0),
        ("dropout", -0.1),
        ("embedding_dim", 0),
        ("experts", 0),
        ("shared_experts", 0),
        ("task_experts", 0),
        ("expert", ()),
        ("expert", (8, 0)),
        ("bottom", (0,)),
        ("tower", (-1,)),
        ("levels", ()),
        ("levels", ((4,), ())),
        ("levels", ((4,), (0,))),
        ("cvr_space", "ctr"),
        ("compute", "float16"),
    ],
)
def test_config_names_the_option_that_is_wrong(option, value):
    with pytest.raises(ValueError, match=rf"model\.{option}\b"):
        ModelConfig(**{option: value})


def test_bottom_and_tower_may_have_no_hidden_layer():
    schema = make_schema()
    inputs = make_inputs(schema, 3)
    model = build(tiny("shared_bottom", bottom=(), tower=()), schema)
    variables = model.init(jax.random.key(0), inputs, train=False)
    logits = model.apply(variables, inputs, train=False)
    assert {task: x.shape for task, x in logits.items()} == {
        "ctr": (3,),
        "cart": (3,),
        "order": (3,),
    }


def test_build_refuses_what_it_cannot_build():
    with pytest.raises(ValueError, match=r"model\.name .*mmoe.* not 'moe'"):
        ModelConfig(name="moe")
    with pytest.raises(ValueError, match="schema must have"):
        build(ModelConfig(), make_schema(sizes=(), numerical=0))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categorical": np.zeros((4, 3), np.int32)}, "categorical"),
        ({"categorical": np.zeros((4, 2), np.float32)}, "categorical"),
        ({"numerical": np.zeros((4, 2), np.float32)}, "numerical"),
        ({"numerical": np.zeros((5, 3), np.float32)}, "numerical"),
        ({"mask": np.ones((4, 1), bool)}, "mask"),
        ({"mask": np.ones(4, np.float32)}, "mask"),
        ({"rows": np.arange(3, dtype=np.uint32)}, "rows"),
        ({"rows": np.arange(4, dtype=np.int32)}, "rows"),
    ],
)
def test_inputs_that_do_not_fit_the_schema_are_named(change, message):
    schema = make_schema()
    inputs = make_inputs(schema, 4)
    options = {key: change[key] for key in ("mask", "rows") if key in change}
    inputs |= {key: x for key, x in change.items() if key not in options}
    model = build(tiny("shared_bottom"), schema)
    with pytest.raises(AssertionError, match=message):
        jax.eval_shape(
            lambda key: model.init(key, inputs, train=False, **options),
            jax.random.key(0),
        )


def test_aitm_needs_a_hidden_layer_in_its_bottom():
    model = build(tiny("aitm", bottom=()), make_schema())
    with pytest.raises(ValueError, match=r"model\.bottom"):
        model.init(jax.random.key(0), make_inputs(make_schema(), 2), train=False)
