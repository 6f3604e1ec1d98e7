"""The forms in which pairs are summed; all agree to float rounding.

A form is a function of positives and other rows, called once for each level of
positives:

    pair_row_sums(positives, others, surrogate, gate) -> (sums f[N], pair_weights f[N])

    sums[j]         = sum_i w_i w_j phi(m_j - (s_i - s_j))    over active pairs
    pair_weights[j] = sum_i w_i w_j                           over all pairs

with i over the P positives and j over the N other rows, in pairs of equal segments.
Scores and margins are finite; rows that do not take part have weight 0 and score 0.
Forms differentiate with respect to scores and margins, and know no devices.
"""

from typing import Literal, get_args

from pwiser_jax.losses.pairs import blocked, broadcast, sorted
from pwiser_jax.losses.pairs.choice import fastest
from pwiser_jax.losses.pairs.options import Surrogate, check_choice
from pwiser_jax.losses.pairs.types import Others, PairRowSums, Positives

Pairs = Literal["auto", "broadcast", "blocked", "sorted"]

FORMS: dict[str, PairRowSums] = {
    "broadcast": broadcast.pair_row_sums,
    "blocked": blocked.pair_row_sums,
    "sorted": sorted.pair_row_sums,
}


def pair_form(pairs: Pairs, surrogate: Surrogate, rows: int) -> PairRowSums:
    """The form that is named, or the fastest for so many rows."""
    check_choice("pairs", pairs, get_args(Pairs))
    return fastest(surrogate, rows) if pairs == "auto" else FORMS[pairs]


__all__ = ["FORMS", "Others", "PairRowSums", "Pairs", "Positives", "pair_form"]
