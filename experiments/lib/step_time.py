"""Time of a training step by configuration, measured in turns."""

import time
from collections.abc import Callable, Sequence
from statistics import median
from typing import Any

import jax

from pwiser_jax.config import Config
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices.solo import Solo
from pwiser_jax.training.loop import epoch_steps, open_data, split_rows

ROUNDS, CALLS = 7, 3  # a round is so many calls of each configuration
MOST_STEPS = 8  # of a call


def step_seconds(configs: Sequence[Config]) -> list[list[float]]:
    """Seconds of a step by configuration and round.

    The configurations take turns within a round, so that the machine's drift affects
    all alike: compare them by the ratios of their rounds.
    """
    calls = [_call(config) for config in configs]
    for call in calls:
        call()
    rounds = [
        [min(call() for _ in range(CALLS)) for call in calls] for _ in range(ROUNDS)
    ]
    return [list(times) for times in zip(*rounds, strict=True)]


def cost(times: Sequence[float], baseline: Sequence[float]) -> tuple[float, float]:
    """Median milliseconds of a step, and median ratio of the rounds to a baseline."""
    ratio = median(a / b for a, b in zip(times, baseline, strict=True))
    return 1e3 * median(times), ratio


def _call(config: Config) -> Callable[[], float]:
    """Trains some steps of a run and returns the seconds of one."""
    prepared = open_data(config)
    labels, space = prepared.schema.labels, config.model.cvr_space
    objective, weights = objectives.build(config.loss, labels, space)
    rows, _ = split_rows([config], prepared)
    steps = epoch_steps(config, rows)
    total = config.train.epochs * steps
    programs = Solo(config, prepared.schema, objective, weights, rows, total)
    count = min(MOST_STEPS, steps)
    batches = programs.batches(0, 0)(count)
    state: Any = programs.place(programs.initial())

    def call() -> float:
        nonlocal state
        started = time.perf_counter()
        state, values = programs.train(state, batches, count, [0])
        jax.block_until_ready((state, values))
        return (time.perf_counter() - started) / count

    return call
