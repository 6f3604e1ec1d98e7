"""PWiseR: pairwise ranking for multi-task recommenders, in JAX and Flax."""

from typing import TYPE_CHECKING, Any

from pwiser_jax.version import __version__

if TYPE_CHECKING:
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


def __getattr__(name: str) -> Any:
    """The losses, when asked for: `prepare` does without the second jax takes."""
    if name in __all__:
        from pwiser_jax import losses

        return getattr(losses, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
