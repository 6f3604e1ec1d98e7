"""A small schema and batches, for tests of steps and objectives."""

from functools import partial
from typing import Any

import jax
import numpy as np

from pwiser_jax.config import LossConfig
from pwiser_jax.data.batches.batches import Batch
from pwiser_jax.schema import CategoricalField, NumericalField, Schema
from pwiser_jax.training.step import StepSpec, train_step

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


def step_of(model: Any, objective: Any, axis_name: str | None = None) -> Any:
    spec = StepSpec(
        model=model, schema=SCHEMA, objective=objective, axis_name=axis_name
    )
    return partial(train_step, spec)


def gradients(step: Any, *arguments: Any) -> tuple[Any, Any]:
    """First-step losses and gradients: after one step Adam's first moment is 0.1 g."""
    state, losses, diagnostics = step(*arguments)
    moment = state.optimizer[1].mu
    banks = {f"bank/{name}": bank.scores for name, bank in state.banks.items()}
    metrics = losses | diagnostics | banks
    return jax.tree.map(lambda m: np.asarray(m) * 10, moment), metrics
