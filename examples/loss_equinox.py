"""The loss in Equinox: a scorer of conversions, trained with BCE + lambda PWiseR."""

import equinox as eqx
import jax
import optax
from funnel import funnel

from pwiser_jax.losses import bce_loss, pwiser_loss

LAMBDA, MARGINS = 0.1, (0.1, 0.2)


def main(steps: int = 200) -> tuple[float, float]:
    features, clicks, conversions = funnel()
    model = eqx.nn.MLP(10, "scalar", width_size=32, depth=1, key=jax.random.key(0))
    optimizer = optax.adam(1e-2)
    state = optimizer.init(eqx.filter(model, eqx.is_array))

    def loss_fn(model):
        logits = jax.vmap(model)(features)
        rank = pwiser_loss(jax.nn.sigmoid(logits), clicks, conversions, margins=MARGINS)
        return bce_loss(logits, conversions) + LAMBDA * rank

    @eqx.filter_jit
    def step(model, state):
        loss, grads = eqx.filter_value_and_grad(loss_fn)(model)
        updates, state = optimizer.update(grads, state)
        return eqx.apply_updates(model, updates), state, loss

    losses = []
    for _ in range(steps):
        model, state, loss = step(model, state)
        losses.append(float(loss))
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
