"""k training steps per dispatch, in one fori_loop."""

import time
from collections import deque
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

# Steps of a call where the configuration leaves it open: as many as take CALL_SECONDS,
# so that signals and progress are handled in time, and at most MOST_STEPS. On an H200,
# where a step of 2,048 rows is mostly kernel launches, eight steps in a call take 0.45
# to 0.65 of the time of single calls; on 2 CPU cores they take the same
# (experiments.bench.training).
CALL_SECONDS = 2.0
MOST_STEPS = 8
# Number of calls that the speed is averaged over.
RECENT = 4

Step = Callable[[Any, Any, Any], tuple[Any, Any, Any]]


class Pace:
    """Chooses the number of steps of the next call from the speed of recent steps.

    Args:
        fixed: the number of steps of every call; 0: choose by the speed.
    """

    def __init__(self, fixed: int = 0) -> None:
        self._fixed, self.steps = fixed, fixed or 1
        self._calls: deque[tuple[float, int]] = deque(maxlen=RECENT)

    def restart(self) -> None:
        """Forgets earlier calls, before a pause."""
        self._calls.clear()

    def note(self, begun: float, steps: int) -> float:
        """Records a finished call; returns the seconds per recent step.

        The time counts from the dispatch of the oldest recent call. The time between
        two reads would be too short: the last calls of an epoch are read together.

        Args:
            begun: `time.perf_counter()` when the call was dispatched.
            steps: the steps of the call.
        """
        self._calls.append((begun, steps))
        spent = time.perf_counter() - self._calls[0][0]
        seconds = max(spent, 1e-9) / sum(count for _, count in self._calls)
        if not self._fixed:
            self.steps = min(max(int(CALL_SECONDS / seconds), 1), MOST_STEPS)
        return seconds


def several_steps(step: Step) -> Callable[..., tuple[Any, Any]]:
    """(state, batches, count, hyper) -> (state, metrics): `count` steps in turn.

    The metrics are [losses, diagnostics]. Batches and metrics have a first axis of k
    steps. The first `count`, a traced number, are taken; the metrics after them are 0.
    So calls of any number of steps share one program. A `scan` over k steps would need
    a condition in each; in a loop of traced length, steps not taken cost nothing, and
    the compiler cannot unroll a single step and round it differently.
    """

    # Inlined, so that the program stays the same; the step is traced once, not for its
    # shapes and for the loop.
    step = jax.jit(step, inline=True)

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
