"""Sums over pairs of rows, in three forms that agree to float rounding.

A form is a function of positives, other rows and options:

    form(positives, others, options) -> (sums f[N], pair_weights f[N])

    sums[j]         = sum_i w_i w_j phi(m_j - (s_i - s_j))    over active pairs
    pair_weights[j] = sum_i w_i w_j                           over all pairs

with i over the P positives and j over the N other rows, in pairs of equal segments.
Scores and margins are finite; masked rows have weight 0 and score 0. Forms are
differentiable with respect to scores and margins. They contain no collective.
"""

from pwiser_jax.losses.pairs.choice import FORMS, PairRowSums, form_name
from pwiser_jax.losses.pairs.dense import Others, Positives
from pwiser_jax.losses.pairs.options import PairOptions, Pairs

__all__ = [
    "FORMS",
    "Others",
    "PairOptions",
    "PairRowSums",
    "Pairs",
    "Positives",
    "form_name",
]
