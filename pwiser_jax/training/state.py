"""The train state of a configuration, drawn from its seed, and its shapes."""

from collections.abc import Callable
from contextlib import nullcontext
from functools import lru_cache, partial

import jax

from pwiser_jax.config import Config
from pwiser_jax.models.layout import layout
from pwiser_jax.schema import Schema
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices.programs import drawn_on_host
from pwiser_jax.training.step import (
    StepSpec,
    TrainState,
    initial_state,
    state_shapes,
    step_spec,
)

# The program that draws the weights is large and runs once: without optimisation it
# compiles three times faster.
RUN_ONCE = {"xla_backend_optimization_level": 0}


def new_state(spec: StepSpec, seed: int) -> TrainState:
    """The state at step 0, drawn from the seed."""
    with drawn_on_host() if spec.sharded else nullcontext():
        return draw_program(spec)(seed)


@lru_cache(maxsize=16)
def draw_program(spec: StepSpec) -> Callable[[int], TrainState]:
    """Draws a state from a seed. Cached: another seed does not recompile."""
    return jax.jit(partial(initial_state, spec), compiler_options=RUN_ONCE)


def state_template(config: Config, schema: Schema) -> TrainState:
    """The shapes and dtypes of a configuration's state."""
    space = config.model.cvr_space
    objective, _ = objectives.build(config.loss, schema.labels, space)
    return state_shapes(step_spec(config, schema, objective))


def table_rows(config: Config, schema: Schema) -> int:
    """Rows of the large embedding table, over all devices."""
    return layout(config.model, schema).large_size
