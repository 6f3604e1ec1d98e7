"""The options of a pair loss, and the rules that all forms of the sums share."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal, get_args

import jax
import jax.numpy as jnp
from jax import Array

Surrogate = Literal["squared_hinge", "hinge", "logistic"]
Gate = Literal["margin", "literal"]
Normalize = Literal["pairs", "negatives", "none"]
Pairs = Literal["auto", "broadcast", "blocked", "sorted"]

# phi(x) of an active pair. The hinges have no max(0, x) here: `active_pairs` has
# decided already, and a second decision could differ by a rounding.
SURROGATES: dict[str, Callable[[Array], Array]] = {
    "squared_hinge": jnp.square,
    "hinge": lambda x: x,
    "logistic": jax.nn.softplus,
}


@dataclass(frozen=True)
class PairOptions:
    """The cost of a pair, the divisor of a term, and the algorithm of the sums.

    See `pwiser_loss` for the meaning of each.

    Raises:
        ValueError: an unknown or incompatible option.

    >>> PairOptions(surrogate="hinge")
    PairOptions(surrogate='hinge', gate='margin', normalize='pairs', pairs='auto')
    """

    surrogate: Surrogate = "squared_hinge"
    gate: Gate = "margin"
    normalize: Normalize = "pairs"
    pairs: Pairs = "auto"

    def __post_init__(self) -> None:
        check_choice("surrogate", self.surrogate, get_args(Surrogate))
        check_choice("gate", self.gate, get_args(Gate))
        check_choice("normalize", self.normalize, get_args(Normalize))
        check_choice("pairs", self.pairs, get_args(Pairs))
        if self.gate == "literal" and self.surrogate != "squared_hinge":
            raise ValueError(
                "gate: 'literal' is defined for 'squared_hinge' only, not "
                f"{self.surrogate!r}"
            )
        if self.pairs == "sorted" and self.surrogate == "logistic":
            raise ValueError(
                "pairs: 'sorted' is for hinges; 'logistic' needs 'blocked', "
                "'broadcast' or 'auto'"
            )


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Raises a ValueError that names the argument and its allowed values."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {list(allowed)}, not {value!r}")


def active_pairs(difference: Array, margin: Array, options: PairOptions) -> Array:
    """The mask of active pairs, from s_positive - s_other as it is rounded.

    All forms call this one function, so that they agree at ties. With the logistic
    surrogate every pair is active.
    """
    if options.surrogate == "logistic":
        return jnp.full_like(difference, True, bool)
    return difference < (-margin if options.gate == "literal" else margin)


def excess(positive: Array, other: Array, margin: Array) -> Array:
    """x = m - (s_positive - s_other), accurate even where it nearly cancels.

    The difference of two floats is rounded. Where the margin cancels most of it, that
    rounding error dominates: Knuth's two-sum computes it exactly, and it is subtracted.
    """
    difference = positive - other
    back = difference - positive
    rounding = (positive - (difference - back)) - (other + back)
    rounding = jnp.where(jnp.isfinite(rounding), rounding, 0)  # of an overflow
    return (margin - difference) - jax.lax.stop_gradient(rounding)
