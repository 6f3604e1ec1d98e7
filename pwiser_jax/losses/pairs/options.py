"""What a pair costs and what a term divides by: the choices that all forms share."""

from collections.abc import Callable, Collection
from typing import Literal

import jax
import jax.numpy as jnp
from jax import Array

Surrogate = Literal["squared_hinge", "hinge", "logistic"]
Gate = Literal["margin", "literal"]
Normalize = Literal["pairs", "negatives", "none"]

# phi(x) of an active pair. Those of the hinges need no max(0, x): `active_pairs` has
# decided already, and a second decision could differ by a rounding.
SURROGATES: dict[str, Callable[[Array], Array]] = {
    "squared_hinge": jnp.square,
    "hinge": lambda x: x,
    "logistic": jax.nn.softplus,
}
GATES = ("margin", "literal")
NORMALIZATIONS = ("pairs", "negatives", "none")


def check_choice(name: str, value: str, allowed: Collection[str]) -> None:
    """Raises a ValueError that names the argument and what it may be."""
    if value not in allowed:
        raise ValueError(f"{name}: expected one of {list(allowed)}, not {value!r}")


def check_pair_options(surrogate: str, gate: str, normalize: str) -> None:
    """Raises a ValueError where an option is unknown or two do not go together."""
    check_choice("surrogate", surrogate, SURROGATES)
    check_choice("gate", gate, GATES)
    check_choice("normalize", normalize, NORMALIZATIONS)
    if gate == "literal" and surrogate != "squared_hinge":
        raise ValueError(
            f"gate: 'literal' is defined for 'squared_hinge' only, not {surrogate!r}"
        )


def active_pairs(
    difference: Array, margin: Array, surrogate: Surrogate, gate: Gate
) -> Array:
    """Which pairs cost something, from s_positive - s_other as it rounds.

    The one definition that every form uses, so that all agree at ties. A pair of the
    logistic surrogate always costs something.
    """
    if surrogate == "logistic":
        return jnp.full_like(difference, True, bool)
    return difference < (-margin if gate == "literal" else margin)


def excess(positive: Array, other: Array, margin: Array) -> Array:
    """x = m - (s_positive - s_other), also where almost nothing is left of it.

    The difference of two floats is rounded, and where the margin takes most of it away
    that rounding is what remains: it is found exactly (Knuth's two-sum) and taken off.
    """
    difference = positive - other
    back = difference - positive
    rounding = (positive - (difference - back)) - (other + back)
    rounding = jnp.where(jnp.isfinite(rounding), rounding, 0)  # of an overflow
    return (margin - difference) - jax.lax.stop_gradient(rounding)
