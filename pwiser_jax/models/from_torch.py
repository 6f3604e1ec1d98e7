"""Loads weights from a state dict of MTReclib's PyTorch models.

`variables_from_torch` takes NumPy arrays and needs no torch. With torch:

    state = torch.load(path, map_location="cpu", weights_only=True)
    state = {name: tensor.numpy() for name, tensor in state.items()}

Names of the layers, with t for the task, e for the expert and l for the level. An
`mlp` is a Sequential of blocks (Linear, BatchNorm, ReLU, Dropout); that of a tower ends
in Linear(-> 1).

    all but SingleTask   embedding.embedding, numerical_layer
    SingleTask           embedding.{t}.embedding, numerical_layer.{t}, bottom.{t}.mlp
    SharedBottom         bottom.mlp
    MMoE                 expert.{e}.mlp, gate.{t}.0
    PLE                  task_experts.{l}.{t}.{e}.mlp, share_experts.{l}.{e}.mlp,
                         task_gates.{l}.{t}.0, share_gates.{l}.0
    all                  tower.{t}.mlp

The columns of PLE's gates have the same order in both: the task's experts, then the
shared ones; for the shared gate those of each task in turn, then the shared ones.

Reference: MTReclib, https://github.com/easezyc/Multitask-Recommendation-Library
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.layout import layout, own_rows
from pwiser_jax.models.mmoe import MMoE
from pwiser_jax.models.ple import PLE
from pwiser_jax.models.shared_bottom import SharedBottom
from pwiser_jax.models.single_task import SingleTask

BLOCK = 4  # modules in a block: Linear, BatchNorm, ReLU, Dropout

Path = tuple[str, ...]


def variables_from_torch(
    model: MultiTaskModel, state: Mapping[str, np.ndarray]
) -> dict[str, Any]:
    """Converts a state dict to the model's "params" and "batch_stats", in float32.

    Task t of the state dict is the t-th label of the schema; fields, numerical columns
    and ids are those of the schema, in its order. MTReclib has no rows for reserved ids
    (missing, unseen, rare): they become zeros, as in a new model. A schema without
    categorical or without numerical fields expects a state dict without those layers.

    Two entries may be absent and are ignored: `num_batches_tracked`, which a BatchNorm
    with momentum does not use, and the shared gate of PLE's last level, which no layer
    reads.

    Args:
        model: a model of the same sizes as the one that `state` comes from.
        state: arrays by name; they are copied.

    Returns:
        Variables for `model.apply`.

    Raises:
        ValueError: a name is missing or unknown; an array has the wrong shape or is not
            of floating-point numbers; the model is none of MTReclib's, has two logits a
            head, multi-valued fields, or a cvr_space other than "ctcvr".
    """
    body = _check(model)
    reader = TorchReader(state)
    width = body(reader, model)
    reader.towers("tower.*.mlp", width, model.config.tower, len(model.heads))
    reader.refuse_unread(model.config.name)
    return reader.variables()


def _check(model: MultiTaskModel) -> "Body":
    """Returns the function that reads the model's layers below the towers."""
    bodies = [body for cls, body in BODIES.items() if isinstance(model, cls)]
    if not bodies:
        raise ValueError(f"MTReclib has no model like {model.config.name}")
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
    if model.config.wide:
        raise ValueError("MTReclib has no wide part: model.wide must be false")
    if model.config.two_logits:
        raise ValueError(
            "MTReclib's heads have one logit: model.two_logits must be false"
        )
    return bodies[0]


# Each reads a model's layers below the towers and returns the width of their output.


def _single_task(reader: "TorchReader", model: MultiTaskModel) -> int:
    width = 0
    for t, head in enumerate(model.heads):
        inputs = reader.embedding(f"embedding_{head}", f".{t}", model)
        path, name = (f"bottom_{head}",), f"bottom.{t}.mlp"
        width = reader.blocks(path, name, inputs, model.config.bottom)
    return width


def _shared_bottom(reader: "TorchReader", model: MultiTaskModel) -> int:
    inputs = reader.embedding("embedding", "", model)
    return reader.blocks(("bottom",), "bottom.mlp", inputs, model.config.bottom)


def _mmoe(reader: "TorchReader", model: MultiTaskModel) -> int:
    sizes = model.config
    inputs = reader.embedding("embedding", "", model)
    heads = len(model.heads)
    reader.linear(("gates",), "gate.*.0", inputs, sizes.experts, heads)
    path, name = ("experts",), "expert.*.mlp"
    return reader.blocks(path, name, inputs, sizes.expert, sizes.experts)


def _ple(reader: "TorchReader", model: MultiTaskModel) -> int:
    experts, shared = model.config.task_experts, model.config.shared_experts
    width = reader.embedding("embedding", "", model)
    for i, hidden in enumerate(model.config.levels):
        level, inputs = f"level_{i}", width
        for t, head in enumerate(model.heads):
            path, name = (level, f"experts_{head}"), f"task_experts.{i}.{t}.*.mlp"
            reader.blocks(path, name, inputs, hidden, experts)
            path, name = (level, f"gate_{head}"), f"task_gates.{i}.{t}.0"
            reader.linear(path, name, inputs, experts + shared)
        path, name = (level, "shared_experts"), f"share_experts.{i}.*.mlp"
        width = reader.blocks(path, name, inputs, hidden, shared)
        path, name = (level, "shared_gate"), f"share_gates.{i}.0"
        if i < len(model.config.levels) - 1:
            columns = experts * len(model.heads) + shared
            reader.linear(path, name, inputs, columns)
        else:
            reader.skip(f"{name}.weight")
            reader.skip(f"{name}.bias")
    return width


