"""A tuner that asks for batches of trials: Optuna's, where it is installed.

A batch is what one vmapped program trains at once, so the tuner sees results a batch
at a time; its first batch is drawn at random.
"""

from collections.abc import Callable, Sequence
from importlib import import_module, util
from typing import Any

from experiments.grid_search import Point

RANGES = {"lambda": (0.01, 3.0), "m1": (0.02, 0.5), "m2": (0.02, 0.7)}


def has_optuna() -> bool:
    return util.find_spec("optuna") is not None


def tune(
    measure: Callable[[Sequence[Point]], Sequence[float]],
    trials: int,
    batch: int,
    seed: int = 0,
) -> list[tuple[Point, float]]:
    """Tries `trials` points within RANGES, `batch` at a time.

    Args:
        measure: from points to what is to be large, in their order.
        trials, batch: how many, and how many before the tuner learns of them.
        seed: of the tuner.

    Returns:
        The points and their measures, in the order in which they were tried.
    """
    optuna: Any = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    sampler = optuna.samplers.TPESampler(
        seed=seed, n_startup_trials=batch, constant_liar=True
    )
    study = optuna.create_study(direction="maximize", sampler=sampler)
    tried: list[tuple[Point, float]] = []
    while len(tried) < trials:
        asked = [study.ask() for _ in range(min(batch, trials - len(tried)))]
        points = [
            {
                name: trial.suggest_float(name, low, high, log=True)
                for name, (low, high) in RANGES.items()
            }
            for trial in asked
        ]
        values = measure(points)
        for trial, value in zip(asked, values, strict=True):
            study.tell(trial, value)
        tried += zip(points, values, strict=True)
    return tried
