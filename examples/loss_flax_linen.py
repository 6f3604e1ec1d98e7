"""The loss in Flax linen: a scorer of conversions, trained with BCE + lambda PWiseR."""

import flax.linen as nn
import jax
import optax
from funnel import funnel

from pwiser_jax.losses import bce_loss, pwiser_loss

LAMBDA, MARGINS = 0.1, (0.1, 0.2)


class Scorer(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(1)(nn.relu(nn.Dense(32)(x)))[:, 0]


def main(steps: int = 200) -> tuple[float, float]:
    features, clicks, conversions = funnel()
    model, optimizer = Scorer(), optax.adam(1e-2)
    params = model.init(jax.random.key(0), features)
    state = optimizer.init(params)

    def loss_fn(params):
        logits = model.apply(params, features)
        rank = pwiser_loss(jax.nn.sigmoid(logits), clicks, conversions, margins=MARGINS)
        return bce_loss(logits, conversions) + LAMBDA * rank

    @jax.jit
    def step(params, state):
        loss, grads = jax.value_and_grad(loss_fn)(params)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(params, updates), state, loss

    losses = []
    for _ in range(steps):
        params, state, loss = step(params, state)
        losses.append(float(loss))
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