Body = Callable[["TorchReader", MultiTaskModel], int]

BODIES: dict[type[MultiTaskModel], Body] = {
    SingleTask: _single_task,
    SharedBottom: _shared_bottom,
    MMoE: _mmoe,
    PLE: _ple,
}


class TorchReader:
    """Reads layers from a state dict and stores them under this package's paths.

    With `stack`, `*` in a name stands for 0 .. stack - 1: those layers become one
    stacked layer.
    """

    def __init__(self, state: Mapping[str, np.ndarray]) -> None:
        self._state = state
        self._unread = dict.fromkeys(state)
        self._params: dict[Path, np.ndarray] = {}
        self._batch_stats: dict[Path, np.ndarray] = {}

    def linear(
        self, path: Path, name: str, inputs: int, outputs: int, stack: int | None = None
    ) -> None:
        weight = self._take(f"{name}.weight", (outputs, inputs), stack)
        self._params[*path, "kernel"] = np.swapaxes(weight, -1, -2)
        self._params[*path, "bias"] = self._take(f"{name}.bias", (outputs,), stack)

    def blocks(
        self,
        path: Path,
        name: str,
        inputs: int,
        hidden: tuple[int, ...],
        stack: int | None = None,
    ) -> int:
        """Reads hidden layers and returns the width of the last."""
        for i, width in enumerate(hidden):
            linear, norm = f"{name}.{BLOCK * i}", f"{name}.{BLOCK * i + 1}"
            self.linear((*path, f"layer_{i}"), linear, inputs, width, stack)
            self._norm((*path, f"norm_{i}"), norm, width, stack)
            inputs = width
        return inputs

    def towers(
        self, name: str, inputs: int, hidden: tuple[int, ...], tasks: int
    ) -> None:
        width = self.blocks(("towers", "hidden"), name, inputs, hidden, tasks)
        last = f"{name}.{BLOCK * len(hidden)}"
        self.linear(("towers", "out"), last, width, 1, tasks)

    def embedding(self, path: str, task: str, model: MultiTaskModel) -> int:
        """Reads an embedding and returns its width; `task` is the names' suffix."""
        schema, dim = model.schema, model.config.embedding_dim
        tables = layout(model.config, schema)
        if schema.categorical:
            sizes = schema.field_sizes
            name = f"embedding{task}.embedding.weight"
            table = self._take(name, (sum(sizes), dim))
            by_field = np.split(table, np.cumsum(sizes)[:-1])
            names = (field.name for field in schema.categorical)
            by_name = dict(zip(names, by_field, strict=True))
            for kind, fields in (("small", tables.small), ("large", tables.large)):
                if fields:
                    has_vector = own_rows(fields)
                    rows = np.zeros((len(has_vector), dim), np.float32)
                    rows[has_vector] = np.concatenate([by_name[f.name] for f in fields])
                    self._params[path, kind] = rows
        if schema.numerical:
            name, columns = f"numerical_layer{task}", len(schema.numerical)
            self.linear((path, "numerical"), name, columns, dim)
        return dim * (len(schema.categorical) + bool(schema.numerical))

    def skip(self, name: str) -> None:
        """Ignores an array that may be present."""
        self._unread.pop(name, None)

    def refuse_unread(self, model: str) -> None:
        if not self._unread:
            return
        first, *others = self._unread
        more = f" and {len(others)} more names" if others else ""
        raise ValueError(
            f"the state dict has {first}{more}, which a {model} of this model's sizes, "
            "fields and labels does not have"
        )

    def variables(self) -> dict[str, Any]:
        return {
            "params": unflatten_dict(self._params),
            "batch_stats": unflatten_dict(self._batch_stats),
        }

    def _norm(self, path: Path, name: str, width: int, stack: int | None) -> None:
        for tree, leaf, entry in (
            (self._params, "scale", "weight"),
            (self._params, "bias", "bias"),
            (self._batch_stats, "mean", "running_mean"),
            (self._batch_stats, "var", "running_var"),
        ):
            tree[*path, leaf] = self._take(f"{name}.{entry}", (width,), stack)
        for counter in _names(f"{name}.num_batches_tracked", stack):
            self.skip(counter)

    def _take(
        self, name: str, shape: tuple[int, ...], stack: int | None = None
    ) -> np.ndarray:
        arrays = [self._array(each, shape) for each in _names(name, stack)]
        return arrays[0] if stack is None else np.stack(arrays)

    def _array(self, name: str, shape: tuple[int, ...]) -> np.ndarray:
        if name not in self._state:
            raise ValueError(f"the state dict has no {name}, of shape {shape}")
        array = np.asarray(self._state[name])
        if array.shape != shape:
            raise ValueError(f"{name} must have shape {shape}, not {array.shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise ValueError(
                f"{name} must hold floating-point numbers, not {array.dtype}"
            )
        self._unread.pop(name)
        # A copy: the array may share memory with a tensor.
        return array.astype(np.float32)


def _names(name: str, stack: int | None) -> list[str]:
    return (
        [name] if stack is None else [name.replace("*", str(e)) for e in range(stack)]
    )
