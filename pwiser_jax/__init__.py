"""PWiseR: pairwise ranking for multi-task recommenders, in JAX and Flax."""

from pwiser_jax.version import __version__

__all__ = ["__version__"]
