"""The loss in Flax NNX: a scorer of conversions, trained with BCE + lambda PWiseR."""

import jax
import optax
from flax import nnx
from funnel import funnel

from pwiser_jax.losses import bce_loss, pwiser_loss

LAMBDA, MARGINS = 0.1, (0.1, 0.2)


class Scorer(nnx.Module):
    def __init__(self, rngs: nnx.Rngs) -> None:
        self.hidden = nnx.Linear(10, 32, rngs=rngs)
        self.out = nnx.Linear(32, 1, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.out(nnx.relu(self.hidden(x)))[:, 0]


def main(steps: int = 200) -> tuple[float, float]:
    features, clicks, conversions = funnel()
    model = Scorer(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)

    def loss_fn(model: Scorer) -> jax.Array:
        logits = model(features)
        rank = pwiser_loss(jax.nn.sigmoid(logits), clicks, conversions, margins=MARGINS)
        return bce_loss(logits, conversions) + LAMBDA * rank

    @nnx.jit
    def step(model: Scorer, optimizer: nnx.Optimizer) -> jax.Array:
        loss, grads = nnx.value_and_grad(loss_fn)(model)
        optimizer.update(model, grads)
        return loss

    losses = [float(step(model, optimizer)) for _ in range(steps)]
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
