"""Losses as pure functions of arrays: no model, no data, only jax, chex and NumPy.

Every loss has one signature: arrays with one entry per row, then keyword-only options.
These mean the same everywhere:

- where, bool[B]: mask of valid rows; all by default. Masked rows, and rows
  of weight 0, may hold anything, NaN included: they change neither value nor gradient.
- weights, f[B]: weights of the rows, 1 by default, at least 0; no gradient flows
  through them. A pair's weight is the product of its rows' weights.
- segments, int[B]: pairs are formed only between rows of equal segments; numerators
  and denominators are sums over the segments.
- axis_name: the name of a mapped axis (or several), under `jax.pmap` or
  `jax.shard_map`, over whose devices the rows are split. The value is then the loss of
  the whole batch, pairs of rows on two devices included, the same on every device, and
  `jax.lax.pmean` over that axis of the gradients is its gradient.

Results are float32 (float64 for float64 scores). An empty mean is 0 with gradient 0.

Errors name the argument. Wrong shapes, types and options raise when the function is
traced. A score, label or weight that is NaN or infinite gives NaN, if its row is not
masked. Other invalid numbers (a label that is not 0 or 1, a negative weight, an alpha
above 1) are a ValueError if they are concrete, and give NaN if they are traced.

The sum of all weights must be finite. In pair losses weights are scaled by a power of
two, so that their products neither overflow nor vanish; a row of less than 2^-60 of the
largest weight may vanish.
"""

from pwiser_jax.losses.bank import ConversionBank, conversion_bank, update_bank
from pwiser_jax.losses.escm2 import escm2_dr_loss, escm2_ips_loss
from pwiser_jax.losses.jrc import jrc_loss, jrc_ranking_loss
from pwiser_jax.losses.ladder import ladder_loss, ladder_terms
from pwiser_jax.losses.pairs import PairOptions
from pwiser_jax.losses.pointwise import (
    bce_loss,
    focal_bce_loss,
    label_constraint_loss,
)
from pwiser_jax.losses.pwiser import pwiser_loss
from pwiser_jax.losses.ranknet import bce_ranknet_loss, ranknet_loss

__all__ = [
    "ConversionBank",
    "PairOptions",
    "bce_loss",
    "bce_ranknet_loss",
    "conversion_bank",
    "escm2_dr_loss",
    "escm2_ips_loss",
    "focal_bce_loss",
    "jrc_loss",
    "jrc_ranking_loss",
    "label_constraint_loss",
    "ladder_loss",
    "ladder_terms",
    "pwiser_loss",
    "ranknet_loss",
    "update_bank",
]
