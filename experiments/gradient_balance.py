"""A lambda without a search: the one at which both losses pull equally hard.

    lambda = mean over batches of |grad BCE| / mean over batches of |grad PWiseR|

with the gradients of all parameters at the best checkpoint of a run with BCE alone,
over train batches. It is measured once, not followed while training.
"""

from itertools import islice
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from pwiser_jax.config import Config
from pwiser_jax.data.batches import epoch_batches
from pwiser_jax.data.prepared import Prepared
from pwiser_jax.models import build
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.evaluate import run_config
from pwiser_jax.training.inference import load_best

BATCHES = 16


def balanced_lambda(run: Path, config: Config, data: Path) -> float:
    """The lambda of gradient-norm balance.

    Args:
        run: a run folder with BCE alone.
        config: that of PWiseR, with the same model.
        data: the prepared folder.
    """
    schema = Prepared(data).schema
    state = load_best(run, run_config(run), schema)
    module = build(config.model, schema)
    objective, weights = objectives.build(
        config.loss, schema.labels, config.model.cvr_space
    )

    @jax.jit
    def norms(inputs, labels, mask):
        def loss(params, strength):
            variables = {"params": params, "batch_stats": state.batch_stats}
            logits: Any = module.apply(variables, inputs, train=False)
            own = weights._replace(lambdas=dict.fromkeys(weights.lambdas, strength))
            return objective(logits, labels, mask, own)[0]

        gradient = jax.grad(loss)
        bce, both = gradient(state.params, 0.0), gradient(state.params, 1.0)
        pwiser = jax.tree.map(jnp.subtract, both, bce)
        return optax.tree.norm(bce), optax.tree.norm(pwiser)

    batches = epoch_batches(
        Prepared(data).load("train"),
        config.data.batch_size,
        seed=config.train.seed,
        epoch=0,
    )
    found = [norms(b.inputs, b.labels, b.mask) for b in islice(batches, BATCHES)]
    bce, pwiser = np.mean(np.asarray(found, np.float64), axis=0)
    return float(bce / pwiser)
