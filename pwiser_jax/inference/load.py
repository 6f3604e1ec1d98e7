"""The trained model of a run folder."""

import warnings
from pathlib import Path

from pwiser_jax.config import Config
from pwiser_jax.errors import UserError
from pwiser_jax.schema import Schema
from pwiser_jax.training.run.checkpoint import Checkpoints
from pwiser_jax.training.state import state_template
from pwiser_jax.training.step import TrainState


def load_best(run: Path, config: Config, schema: Schema) -> TrainState:
    """The state with the best validation AUC.

    If it is damaged, the previous best checkpoint is used, with a warning.

    Raises:
        UserError: the run has no checkpoint, or none that can be read.
    """
    best = Checkpoints(run, "best")
    try:
        restored = best.restore(state_template(config, schema), warnings.warn)
    finally:
        best.close()
    if restored is None:
        raise UserError(f"{run} has no best checkpoint yet; train it first")
    return restored[0]
