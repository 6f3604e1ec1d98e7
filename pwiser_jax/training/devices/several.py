"""Several training steps in one program, so that Python is met once for all of them."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Steps in one call, where the configuration leaves it open: as many as take about so
# long, so that signals and the bar are looked at in time, and at most so many. On an
# H200, where a step of 2,048 rows is mostly the starting of kernels, eight steps in a
# call take 0.45 to 0.65 of the time of single calls; on 2 CPU cores they take the same
# (experiments.bench.training).
CALL_SECONDS = 2.0
MOST_STEPS = 8

Step = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


def pace(seconds: float) -> int:
    """Steps for the next call, after steps that took so long each."""
    return min(max(int(CALL_SECONDS / seconds), 1), MOST_STEPS)


def several_steps(step: Step) -> Callable[..., tuple[Any, Any]]:
    """(state, batches, count, hyper) -> (state, metrics): `count` steps in turn.

    The metrics are [losses, diagnostics].

    Batches and metrics have a first axis of k steps, of which the first `count`, a
    traced number, are taken; the metrics behind them are 0. So calls of any number of
    steps share one program. A loop whose length is traced, where a scan over k steps
    would need a condition in each: steps that are not taken cost nothing, and the
    compiler cannot unroll a single step and round it otherwise.
    """

    def steps(
        state: Any, batches: Any, count: jax.Array, hyper: Any
    ) -> tuple[Any, Any]:
        def batch(at: jax.Array | int) -> Any:
            return jax.tree.map(lambda array: array[at], batches)

        k = len(jax.tree.leaves(batches)[0])
        _, *shapes = jax.eval_shape(step, state, batch(0), hyper)
        nothing = jax.tree.map(
            lambda one: jnp.zeros((k, *one.shape), one.dtype), shapes
        )

        def body(at: jax.Array, carry: Any) -> Any:
            state, metrics = carry
            state, *values = step(state, batch(at), hyper)
            set_ = jax.tree.map(lambda all_, one: all_.at[at].set(one), metrics, values)
            return state, set_

        return jax.lax.fori_loop(0, count, body, (state, nothing))

    return steps
