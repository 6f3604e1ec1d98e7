"""The loss in Keras on jax: a function of labels (click, conversion) and logits."""

import os

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from funnel import funnel

from pwiser_jax.losses import bce_loss, pwiser_loss

LAMBDA, MARGINS = 0.1, (0.1, 0.2)


def bce_and_pwiser(labels: jax.Array, logits: jax.Array) -> jax.Array:
    """Labels f[B, 2], click and conversion; logits f[B, 1]."""
    clicks, conversions = labels[:, 0].astype(int), labels[:, 1].astype(int)
    scores = jax.nn.sigmoid(logits[:, 0])
    rank = pwiser_loss(scores, clicks, conversions, margins=MARGINS)
    return bce_loss(logits[:, 0], conversions) + LAMBDA * rank


def main(steps: int = 200) -> tuple[float, float]:
    keras.utils.set_random_seed(0)
    features, clicks, conversions = funnel()
    labels = np.stack([clicks, conversions], axis=1).astype(np.float32)
    model = keras.Sequential(
        [keras.layers.Dense(32, activation="relu"), keras.layers.Dense(1)]
    )
    model.compile(optimizer=keras.optimizers.Adam(1e-2), loss=bce_and_pwiser)
    history = model.fit(
        features, labels, batch_size=len(features), epochs=steps, verbose=0
    )
    losses = history.history["loss"]
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
