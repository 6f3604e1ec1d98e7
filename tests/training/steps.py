"""A small schema and batches, for tests of steps and objectives."""

import jax
import numpy as np

from pwiser_jax.config import LossConfig
from pwiser_jax.data.batches.batches import Batch
from pwiser_jax.schema import CategoricalField, NumericalField, Schema

SCHEMA = Schema(
    categorical=(CategoricalField("user", 9), CategoricalField("item", 5)),
    numerical=(NumericalField("price"), NumericalField("age")),
)

PWISER = LossConfig(ranking="pwiser", lambdas=0.0)


def make_batch(rows: int, seed: int = 0, padding: int = 0) -> Batch:
    rng = np.random.default_rng(seed)
    click = rng.random(rows) < 0.4
    conversion = click & (rng.random(rows) < 0.4)
    inputs = {
        "categorical": np.stack(
            [rng.integers(0, 12, rows), rng.integers(0, 8, rows)], axis=1
        ).astype(np.int32),
        "numerical": rng.normal(size=(rows, 2)).astype(np.float32),
    }
    labels = np.stack([click, conversion], axis=1).astype(np.int8)
    mask = np.ones(rows, bool)

    def pad(array: np.ndarray) -> np.ndarray:
        filler = np.zeros((padding, *array.shape[1:]), array.dtype)
        return np.concatenate([array, filler])

    inputs, labels, mask = jax.tree.map(pad, (inputs, labels, mask))
    places = np.arange(rows + padding, dtype=np.uint32)
    return Batch(inputs, labels, mask, places, mask.astype(np.float32))
