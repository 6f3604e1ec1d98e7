"""PWiseR: pairwise ranking for multi-task recommenders, in JAX and Flax."""

from pwiser_jax.losses import (
    bce_loss,
    bce_ranknet_loss,
    focal_bce_loss,
    jrc_loss,
    label_constraint_loss,
    ladder_loss,
    pwiser_loss,
    ranknet_loss,
)
from pwiser_jax.version import __version__

__all__ = [
    "__version__",
    "bce_loss",
    "bce_ranknet_loss",
    "focal_bce_loss",
    "jrc_loss",
    "label_constraint_loss",
    "ladder_loss",
    "pwiser_loss",
    "ranknet_loss",
]
