"""Initial values of parameters: uniform, declared by the layers, drawn by NumPy.

Compiling a program that draws them would take longer than drawing them.
"""

import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict

Path = tuple[str, ...]

SOWN = "start_"  # before the parameter's name


@jax.tree_util.register_static
@dataclass(frozen=True, eq=False)
class Uniform:
    """A parameter's shape and initial values: uniform in ±bound.

    Attributes:
        shape: of the parameter.
        bound: the largest absolute value.
        rows: bool[N] of a table [N, D]; the rows that are False start at zero.
    """

    shape: tuple[int, ...]
    bound: float
    rows: np.ndarray | None = None

    def by_jax(self, key: jax.Array) -> jax.Array:
        """Draws by jax: what flax's `init` gives."""
        values = jax.random.uniform(
            key, self.shape, minval=-self.bound, maxval=self.bound
        )
        return values if self.rows is None else jnp.where(self.rows[:, None], values, 0)

    def by_numpy(self, path: Path, seed: int) -> np.ndarray:
        """Draws by NumPy. The values depend on the seed and the parameter's path."""
        stream = zlib.crc32("/".join(path).encode())
        values = np.random.default_rng((seed, stream)).random(self.shape, np.float32)
        values *= 2
        values -= 1
        values *= np.float32(self.bound)
        if self.rows is not None:
            values[~self.rows] = 0
        return values


def uniform(
    module: nn.Module,
    name: str,
    shape: tuple[int, ...],
    bound: float,
    rows: np.ndarray | None = None,
) -> jax.Array:
    """Declares a parameter of a module; see `Uniform`.

    `module.init(..., mutable=True)` gives the declaration, too, for `declared`.
    """
    start = Uniform(shape, bound, rows)
    if module.is_initializing():
        module.sow("intermediates", SOWN + name, start)
    return module.param(name, start.by_jax)


def declared(intermediates: Mapping[str, Any]) -> dict[Path, Uniform]:
    """The declarations that `init` has sown, by the parameter's path."""
    sown: Any = flatten_dict(intermediates)
    return {
        (*path, name.removeprefix(SOWN)): values[0]
        for (*path, name), values in sown.items()
        if name.startswith(SOWN)
    }
