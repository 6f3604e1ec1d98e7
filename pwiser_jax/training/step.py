"""One training step and one evaluation step, as plain functions of arrays."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pwiser_jax.config import Config, EmbeddingOptimizer
from pwiser_jax.data.batches.batches import Batch
from pwiser_jax.models import MultiTaskModel, build
from pwiser_jax.models.config import ModelConfig
from pwiser_jax.models.layout import layout
from pwiser_jax.models.start import Path, Uniform, declared
from pwiser_jax.schema import Schema
from pwiser_jax.training import observe
from pwiser_jax.training.balancing import TASK_WEIGHTS, model_parameters, pcgrad
from pwiser_jax.training.objective import (
    Banks,
    Losses,
    Objective,
    Terms,
    Weights,
    ramped,
)
from pwiser_jax.training.optimizer import Optimizer, Rates, narrowed

__all__ = [
    "Hyper",
    "ModelSpec",
    "StepSpec",
    "TrainState",
    "declared_state",
    "eval_step",
    "example_inputs",
    "hyper",
    "initial_state",
    "parameter_shapes",
    "state_shapes",
    "step_spec",
    "train_step",
]


class Hyper(NamedTuple):
    """The traced numbers of a run: changing one does not recompile.

    The optimizer's numbers that are None have no effect; see `Rates`.
    """

    seed: jax.Array | int
    learning_rate: jax.Array | float
    l2: jax.Array | float
    weights: Weights
    log_every: jax.Array | int = 1
    wide_l2: jax.Array | float | None = None
    warmup_steps: jax.Array | float | None = None
    total_steps: jax.Array | float | None = None
    clip_norm: jax.Array | float | None = None


def hyper(config: Config, weights: Weights, total_steps: int) -> Hyper:
    """The traced numbers of a configuration.

    Args:
        config: the configuration.
        weights: the numbers of its objective.
        total_steps: steps of all of its epochs, for a schedule.
    """
    optimizer = config.optimizer
    scheduled = optimizer.schedule != "constant"
    return Hyper(
        seed=config.train.seed,
        learning_rate=optimizer.learning_rate,
        l2=optimizer.l2,
        # Integers would be another type, and compile another program.
        weights=jax.tree.map(float, weights),
        log_every=config.train.log_every,
        wide_l2=optimizer.wide_l2,
        warmup_steps=float(optimizer.warmup_steps) if scheduled else None,
        total_steps=float(total_steps) if optimizer.schedule == "cosine" else None,
        clip_norm=optimizer.clip_norm,
    )


class TrainState(NamedTuple):
    """What a step changes. A checkpoint is this and the position in the data.

    Attributes:
        step: steps done.
        params: the model's parameters.
        batch_stats: running statistics of batch normalization.
        optimizer: the optimizer's state.
        banks: scores of recent conversions, by head.
    """

    step: jax.Array
    params: Any
    batch_stats: Any
    optimizer: optax.OptState
    banks: Banks


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """What an evaluation step is compiled for.

    Attributes:
        model: the model's configuration.
        schema: schema of the data.
        axis_name: mapped axis that a batch is sharded over, if any.
        sharded: whether large tables are sharded over that axis, too (see `shards`).
    """

    model: ModelConfig
    schema: Schema
    axis_name: str | None = None
    sharded: bool = False

    def module(self, axis_name: str | None = None) -> MultiTaskModel:
        return build(self.model, self.schema, axis_name)


@dataclass(frozen=True, kw_only=True)
class StepSpec(ModelSpec):
    """What a training step is compiled for: everything that is not traced.

    Attributes:
        objective: the static part of the objective.
        embedding: optimizer of large tables.
    """

    objective: Objective
    embedding: EmbeddingOptimizer = "adam"

    @property
    def optimizer(self) -> Optimizer:
        return Optimizer(self.embedding, layout(self.model, self.schema), self.sharded)


def step_spec(config: Config, schema: Schema, objective: Objective) -> StepSpec:
    """The spec of a configuration's training step on one device."""
    return StepSpec(
        model=config.model,
        schema=schema,
        objective=objective,
        embedding=config.optimizer.embedding,
        sharded=config.optimizer.shard_tables,
    )


def example_inputs(schema: Schema) -> dict[str, Any]:
    """One row of zeros, which has the shapes of a model's inputs."""
    inputs = {
        "categorical": np.zeros((1, len(schema.categorical)), np.int32),
        "numerical": np.zeros((1, len(schema.numerical)), np.float32),
    }
    if schema.multi_valued:
        inputs["multi_ids"] = np.zeros((1, schema.multi_width), np.int32)
        inputs["multi_weights"] = np.zeros((1, schema.multi_width), np.float32)
    return inputs


def initial_state(spec: StepSpec, seed: jax.Array | int) -> TrainState:
    """A state at step 0, with all parameters drawn by jax; see `state.new_state`."""
    return declared_state(spec, seed)[0]


def declared_state(
    spec: StepSpec, seed: jax.Array | int
) -> tuple[TrainState, dict[Path, Uniform]]:
    """`initial_state`, and the parameters that layers have declared as uniform."""
    inputs = example_inputs(spec.schema)
    variables: Any = spec.module().init(
        jax.random.key(seed), inputs, train=False, mutable=True
    )
    params: Any = variables["params"]
    params = params | spec.objective.initial_parameters()
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        optimizer=spec.optimizer.init(params),
        banks=spec.objective.empty_banks(),
    )
    return state, declared(variables["intermediates"])


def state_shapes(spec: StepSpec) -> TrainState:
    """Shapes and types of a state; tables are whole."""
    return jax.eval_shape(lambda: initial_state(spec, 0))


