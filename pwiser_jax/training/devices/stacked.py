"""Runs of one shape in one program, over shared batches: a sweep's programs.

`jax.shard_map` over runs gives each device whole runs, so devices do not communicate.
See `stack` for the program of a device's runs.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from pwiser_jax.config import Config
from pwiser_jax.data.batches.batches import Batch, epoch_batches, sequential_batches
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.schema import Schema
from pwiser_jax.training.devices.programs import AXIS, device_count
from pwiser_jax.training.devices.several import MOST_STEPS
from pwiser_jax.training.devices.stack import (
    VARIED,
    filled,
    stack,
    stack_hypers,
    stacked_eval,
    stacked_steps,
)
from pwiser_jax.training.objective import Objective, Weights
from pwiser_jax.training.state import new_state
from pwiser_jax.training.step import (
    Hyper,
    ModelSpec,
    StepSpec,
    TrainState,
    eval_step,
    hyper,
    state_shapes,
    step_spec,
    train_step,
)
from pwiser_jax.training.warm_start import warm_started


def runs_at_once(runs: int) -> int:
    """Number of a device's runs that are computed together, under vmap."""
    return 1 if jax.default_backend() == "cpu" else -(-runs // device_count())


def stack_size(runs: int) -> int:
    """The smallest number >= `runs` that the devices share evenly."""
    at_once = runs_at_once(runs)
    return -(-runs // (at_once * device_count())) * at_once * device_count()


@functools.lru_cache(maxsize=16)
def sweep_program(spec: StepSpec, at_once: int) -> Any:
    """`stacked_steps` over the devices; the old states are donated."""
    steps = stacked_steps(functools.partial(train_step, spec), at_once)
    shared, by_run = PartitionSpec(), PartitionSpec(AXIS)
    hypers = Hyper._make(by_run if name in VARIED else shared for name in Hyper._fields)
    specs = (by_run, shared, shared, hypers, by_run, by_run)
    return jax.jit(_over_devices(steps, specs, by_run), donate_argnums=0)


@functools.lru_cache(maxsize=16)
def sweep_eval_program(spec: ModelSpec, at_once: int) -> Any:
    """`stacked_eval` over the devices."""
    logits = stacked_eval(functools.partial(eval_step, spec), at_once)
    shared, by_run = PartitionSpec(), PartitionSpec(AXIS)
    return jax.jit(_over_devices(logits, (by_run, by_run, shared, by_run), by_run))


def shard_runs(tree: Any) -> Any:
    """A stack of runs, sharded over the devices by run."""
    return jax.device_put(tree, NamedSharding(_mesh(), PartitionSpec(AXIS)))


def _over_devices(function: Any, in_specs: Any, out_specs: Any) -> Any:
    return jax.shard_map(
        function, mesh=_mesh(), in_specs=in_specs, out_specs=out_specs, check_vma=False
    )


def _mesh() -> Mesh:
    return Mesh(np.array(jax.local_devices()), (AXIS,))


class Stacked:
    """The `runs.Programs` of a sweep.

    A state is a `TrainState` of [R, ...]; on the devices the last run is repeated up to
    the size of the stack, and these copies are never active.

    Args:
        configs: one per run; they differ only in traced numbers and seeds.
        schema: schema of the data.
        objective: the union of the runs' objectives.
        weights: the traced numbers of each run.
        rows: training rows.
        total_steps: steps over all epochs.
    """

    def __init__(
        self,
        configs: Sequence[Config],
        schema: Schema,
        objective: Objective,
        weights: Sequence[Weights],
        rows: Rows,
        total_steps: int,
    ) -> None:
        self._configs, self.schema = configs, schema
        self._config, self._rows = configs[0], rows
        self._spec = step_spec(self._config, schema, objective)
        self._size = stack_size(len(configs))
        self._seeds = sorted({config.train.seed for config in configs})
        orders = [self._seeds.index(config.train.seed) for config in configs]
        self._orders = np.array(self._padded(orders), np.int32)
        hypers = [
            hyper(config, numbers, total_steps)
            for config, numbers in zip(configs, weights, strict=True)
        ]
        self._hypers = stack_hypers(self._padded(hypers))
        at_once = runs_at_once(len(configs))
        self._program = sweep_program(self._spec, at_once)
        evaluated = ModelSpec(model=self._config.model, schema=schema)
        self._evaluate = sweep_eval_program(evaluated, at_once)

    def _padded(self, items: list[Any]) -> list[Any]:
        return items + items[-1:] * (self._size - len(items))

    def _mask(self, active: Sequence[int]) -> np.ndarray:
        mask = np.zeros(self._size, bool)
        mask[list(active)] = True
        return mask

    def initial(self) -> TrainState:
        drawn = {
            seed: warm_started(
                self._config, jax.device_get(new_state(self._spec, seed))
            )
            for seed in self._seeds
        }
        return stack([drawn[each.train.seed] for each in self._configs])

    def template(self) -> TrainState:
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((len(self._configs), *x.shape), x.dtype),
            state_shapes(self._spec),
        )

    def place(self, state: TrainState) -> TrainState:
        missing = self._size - len(self._configs)
        return shard_runs(
            jax.tree.map(
                lambda x: np.concatenate([x, *[np.asarray(x)[-1:]] * missing]), state
            )
        )

    def whole(self, state: TrainState) -> TrainState:
        # Copies: the next step donates the buffers of the states.
        runs = len(self._configs)
        return jax.tree.map(lambda x: np.array(x[:runs]), jax.device_get(state))

    def batches(self, epoch: int, start_step: int) -> Callable[[int], Batch]:
        """Batches are [k, S, B, ...]: those of each distinct seed."""
        data = self._config.data
        orders = [
            epoch_batches(
                self._rows,
                data.batch_size,
                seed=seed,
                epoch=epoch,
                start_step=start_step,
                min_conversions=data.min_conversions,
                order=data.order,
            )
            for seed in self._seeds
        ]
        most = self._config.train.steps_per_call or MOST_STEPS

        def next_batches(count: int) -> Batch:
            steps = [stack([next(order) for order in orders]) for _ in range(count)]
            return filled(stack(steps), most)

        return next_batches

    def train(
        self, state: Any, batches: Batch, count: int, active: Sequence[int]
    ) -> tuple[Any, Any]:
        steps = np.int32(count)
        mask = self._mask(active)
        return self._program(state, batches, steps, self._hypers, self._orders, mask)

    def metrics_of(self, values: Any, run: int) -> list[dict[str, np.ndarray]]:
        return jax.tree.map(lambda each: each[run], values)

    def logits(
        self, state: Any, rows: Rows, active: Sequence[int]
    ) -> Callable[[int], dict[str, np.ndarray]]:
        chunks: dict[str, list[np.ndarray]] = {}
        mask = self._mask(active)
        for batch in sequential_batches(rows, self._config.data.eval_batch_size):
            logits = self._evaluate(state.params, state.batch_stats, batch.inputs, mask)
            count = int(np.sum(batch.mask))
            for name, values in jax.device_get(logits).items():
                chunks.setdefault(name, []).append(values[:, :count])
        whole = {name: np.concatenate(each, axis=1) for name, each in chunks.items()}
        return lambda run: {name: values[run] for name, values in whole.items()}
