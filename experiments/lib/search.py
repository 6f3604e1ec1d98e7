"""Random search over settings: its points, and whether a choice is at an edge."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from scipy.stats import qmc

from pwiser_jax.errors import UserError

if TYPE_CHECKING:
    from pwiser_jax.config import Config

Point = Mapping[str, float]
Space = Mapping[str, tuple[float, float]]

EDGE = 0.05  # of the range in logarithms, at either end
MARGINS = {"m1": "conversion>click", "m2": "conversion>exposure"}
OF_OPTIMIZER = ("learning_rate", "l2", "wide_l2")
COUNTS = ("lambda_ramp_steps",)  # options that are integers


def check_space(name: str, space: Space) -> None:
    """Raises UserError where a setting has no range to search."""
    for setting, (low, high) in space.items():
        if not 0 < low < high:
            raise UserError(
                f"{name}: the space of {setting} is {low:g} to {high:g}; expected two "
                "numbers above 0, the first one less"
            )


def sobol_points(space: Space, count: int, seed: int) -> list[Point]:
    """Scrambled Sobol points, even in the logarithms of the settings."""
    draws = qmc.Sobol(len(space), rng=seed).random(count)
    return [
        {
            # Four digits, so that a table of results holds the very number.
            name: float(f"{low * (high / low) ** share:.4g}")
            for (name, (low, high)), share in zip(space.items(), row, strict=True)
        }
        for row in draws
    ]


def space_around(space: Space, point: Point) -> Space:
    """A box of half the width in logarithms, centred at a point.

    It extends beyond the edge of `space` where the point is near the edge.
    """
    return {
        name: (
            float(point[name] / (high / low) ** 0.25),
            float(point[name] * (high / low) ** 0.25),
        )
        for name, (low, high) in space.items()
    }


def settings_on_edge(tried: Sequence[Point], chosen: Point) -> list[str]:
    """The settings whose chosen value is at an end of the values tried.

    At an end: in the outer EDGE of their range in logarithms.
    """
    names = []
    for name, value in chosen.items():
        values = [math.log(point[name]) for point in tried]
        low, high = min(values), max(values)
        share = (math.log(value) - low) / (high - low) if high > low else 0.0
        if not EDGE < share < 1 - EDGE:
            names.append(name)
    return names


def at(config: "Config", point: Point) -> "Config":
    """The configuration of a point.

    lambda is that of all heads, or of the heads that the configuration names; m1 is the
    margin over click-only rows and m2 over rows without a click; learning_rate, l2
    and wide_l2 are the optimizer's; others are options of `loss`.

    Raises:
        ValueError: the configuration refuses a number.
    """
    loss, optimizer = config.loss, config.optimizer
    of_optimizer = {n: v for n, v in point.items() if n in OF_OPTIMIZER}
    margins = {MARGINS[n]: v for n, v in point.items() if n in MARGINS}
    changes: dict[str, Any] = {
        name: round(value) if name in COUNTS else value
        for name, value in point.items()
        if name not in (*OF_OPTIMIZER, *MARGINS, "lambda")
    }
    if "lambda" in point:
        heads = loss.lambdas
        value = point["lambda"]
        changes["lambdas"] = (
            dict.fromkeys(heads, value) if isinstance(heads, dict) else value
        )
    if margins:
        changes["margins"] = margins
    return replace(
        config,
        loss=replace(loss, **changes),
        optimizer=replace(optimizer, **of_optimizer),
    )


def point_text(point: Point) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in point.items())
