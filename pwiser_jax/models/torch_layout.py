"""Weights in PyTorch's layout, under the names that MTReclib's models give them.

`variables_from_torch` needs no torch. Where torch is, a state dict becomes arrays by

    state = torch.load(path, map_location="cpu", weights_only=True)
    state = {name: tensor.numpy() for name, tensor in state.items()}

t counts tasks, e experts, l levels. An `mlp` is a Sequential of blocks, each Linear,
BatchNorm, ReLU and Dropout; a tower's ends in Linear(-> 1).

    all but SingleTask   embedding.embedding, numerical_layer
    SingleTask           embedding.{t}.embedding, numerical_layer.{t}, bottom.{t}.mlp
    SharedBottom         bottom.mlp
    MMoE                 expert.{e}.mlp, gate.{t}.0
    PLE                  task_experts.{l}.{t}.{e}.mlp, share_experts.{l}.{e}.mlp,
                         task_gates.{l}.{t}.0, share_gates.{l}.0
    all                  tower.{t}.mlp

The columns of PLE's gates come in one order there and here: a task's own experts, then
the shared ones; for the shared gate those of each task in turn, then the shared ones.

Reference: MTReclib, https://github.com/easezyc/Multitask-Recommendation-Library
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.config import ModelName
from pwiser_jax.models.torch_reader import TorchReader


def variables_from_torch(
    model: MultiTaskModel, state: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """The model's "params" and "batch_stats", float32, with the numbers of `state`.

    Task t there is the t-th label here; fields and numerical columns come in the
    schema's order, and ids are those of the schema. That layout has no rows for
    reserved ids (missing, unseen, rare): here they are zeros, as in a new model. A
    schema without categorical or without numerical fields goes with a state without
    those layers.

    Not read are `num_batches_tracked`, which means nothing to a BatchNorm with
    momentum, and the shared gate of PLE's last level, which feeds nothing; they may be
    absent.

    Args:
        model: of the sizes of the model that `state` is from.
        state: arrays by name; they are copied.

    Raises:
        ValueError: a name is missing, or is not one of such a model; an array has
            another shape, or holds no floating-point numbers; the schema has
            multi-valued fields, or cvr_space is not "ctcvr".
    """
    _check(model)
    reader = TorchReader(state)
    width = BODIES[model.config.name](reader, model)
    reader.towers("tower.*.mlp", width, model.config.tower, len(model.heads))
    reader.refuse_unread(model.config.name)
    return reader.variables()


def _check(model: MultiTaskModel) -> None:
    if model.schema.multi_valued:
        names = ", ".join(field.name for field in model.schema.multi_valued)
        raise ValueError(
            "PyTorch's layout has no multi-valued fields, but the schema has some: "
            f"{names}"
        )
    if model.config.cvr_space != "ctcvr":
        raise ValueError(
            "in PyTorch's layout each head predicts its label on all rows: "
            f"model.cvr_space must be 'ctcvr', not {model.config.cvr_space!r}"
        )


# What is below the towers of each model: each returns the width that a tower reads.


def _single_task(reader: TorchReader, model: MultiTaskModel) -> int:
    width = 0
    for t, head in enumerate(model.heads):
        inputs = reader.embedding(f"embedding_{head}", f".{t}", model)
        path, name = (f"bottom_{head}",), f"bottom.{t}.mlp"
        width = reader.blocks(path, name, inputs, model.config.bottom)
    return width


def _shared_bottom(reader: TorchReader, model: MultiTaskModel) -> int:
    inputs = reader.embedding("embedding", "", model)
    return reader.blocks(("bottom",), "bottom.mlp", inputs, model.config.bottom)


def _mmoe(reader: TorchReader, model: MultiTaskModel) -> int:
    sizes = model.config
    inputs = reader.embedding("embedding", "", model)
    heads = len(model.heads)
    reader.linear(("gates",), "gate.*.0", inputs, sizes.experts, heads)
    path, name = ("experts",), "expert.*.mlp"
    return reader.blocks(path, name, inputs, sizes.expert, sizes.experts)


def _ple(reader: TorchReader, model: MultiTaskModel) -> int:
    own, shared = model.config.task_experts, model.config.shared_experts
    width = reader.embedding("embedding", "", model)
    for i, hidden in enumerate(model.config.levels):
        level, inputs = f"level_{i}", width
        for t, head in enumerate(model.heads):
            path, name = (level, f"experts_{head}"), f"task_experts.{i}.{t}.*.mlp"
            reader.blocks(path, name, inputs, hidden, own)
            path, name = (level, f"gate_{head}"), f"task_gates.{i}.{t}.0"
            reader.linear(path, name, inputs, own + shared)
        path, name = (level, "shared_experts"), f"share_experts.{i}.*.mlp"
        width = reader.blocks(path, name, inputs, hidden, shared)
        path, name = (level, "shared_gate"), f"share_gates.{i}.0"
        if i < len(model.config.levels) - 1:
            columns = own * len(model.heads) + shared
            reader.linear(path, name, inputs, columns)
        else:
            reader.skip(f"{name}.weight")
            reader.skip(f"{name}.bias")
    return width


BODIES: dict[ModelName, Callable[[TorchReader, MultiTaskModel], int]] = {
    "single_task": _single_task,
    "shared_bottom": _shared_bottom,
    "mmoe": _mmoe,
    "ple": _ple,
}
