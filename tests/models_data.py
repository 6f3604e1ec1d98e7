"""Tiny configs, schemas, batches and variables for the tests of the models."""

import jax
import numpy as np

from pwiser_jax.data.schema import CategoricalField, NumericalField, Schema
from pwiser_jax.models import ModelConfig

MODELS = ("single_task", "shared_bottom", "mmoe", "ple")
LABELS = ("click", "cart", "order")


def tiny(name, **changes):
    """Numbers of experts that differ from each other and from the three tasks."""
    sizes = {
        "embedding_dim": 2,
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


def make_schema(sizes=(4, 2), numerical=3, labels=LABELS):
    return Schema(
        categorical=tuple(CategoricalField(f"c{i}", n) for i, n in enumerate(sizes)),
        numerical=tuple(NumericalField(f"n{i}") for i in range(numerical)),
        labels=labels,
    )


def make_inputs(schema, batch, seed=0):
    random = np.random.default_rng(seed)
    ids = [random.integers(0, f.rows, batch) for f in schema.categorical]
    numerical = random.normal(size=(batch, len(schema.numerical)))
    return {
        "categorical": np.array(ids, np.int32).reshape(-1, batch).T,
        "numerical": numerical.astype(np.float32),
    }


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
    """With biases of the norms so high that hardly a ReLU is closed."""

    def lift(path, leaf):
        norm = path[-2].key.startswith("norm") and path[-1].key == "bias"
        return leaf + 5 if norm else leaf

    params = jax.tree_util.tree_map_with_path(lift, variables["params"])
    return {**variables, "params": params}