def parameter_shapes(spec: ModelSpec) -> Any:
    """Shapes and types of a model's parameters; tables are whole."""
    inputs, key = example_inputs(spec.schema), jax.random.key(0)
    init = spec.module().init
    return jax.eval_shape(lambda: init(key, inputs, train=False))["params"]


def train_step(
    spec: StepSpec, state: TrainState, batch: Batch, hyper: Hyper
) -> tuple[TrainState, Losses, observe.Diagnostics]:
    """One step: gradient, optimizer, batch statistics, banks.

    Under a mapped axis, each device has its shard of the batch and the whole state,
    except for sharded tables. Losses and batch statistics are those of the whole batch,
    so the new state is the same on every device.

    Returns:
        The new state; "loss" and its parts by name; what `observe` describes, which is
        0 except every `log_every` steps.
    """
    module, optimizer, axis_name = (
        spec.module(spec.axis_name),
        spec.optimizer,
        spec.axis_name,
    )
    # The same key on every device: dropout depends on a row's place in the whole batch.
    dropout = jax.random.fold_in(jax.random.key(hyper.seed), state.step)
    weights = ramped(hyper.weights, state.step)
    params, inputs, rows = optimizer.narrow(
        state.params, batch.inputs, batch.mask, axis_name
    )

    def terms_of(params: Any) -> tuple[Terms, Any]:
        logits, changed = module.apply(
            {"params": params, "batch_stats": state.batch_stats},
            inputs,
            train=True,
            mask=batch.mask,
            rows=batch.rows,
            rngs={"dropout": dropout},
            mutable=["batch_stats", "intermediates"],
        )
        terms, (parts, banks) = spec.objective.terms_of(
            logits,
            batch,
            weights,
            banks=state.banks,
            axis_name=axis_name,
            log_variances=params.get(TASK_WEIGHTS, {}).get("log_variances"),
        )
        return terms, (parts, banks, logits, changed)

    def loss_fn(params: Any) -> tuple[jax.Array, Any]:
        terms, aux = terms_of(params)
        return terms.total(), aux

    def over_devices(grads: Any) -> Any:
        # Losses are global values: the mean over devices of their gradients is the
        # gradient of the whole batch (see losses).
        return grads if axis_name is None else jax.lax.pmean(grads, axis_name)

    if spec.objective.pcgrad:
        terms, pull, aux = jax.vjp(terms_of, params, has_aux=True)
        loss, key = terms.total(), jax.random.fold_in(dropout, 1)
        grads = _projected(spec, terms, lambda c: over_devices(pull(c)[0]), key)
    else:
        (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(params)
        grads = over_devices(grads)
    parts, banks, logits, changed = aux
    rates = Rates(
        hyper.learning_rate,
        hyper.l2,
        hyper.wide_l2,
        hyper.warmup_steps,
        hyper.total_steps,
        hyper.clip_norm,
    )
    new_params, optimizer_state, directions = optimizer.update(
        grads, state.optimizer, state.params, rows, step=state.step, rates=rates
    )
    new_state = TrainState(
        step=state.step + 1,
        params=new_params,
        batch_stats=changed.get("batch_stats", {}),
        optimizer=optimizer_state,
        banks=banks,
    )

    def diagnostics() -> observe.Diagnostics:
        # Only the steps that log read the directions. The updates themselves would be
        # a second copy of the parameters that every step writes.
        steps = optimizer.gather_directions(directions, axis_name)
        return {
            **observe.norms(grads, steps, rates.at(state.step)),
            **spec.objective.pair_counts(
                logits, batch, weights, banks=state.banks, axis_name=axis_name
            ),
            **observe.gates(changed.get("intermediates", {}), batch.mask, axis_name),
        }

    due = new_state.step % hyper.log_every == 0
    return new_state, {"loss": loss, **parts}, observe.when(due, diagnostics)


def _projected(
    spec: StepSpec, terms: Terms, pull: Callable[[Terms], Any], key: jax.Array
) -> Any:
    """The gradient of the loss after PCGrad of the tasks' terms.

    Args:
        spec: of the step.
        terms: the terms of the loss.
        pull: the gradient of a combination of the terms, over all devices.
        key: of the order of tasks.
    """
    nothing = jax.tree.map(jnp.zeros_like, terms)

    def gradient(task: str) -> Any:
        one = nothing.tasks | {task: jnp.ones(())}
        return pull(nothing._replace(tasks=one))

    gradients = [gradient(task) for task in terms.tasks]
    towers = [spec.objective.towers_of(task) for task in terms.tasks]
    shared = spec.module().shared_by(model_parameters(gradients[0]), towers)
    learned = jax.tree.map(lambda _: False, spec.objective.initial_parameters())
    grads = pcgrad(gradients, shared | learned, key)
    if terms.constraint is None:
        return grads
    rest = pull(nothing._replace(constraint=jnp.ones(())))
    return jax.tree.map(jnp.add, grads, rest)


def eval_step(
    spec: ModelSpec, params: Any, batch_stats: Any, inputs: dict[str, Any]
) -> dict[str, jax.Array]:
    """Logits by name.

    Args:
        spec: static; its axis matters only where tables are sharded over it.
        params: the model's parameters; of sharded tables, the device's shards.
        batch_stats: running statistics.
        inputs: inputs of the device's rows.
    """
    if spec.sharded:
        tables = layout(spec.model, spec.schema)
        every = jnp.ones(len(inputs["categorical"]), bool)
        params, inputs, _ = narrowed(
            tables, params, inputs, every, spec.axis_name, spec.sharded
        )
    variables = {"params": params, "batch_stats": batch_stats}
    logits: Any = spec.module().apply(variables, inputs, train=False)
    return logits
