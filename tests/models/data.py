"""Tiny configs, schemas, batches and variables for the tests of the models."""

import jax
import numpy as np

from pwiser_jax.models import ModelConfig
from pwiser_jax.schema import CategoricalField, MultiValuedField, NumericalField, Schema

LABELS = ("click", "cart", "order")


def tiny(name, **changes):
    """Numbers of experts that differ from each other and from the three tasks.

    Of the two categorical fields of `make_schema` one is small, the other large.
    """
    sizes = {
        "embedding_dim": 2,
        "small_rows": 5,
        "bottom": (6, 5),
        "expert": (5, 4),
        "experts": 4,
        "levels": ((5,), (4, 3)),
        "shared_experts": 1,
        "task_experts": 2,
        "tower": (3,),
        "dropout": 0.0,
    }
    return ModelConfig(name=name, **(sizes | changes))


BRANDS = MultiValuedField("brands", 5, width=3)
SHOPS = MultiValuedField("shops", 4, width=2, pool="mean")


def make_schema(sizes=(4, 2), numerical=3, labels=LABELS, multi_valued=()):
    return Schema(
        categorical=tuple(CategoricalField(f"c{i}", n) for i, n in enumerate(sizes)),
        numerical=tuple(NumericalField(f"n{i}") for i in range(numerical)),
        labels=labels,
        multi_valued=multi_valued,
    )


def make_inputs(schema, batch, seed=0):
    random = np.random.default_rng(seed)
    ids = [random.integers(0, f.rows, batch) for f in schema.categorical]
    numerical = random.normal(size=(batch, len(schema.numerical)))
    inputs = {
        "categorical": np.array(ids, np.int32).reshape(-1, batch).T,
        "numerical": numerical.astype(np.float32),
    }
    if schema.multi_valued:
        ids = [
            random.integers(0, f.rows, (batch, f.width)) for f in schema.multi_valued
        ]
        weights = random.uniform(0.1, 3, (batch, schema.multi_width))
        # Lists of any length, the empty one of every field in row 0.
        weights *= random.random(weights.shape) < 0.6
        weights[0] = 0
        inputs["multi_ids"] = np.concatenate(ids, axis=1).astype(np.int32)
        inputs["multi_weights"] = weights.astype(np.float32)
    return inputs


def make_variables(model, inputs, seed=0):
    """Random values in every variable: initial ones would hide a swap of two zeros."""
    random = np.random.default_rng(seed)
    shapes = jax.eval_shape(
        lambda key: model.init(key, inputs, train=False), jax.random.key(0)
    )

    def fill(path, leaf):
        if path[-1].key == "var":
            return random.uniform(0.5, 2, leaf.shape).astype(np.float32)
        return random.normal(0, 0.6, leaf.shape).astype(np.float32)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def open_relus(variables):
    """With biases of the norms so high that hardly a ReLU is closed.

    AITM's attention reads these large outputs with small weights, or it would saturate.
    """

    def lift(path, leaf):
        if path[0].key.startswith("transfer"):
            return leaf / 30
        norm = path[-2].key.startswith("norm") and path[-1].key == "bias"
        return leaf + 5 if norm else leaf

    params = jax.tree_util.tree_map_with_path(lift, variables["params"])
    return {**variables, "params": params}
