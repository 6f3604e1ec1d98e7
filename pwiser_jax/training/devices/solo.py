"""One run, data-parallel over the devices of all processes by `jax.pmap`."""

from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any

import numpy as np

from pwiser_jax.config import Config
from pwiser_jax.data.batches.batches import Batch, epoch_order
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.schema import Schema
from pwiser_jax.training.devices import processes
from pwiser_jax.training.devices.programs import (
    replicated,
    shard,
    train_program,
    unshard,
)
from pwiser_jax.training.devices.several import MOST_STEPS
from pwiser_jax.training.devices.source import source
from pwiser_jax.training.logits import predict_logits
from pwiser_jax.training.objective import Objective, Weights
from pwiser_jax.training.state import new_state, table_rows
from pwiser_jax.training.step import TrainState, hyper, state_shapes, step_spec
from pwiser_jax.training.warm_start import warm_started


class Solo:
    """The `runs.Programs` of one run.

    Args:
        config: the run's configuration.
        schema: schema of the data.
        objective: objective of the configuration.
        weights: traced numbers of the objective.
        rows: training rows.
        total_steps: steps over all epochs.
    """

    def __init__(
        self,
        config: Config,
        schema: Schema,
        objective: Objective,
        weights: Weights,
        rows: Rows,
        total_steps: int,
    ) -> None:
        self._config, self.schema = config, schema
        self._spec = step_spec(config, schema, objective)
        self._rows, self._source = rows, source(rows, config.data.rows_from)
        self._shard = config.optimizer.shard_tables
        self._numbers = replicated(hyper(config, weights, total_steps))
        self._program = train_program(self._spec)

    def initial(self) -> TrainState:
        fresh = new_state(self._spec, self._config.train.seed)
        return warm_started(self._config, processes.state_from_first(fresh))

    def template(self) -> TrainState:
        return state_shapes(self._spec)

    def place(self, state: TrainState) -> Any:
        return shard(state, self._shard)

    def whole(self, state: Any) -> TrainState:
        if not self._shard:
            return state
        return unshard(state, table_rows(self._config, self.schema))

    def batches(self, epoch: int, start_step: int) -> Callable[[int], Batch]:
        data, train = self._config.data, self._config.train
        order = epoch_order(
            self._rows,
            data.batch_size,
            seed=train.seed,
            epoch=epoch,
            start_step=start_step,
            min_conversions=data.min_conversions,
            order=data.order,
            process_index=processes.index(),
            process_count=processes.count(),
        )
        most = train.steps_per_call or MOST_STEPS
        return lambda count: self._source(list(islice(order, count)), most)

    def train(
        self, state: Any, batches: Batch, count: int, active: Sequence[int]
    ) -> tuple[Any, Any]:
        del active  # the one run
        return self._program(state, batches, np.int32(count), self._numbers)

    def metrics_of(self, values: Any, run: int) -> list[dict[str, np.ndarray]]:
        del run
        return values

    def logits(
        self, state: Any, rows: Rows, active: Sequence[int]
    ) -> Callable[[int], dict[str, np.ndarray]]:
        del active
        logits = predict_logits(self._config, self.schema, state, rows)
        return lambda run: logits
