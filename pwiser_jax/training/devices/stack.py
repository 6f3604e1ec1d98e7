"""A stack of runs in one program: their arrays with a first axis of runs.

Groups of `at_once` runs are computed one after another, the runs of a group under vmap.
An accelerator is fastest with all runs in one group. A CPU is fastest with one run per
group: its caches hold the activations of one run, and a stopped run costs nothing.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pwiser_jax.training.devices.several import Step, several_steps
from pwiser_jax.training.step import Hyper, TrainState

# Traced numbers that may differ between the runs; the others are shared.
VARIED = ("seed", "learning_rate", "l2", "wide_l2", "weights")


def stack(trees: list[Any]) -> Any:
    """Stacks trees along a new first axis, as 32-bit NumPy arrays."""
    return jax.tree.map(lambda *leaves: _array32(np.stack(leaves)), *trees)


def _array32(array: np.ndarray) -> np.ndarray:
    narrow = {"f": np.float32, "i": np.int32}
    kind = narrow.get(array.dtype.kind) if array.dtype.itemsize == 8 else None
    return array if kind is None else array.astype(kind)


def unstack(tree: Any, runs: int) -> list[Any]:
    """The first `runs` trees of a stack, as copies, so that the stack can be freed."""
    return [jax.tree.map(lambda x, i=i: np.array(x[i]), tree) for i in range(runs)]


def filled(tree: Any, length: int) -> Any:
    """Pads the first axis with zeros, up to a length."""

    def fill(array: np.ndarray) -> np.ndarray:
        missing = length - len(array)
        return np.pad(array, ((0, missing), *((0, 0) for _ in array.shape[1:])))

    return jax.tree.map(fill, tree)


def stack_hypers(hypers: list[Hyper]) -> Hyper:
    """Combines several runs' numbers in one `Hyper`; those in VARIED are stacked."""
    return hypers[0]._replace(
        **{name: stack([getattr(h, name) for h in hypers]) for name in VARIED}
    )


def stacked_steps(step: Step, at_once: int) -> Callable[..., Any]:
    """(states, batches, count, hypers, orders, active) -> (states, metrics).

    Takes `count` steps of every active run (see `several_steps`). States of inactive
    runs do not change, and their metrics are 0.

    Args of the result:
        states: `TrainState` of [R, ...]; R is a multiple of `at_once`.
        batches: of [k, S, B, ...]: k steps of the orders of S seeds.
        count: number of steps to take.
        hypers: see `stack_hypers`.
        orders: int32[R], index in 0 .. S - 1 of each run's order of rows.
        active: bool[R].
    """

    def steps(
        states: TrainState,
        batches: Any,
        count: jax.Array,
        hypers: Hyper,
        orders: jax.Array,
        active: jax.Array,
    ) -> tuple[TrainState, Any]:
        def group(chunk: Any) -> tuple[TrainState, Any]:
            states, varied, orders, active = chunk
            hyper = hypers._replace(**varied)
            several = several_steps(_side_by_side(step, at_once, orders))

            def go(states: TrainState) -> Any:
                # Active runs are at the same step, and no inactive run is ahead.
                now = states._replace(step=jnp.max(states.step))
                new, metrics = several(now, batches, count, hyper)
                new = new._replace(step=jnp.full_like(states.step, new.step))
                return _where(active, new, states), metrics

            def stay(states: TrainState) -> Any:
                _, shapes = jax.eval_shape(go, states)
                return states, jax.tree.map(
                    lambda x: jnp.zeros(x.shape, x.dtype), shapes
                )

            return jax.lax.cond(jnp.any(active), go, stay, states)

        varied = {name: getattr(hypers, name) for name in VARIED}
        chunks = _grouped((states, varied, orders, active), at_once)
        states, metrics = jax.lax.map(group, chunks)
        # Metrics are [groups, k, at_once].
        by_run = jax.tree.map(lambda x: jnp.swapaxes(x, 1, 2), metrics)
        return _ungrouped(states), _ungrouped(by_run)

    return steps


def _side_by_side(step: Step, at_once: int, orders: jax.Array) -> Step:
    """The step of a group of runs, whose `step` counter is shared."""

    def of_one(states: TrainState, batch: Any, hyper: Hyper) -> Any:
        # Without vmap, which would compute both branches of conditions.
        one = jax.tree.map(lambda x: x[0], states._replace(step=None))
        numbers = hyper._replace(
            **jax.tree.map(lambda x: x[0], {n: getattr(hyper, n) for n in VARIED})
        )
        new, *metrics = step(
            one._replace(step=states.step),
            jax.tree.map(lambda x: x[orders[0]], batch),
            numbers,
        )
        state, *metrics = jax.tree.map(
            lambda x: x[None], (new._replace(step=None), *metrics)
        )
        return state._replace(step=new.step), *metrics

    def of_many(states: TrainState, batch: Any, hyper: Hyper) -> Any:
        one_order = len(jax.tree.leaves(batch)[0]) == 1
        batch = jax.tree.map(lambda x: x[0] if one_order else x[orders], batch)
        state_axes = TrainState._make(
            None if name == "step" else 0 for name in TrainState._fields
        )
        hyper_axes = Hyper._make(
            0 if name in VARIED else None for name in Hyper._fields
        )
        batch_axis = None if one_order else 0
        mapped = jax.vmap(
            step, (state_axes, batch_axis, hyper_axes), (state_axes, 0, 0)
        )
        return mapped(states, batch, hyper)

    return of_one if at_once == 1 else of_many


def stacked_eval(
    evaluate: Callable[..., dict[str, jax.Array]], at_once: int
) -> Callable[..., dict[str, jax.Array]]:
    """(params, batch_stats, inputs, active) -> logits f[R, B] by name.

    The inputs are shared; logits of inactive runs are meaningless.
    """

    def logits(
        params: Any, batch_stats: Any, inputs: Any, active: jax.Array
    ) -> dict[str, jax.Array]:
        def group(chunk: Any) -> Any:
            params, batch_stats, active = chunk

            def go() -> Any:
                if at_once > 1:
                    of_all = jax.vmap(evaluate, (0, 0, None))
                    return of_all(params, batch_stats, inputs)
                one = jax.tree.map(lambda x: x[0], (params, batch_stats))
                return jax.tree.map(lambda x: x[None], evaluate(*one, inputs))

            def stay() -> Any:
                shapes = jax.eval_shape(go)
                return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

            return jax.lax.cond(jnp.any(active), go, stay)

        return _ungrouped(
            jax.lax.map(group, _grouped((params, batch_stats, active), at_once))
        )

    return logits


def _grouped(tree: Any, size: int) -> Any:
    """[R, ...] -> [R / size, size, ...]."""
    return jax.tree.map(lambda x: jnp.reshape(x, (-1, size, *x.shape[1:])), tree)


def _ungrouped(tree: Any) -> Any:
    """[R / size, size, ...] -> [R, ...]."""
    return jax.tree.map(lambda x: jnp.reshape(x, (-1, *x.shape[2:])), tree)


def _where(active: jax.Array, new: Any, old: Any) -> Any:
    def chosen(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.where(active.reshape(-1, *(1,) * (a.ndim - 1)), a, b)

    return jax.tree.map(chosen, new, old)
