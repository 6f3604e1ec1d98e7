"""Devices: the only module that knows how many there are.

`jax.pmap` over the local devices: the state is given whole to each of them (no device
axis, `in_axes=None`), a batch is cut into one part a device.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from pwiser_jax.config import EmbeddingOptimizer
from pwiser_jax.data import batches as data
from pwiser_jax.models import build
from pwiser_jax.models.config import ModelConfig
from pwiser_jax.training.objective import Objective
from pwiser_jax.training.step import Batch, eval_step, train_step

AXIS = "devices"


def device_count() -> int:
    return jax.local_device_count()


# Programs are kept by what they were compiled for, so that a second run of the same
# shapes in one process (other seed, lambda or margins) compiles nothing.


@functools.lru_cache(maxsize=16)
def train_program(
    model: ModelConfig,
    schema: Any,
    objective: Objective,
    embedding: EmbeddingOptimizer = "adam",
) -> Any:
    """The pmapped train step; the old state's buffers are given up to the new one."""
    module = build(model, schema, axis_name=AXIS)
    return jax.pmap(
        train_step(module, objective, AXIS, embedding),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=None,
        donate_argnums=0,
    )


@functools.lru_cache(maxsize=16)
def eval_program(model: ModelConfig, schema: Any) -> Any:
    """The pmapped evaluation step; its logits keep the device axis."""
    module: nn.Module = build(model, schema)
    return jax.pmap(eval_step(module), axis_name=AXIS, in_axes=(None, None, 0))


def split_rows(tree: Any, devices: int) -> Any:
    """[B, ...] arrays -> [devices, B / devices, ...]; B is padded with zeros to fit.

    A padded row is 0 everywhere, its `mask` too, so it counts for nothing.
    """

    def cut(array: Any) -> np.ndarray:
        array = np.asarray(array)
        short = -len(array) % devices
        if short:
            zeros = np.zeros((short, *array.shape[1:]), array.dtype)
            array = np.concatenate([array, zeros])
        return array.reshape(devices, len(array) // devices, *array.shape[1:])

    return jax.tree.map(cut, tree)


def shard_batch(batch: data.Batch, devices: int) -> Batch:
    """What a step needs of a batch of the data pipeline, cut for the devices."""
    parts = batch.inputs, batch.labels, batch.mask, batch.rows, batch.weights
    return Batch(*split_rows(parts, devices))
