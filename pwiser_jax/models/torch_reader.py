"""Layers of a PyTorch state dict, read by name and filed under the paths of ours."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.layout import layout, own_rows

BLOCK = 4  # modules of a block: Linear, BatchNorm, ReLU, Dropout

Path = tuple[str, ...]


class TorchReader:
    """Takes arrays from `state`, each of the shape that it must have.

    With `stack`, the name's `*` counts that many layers, which become one of ours.
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
        """Reads hidden layers, and returns the width of the last."""
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
        """Reads an embedding and returns its width; `task` ends the layers' names."""
        schema, dim = model.schema, model.config.embedding_dim
        tables = layout(model.config, schema)
        if schema.categorical:
            sizes = schema.field_sizes
            name = f"embedding{task}.embedding.weight"
            theirs = np.split(
                self._take(name, (sum(sizes), dim)), np.cumsum(sizes)[:-1]
            )
            names = (field.name for field in schema.categorical)
            by_name = dict(zip(names, theirs, strict=True))
            for table, fields in (("small", tables.small), ("large", tables.large)):
                if fields:
                    own = own_rows(fields)
                    ours = np.zeros((len(own), dim), np.float32)
                    ours[own] = np.concatenate([by_name[f.name] for f in fields])
                    self._params[path, table] = ours
        if schema.numerical:
            name, columns = f"numerical_layer{task}", len(schema.numerical)
            self.linear((path, "numerical"), name, columns, dim)
        return dim * (len(schema.categorical) + bool(schema.numerical))

    def skip(self, name: str) -> None:
        """Lets an array be there, or not, that no model of ours has."""
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
        for tree, ours, theirs in (
            (self._params, "scale", "weight"),
            (self._params, "bias", "bias"),
            (self._batch_stats, "mean", "running_mean"),
            (self._batch_stats, "var", "running_var"),
        ):
            tree[*path, ours] = self._take(f"{name}.{theirs}", (width,), stack)
        for one in _names(f"{name}.num_batches_tracked", stack):
            self.skip(one)

    def _take(
        self, name: str, shape: tuple[int, ...], stack: int | None = None
    ) -> np.ndarray:
        arrays = [self._array(one, shape) for one in _names(name, stack)]
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
        # A copy: an array of torch's is its memory, which may go on changing.
        return array.astype(np.float32)


def _names(name: str, stack: int | None) -> list[str]:
    return (
        [name] if stack is None else [name.replace("*", str(e)) for e in range(stack)]
    )
