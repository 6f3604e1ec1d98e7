"""Losses as pure functions of arrays: no model, no data, only jax, chex and NumPy.

Every loss has one signature: arrays with one entry a row, then keyword-only options.
What these mean is the same everywhere:

- where, bool[B]: rows that count, all by default. Other rows may hold anything, NaN
  included: they change neither value nor gradient, just as rows of weight 0.
- weights, f[B]: weights of the rows, 1 by default, at least 0; constants to
  differentiation. A pair's weight is the product of its rows' weights.
- segments, int[B]: pairs are formed only between rows of equal segments.
- axis_name: the name of a mapped axis (or several), under `jax.pmap` or
  `jax.shard_map`. The value is then the loss of the whole batch, the same on every
  device, and `jax.lax.pmean` over that axis of the gradients is its gradient.

Results are float32 (float64 for float64 scores). A NaN or infinite score in a row
that counts gives NaN. An empty mean is 0 with gradient 0. Wrong shapes, types and
options are errors that name the argument, when the function is traced.
"""

from pwiser_jax.losses.bank import ConversionBank, conversion_bank, update_bank
from pwiser_jax.losses.constraint import label_constraint_loss
from pwiser_jax.losses.focal import focal_bce_loss
from pwiser_jax.losses.jrc import jrc_loss
from pwiser_jax.losses.ladder import ladder_loss, ladder_terms
from pwiser_jax.losses.pointwise import bce_loss
from pwiser_jax.losses.pwiser import pwiser_loss
from pwiser_jax.losses.ranknet import bce_ranknet_loss, ranknet_loss

__all__ = [
    "ConversionBank",
    "bce_loss",
    "bce_ranknet_loss",
    "conversion_bank",
    "focal_bce_loss",
    "jrc_loss",
    "label_constraint_loss",
    "ladder_loss",
    "ladder_terms",
    "pwiser_loss",
    "ranknet_loss",
    "update_bank",
]
