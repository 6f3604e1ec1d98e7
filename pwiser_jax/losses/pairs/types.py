"""The two sides of the pairs."""

from typing import NamedTuple, Protocol

from jax import Array

from pwiser_jax.losses.pairs.options import Gate, Surrogate


class Positives(NamedTuple):
    """Rows that should score higher: those of one level, gathered from all devices."""

    scores: Array  # f[P]
    weights: Array  # f[P]
    segments: Array | None  # int[P]


class Others(NamedTuple):
    """Rows of lower levels, this device's own, each with the margin of its level."""

    scores: Array  # f[N]
    weights: Array  # f[N]
    segments: Array | None  # int[N]
    margins: Array  # f[N]


class PairRowSums(Protocol):
    """A form in which pairs are summed."""

    def __call__(
        self, positives: Positives, others: Others, surrogate: Surrogate, gate: Gate
    ) -> tuple[Array, Array]: ...
