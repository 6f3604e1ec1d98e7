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

from pwiser_jax.losses.pairs import blocked, broadcast
from pwiser_jax.losses.pairs.types import Others, PairRowSums, Positives

FORMS: dict[str, PairRowSums] = {
    "broadcast": broadcast.pair_row_sums,
    "blocked": blocked.pair_row_sums,
}

__all__ = ["FORMS", "Others", "PairRowSums", "Positives"]
