"""One training step and one evaluation step, as plain functions of arrays."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from pwiser_jax.config import EmbeddingOptimizer
from pwiser_jax.data.batches.batches import Batch
from pwiser_jax.models import MultiTaskModel
from pwiser_jax.models.layout import layout
from pwiser_jax.training import observe
from pwiser_jax.training.objective import Banks, Objective, Weights
from pwiser_jax.training.optimizer import Optimizer, narrowed


class Hyper(NamedTuple):
    """The traced numbers of a run: changing one compiles nothing."""

    seed: jax.Array | int
    learning_rate: jax.Array | float
    l2: jax.Array | float
    weights: Weights
    log_every: jax.Array | int = 1


class TrainState(NamedTuple):
    """What a step changes. A checkpoint is this and the position in the data."""

    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer: optax.OptState
    banks: Banks


def initial_state(
    module: MultiTaskModel,
    objective: Objective,
    inputs: dict[str, Any],
    seed: jax.Array | int,
    embedding: EmbeddingOptimizer = "adam",
) -> TrainState:
    """Weights drawn from `seed`; only the shapes of `inputs` count."""
    variables = module.init(jax.random.key(seed), inputs, train=False)
    params: Any = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        optimizer=_optimizer(module, embedding).init(params),
        banks=objective.empty_banks(),
    )


def _optimizer(
    module: MultiTaskModel, embedding: EmbeddingOptimizer, sharded: bool = False
) -> Optimizer:
    return Optimizer(embedding, layout(module.config, module.schema), sharded)


def train_step(
    module: MultiTaskModel,
    objective: Objective,
    axis_name: str | None,
    embedding: EmbeddingOptimizer = "adam",
    sharded: bool = False,
) -> Callable[[TrainState, Batch, Hyper], tuple[TrainState, dict[str, jax.Array]]]:
    """The step function: (state, batch, hyper) -> (state, metrics).

    Under a mapped axis, each device holds its part of the batch and the whole state;
    losses and batch statistics are global, so the new state is the same everywhere.
    Where `sharded`, each holds but its part of the large tables (see `shards`).
    The metrics are the loss, its parts and, every `log_every` steps, what `observe`
    describes.
    """
    optimizer = _optimizer(module, embedding, sharded)

    def step(
        state: TrainState, batch: Batch, hyper: Hyper
    ) -> tuple[TrainState, dict[str, jax.Array]]:
        # The same key on every device: dropout counts by global row, not by device.
        dropout = jax.random.fold_in(jax.random.key(hyper.seed), state.step)
        params, inputs, which = optimizer.narrow(
            state.params, batch.inputs, batch.mask, axis_name
        )

        def loss_fn(params: Any) -> tuple[jax.Array, Any]:
            logits, changed = module.apply(
                {"params": params, "batch_stats": state.batch_stats},
                inputs,
                train=True,
                mask=batch.mask,
                rows=batch.rows,
                rngs={"dropout": dropout},
                mutable=["batch_stats", "intermediates"],
            )
            loss, (parts, banks) = objective(
                logits,
                batch.labels,
                batch.mask,
                hyper.weights,
                banks=state.banks,
                row_weights=batch.weights,
                axis_name=axis_name,
            )
            return loss, (parts, banks, logits, changed)

        differentiated = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, aux), grads = differentiated(params)
        parts, banks, logits, changed = aux
        if axis_name is not None:
            # The losses are global values, and the mean over devices of their
            # gradients is the gradient of the whole batch (see losses).
            grads = jax.lax.pmean(grads, axis_name)
        new_params, optimizer_state, added = optimizer.update(
            grads,
            state.optimizer,
            state.params,
            which,
            count=state.step + 1,
            learning_rate=hyper.learning_rate,
            l2=hyper.l2,
        )
        new_state = TrainState(
            step=state.step + 1,
            params=new_params,
            batch_stats=changed.get("batch_stats", {}),
            optimizer=optimizer_state,
            banks=banks,
        )

        def observed() -> observe.Observations:
            return {
                **observe.norms(grads, optimizer.everywhere(added(), axis_name)),
                **objective.pair_counts(
                    logits,
                    batch.labels,
                    batch.mask,
                    hyper.weights,
                    banks=state.banks,
                    axis_name=axis_name,
                ),
                **observe.gates(
                    changed.get("intermediates", {}), batch.mask, axis_name
                ),
            }

        due = new_state.step % hyper.log_every == 0
        return new_state, {"loss": loss, **parts, **observe.when(due, observed)}

    return step


def eval_step(
    module: MultiTaskModel, sharded_over: str | None = None
) -> Callable[[Any, Any, dict[str, Any]], Any]:
    """The function (params, batch_stats, inputs) -> logits by name.

    Args:
        module: the model.
        sharded_over: the mapped axis that the large tables are spread over, if any.
    """

    def step(
        params: Any, batch_stats: Any, inputs: dict[str, Any]
    ) -> dict[str, jax.Array]:
        if sharded_over is not None:
            own = layout(module.config, module.schema)
            every = jnp.ones(len(inputs["categorical"]), bool)
            params, inputs, _ = narrowed(own, params, inputs, every, sharded_over, True)
        return module.apply(  # pyright: ignore[reportReturnType]  # not mutable
            {"params": params, "batch_stats": batch_stats}, inputs, train=False
        )

    return step
