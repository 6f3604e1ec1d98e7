"""Which form is the fastest here."""

import jax

from pwiser_jax.losses.pairs import blocked, broadcast, sorted
from pwiser_jax.losses.pairs.options import Surrogate
from pwiser_jax.losses.pairs.types import PairRowSums

# Rows of a device from which on `sorted` is faster than `broadcast`, or as fast in far
# less memory (CPU, and GPU on an H100: experiments/bench/losses.py; TPU: a guess).
SORTED_FROM = {"cpu": 64, "gpu": 16_384, "tpu": 4096}
# Rows from which on the pairs of the logistic surrogate are formed in tiles.
BLOCKED_FROM = 512


def fastest(surrogate: Surrogate, rows: int) -> PairRowSums:
    """The form for a surrogate and a number of rows, on the default backend."""
    if surrogate == "logistic":
        return (blocked if rows >= BLOCKED_FROM else broadcast).pair_row_sums
    first = SORTED_FROM.get(jax.default_backend(), SORTED_FROM["gpu"])
    return (sorted if rows >= first else broadcast).pair_row_sums
