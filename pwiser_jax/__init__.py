"""PWiseR: pairwise ranking for multi-task recommenders, in JAX and Flax.

The losses need jax, chex, numpy and scipy; the rest needs the extra `train`. Names are
imported when they are first used, so that `import pwiser_jax` and `pwiser_jax.losses`
load none of flax, optax, orbax and polars.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from pwiser_jax.version import __version__

if TYPE_CHECKING:
    from pwiser_jax.config import Config
    from pwiser_jax.data.aliccp.prepare import prepare_aliccp
    from pwiser_jax.data.datasets.aliexpress import prepare_aliexpress
    from pwiser_jax.data.datasets.kuairand import prepare_kuairand
    from pwiser_jax.data.datasets.synthetic import prepare_synthetic
    from pwiser_jax.data.datasets.table import prepare_table
    from pwiser_jax.errors import UserError
    from pwiser_jax.inference.evaluate import evaluate_run as evaluate
    from pwiser_jax.inference.export import export
    from pwiser_jax.inference.predict import predict, predict_file
    from pwiser_jax.losses import (
        bce_loss,
        bce_ranknet_loss,
        escm2_dr_loss,
        escm2_ips_loss,
        focal_bce_loss,
        jrc_loss,
        label_constraint_loss,
        ladder_loss,
        pwiser_loss,
        ranknet_loss,
    )
    from pwiser_jax.training.loop import train
    from pwiser_jax.training.sweep import train_sweep

__all__ = [
    "Config",
    "UserError",
    "__version__",
    "bce_loss",
    "bce_ranknet_loss",
    "escm2_dr_loss",
    "escm2_ips_loss",
    "evaluate",
    "export",
    "focal_bce_loss",
    "jrc_loss",
    "label_constraint_loss",
    "ladder_loss",
    "predict",
    "predict_file",
    "prepare_aliccp",
    "prepare_aliexpress",
    "prepare_kuairand",
    "prepare_synthetic",
    "prepare_table",
    "pwiser_loss",
    "ranknet_loss",
    "train",
    "train_sweep",
]

# Names that are not losses, and where they are; prepare_NAME is a dataset's function.
_PLACES = {
    "Config": "config.Config",
    "UserError": "errors.UserError",
    "evaluate": "inference.evaluate.evaluate_run",
    "export": "inference.export.export",
    "predict": "inference.predict.predict",
    "predict_file": "inference.predict.predict_file",
    "train": "training.loop.train",
    "train_sweep": "training.sweep.train_sweep",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        module, _, attribute = _PLACES[name].rpartition(".")
        return getattr(import_module(f"pwiser_jax.{module}"), attribute)
    if name.startswith("prepare_"):
        from pwiser_jax.data.datasets import DATASETS, preparer

        if name.removeprefix("prepare_") in DATASETS:
            return preparer(name.removeprefix("prepare_"))
    if name in __all__:
        return getattr(import_module("pwiser_jax.losses"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
