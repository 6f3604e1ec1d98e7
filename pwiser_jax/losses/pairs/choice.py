"""The forms by name, and the choice of the fastest."""

from collections.abc import Callable

import jax
from jax import Array

from pwiser_jax.losses.pairs.dense import Others, Positives, blocked, broadcast
from pwiser_jax.losses.pairs.options import PairOptions
from pwiser_jax.losses.pairs.sorted import pair_row_sums

PairRowSums = Callable[[Positives, Others, PairOptions], tuple[Array, Array]]

FORMS: dict[str, PairRowSums] = {
    "broadcast": broadcast,
    "blocked": blocked,
    "sorted": pair_row_sums,
}

# Rows of a device from which on `sorted` is faster than `broadcast`, or as fast in far
# less memory (CPU, and GPU on an H100: experiments/bench/losses.py; TPU: a guess).
SORTED_FROM = {"cpu": 64, "gpu": 16_384, "tpu": 4096}
# Rows from which on the pairs of the logistic surrogate are formed in tiles.
BLOCKED_FROM = 512


def form_name(options: PairOptions, rows: int) -> str:
    """The form that the options name; for "auto" the fastest on the default backend."""
    if options.pairs != "auto":
        return options.pairs
    if options.surrogate == "logistic":
        return "blocked" if rows >= BLOCKED_FROM else "broadcast"
    first = SORTED_FROM.get(jax.default_backend(), SORTED_FROM["gpu"])
    return "sorted" if rows >= first else "broadcast"
