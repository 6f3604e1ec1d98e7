"""The train state of a configuration, drawn from its seed, and its shapes."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache

import jax
from flax.traverse_util import flatten_dict, unflatten_dict

from pwiser_jax.config import Config
from pwiser_jax.models.layout import layout
from pwiser_jax.models.start import Path, Uniform
from pwiser_jax.schema import Schema
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices.programs import drawn_on_host
from pwiser_jax.training.step import (
    StepSpec,
    TrainState,
    declared_state,
    state_shapes,
    step_spec,
)

# The program runs once: without optimisation it compiles faster.
RUN_ONCE = {"xla_backend_optimization_level": 0}


def new_state(spec: StepSpec, seed: int) -> TrainState:
    """The state at step 0, drawn from the seed.

    Weights and tables are drawn by NumPy, with the same values on every device. Other
    initializers, of a model of your own, are drawn by jax.
    """
    with drawn_on_host() if spec.sharded else nullcontext():
        state, starts = _rest_program(spec)(seed)
    params = flatten_dict(state.params)
    params |= {path: start.by_numpy(path, seed) for path, start in starts.items()}
    return state._replace(params=unflatten_dict(params))


@lru_cache(maxsize=16)
def _rest_program(
    spec: StepSpec,
) -> Callable[[int], tuple[TrainState, dict[Path, Uniform]]]:
    """A state without the parameters that NumPy draws, and their declarations.

    Cached: another seed does not recompile.
    """

    def rest(seed: jax.Array) -> tuple[TrainState, dict[Path, Uniform]]:
        state, starts = declared_state(spec, seed)
        params = flatten_dict(state.params)
        others = {path: params[path] for path in params if path not in starts}
        return state._replace(params=unflatten_dict(others)), starts

    return jax.jit(rest, compiler_options=RUN_ONCE)


def state_template(config: Config, schema: Schema) -> TrainState:
    """The shapes and dtypes of a configuration's state."""
    space = config.model.cvr_space
    objective, _ = objectives.build(config.loss, schema.labels, space)
    return state_shapes(step_spec(config, schema, objective))


def table_rows(config: Config, schema: Schema) -> int:
    """Rows of the large embedding table, over all devices."""
    return layout(config.model, schema).large_size
