"""How many paired seeds an interval of a given width takes, from a pilot."""

import math

from scipy import special

from pwiser_jax.errors import UserError

MOST = 10**9  # AUCs that differ by 1 are known to .0005 with 15 million


def pilot_deviation(gaps: list[float]) -> float:
    """Standard deviation of a pilot's paired differences (n - 1).

    Raises:
        UserError: fewer than two seeds.
    """
    if len(gaps) < 2:
        raise UserError(
            f"the pilot has {len(gaps)} seed; its spread needs at least 2 (--seeds)"
        )
    mean = sum(gaps) / len(gaps)
    return math.sqrt(sum((gap - mean) ** 2 for gap in gaps) / (len(gaps) - 1))


def half_width(deviation: float, seeds: int, level: float = 0.95) -> float:
    """t(level, n - 1) deviation / sqrt(n): half of the interval of a mean."""
    return float(special.stdtrit(seeds - 1, (1 + level) / 2)) * deviation / seeds**0.5


def seeds_for_width(deviation: float, width: float, level: float = 0.95) -> int:
    """The least number of seeds, 2 or more, whose interval is at most +-width.

    Raises:
        ValueError: a width of 0 or less, or one that MOST seeds do not reach.
    """
    if not width > 0:
        raise ValueError(f"width must be above 0, not {width}")
    if half_width(deviation, MOST, level) > width:
        raise ValueError(f"+-{width} takes more than {MOST} seeds")
    low, high = 1, MOST
    while high - low > 1:  # low is too few, or 1
        middle = (low + high) // 2
        if half_width(deviation, middle, level) > width:
            low = middle
        else:
            high = middle
    return high
