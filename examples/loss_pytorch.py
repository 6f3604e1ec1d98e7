"""The loss in PyTorch: value and gradient by jax, exchanged through DLPack."""

import jax
import torch
from funnel import funnel

from pwiser_jax.losses import pwiser_loss

LAMBDA, MARGINS = 0.1, (0.1, 0.2)
value_and_grad = jax.jit(
    jax.value_and_grad(
        lambda scores, clicks, conversions: pwiser_loss(
            scores, clicks, conversions, margins=MARGINS
        )
    )
)


class PWiseR(torch.autograd.Function):
    """Scores f[B] that need a gradient, clicks and conversions int32[B]."""

    @staticmethod
    def forward(ctx, scores, clicks, conversions):
        arrays = (scores.detach().contiguous(), clicks, conversions)
        value, gradient = value_and_grad(*map(jax.dlpack.from_dlpack, arrays))
        ctx.save_for_backward(torch.from_dlpack(gradient))
        return torch.from_dlpack(value)

    @staticmethod
    def backward(ctx, upstream):
        (gradient,) = ctx.saved_tensors
        return upstream * gradient, None, None


def main(steps: int = 200) -> tuple[float, float]:
    torch.manual_seed(0)
    features, clicks, conversions = map(torch.from_numpy, funnel())
    model = torch.nn.Sequential(
        torch.nn.Linear(10, 32), torch.nn.ReLU(), torch.nn.Linear(32, 1)
    )
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    bce = torch.nn.BCEWithLogitsLoss()
    losses = []
    for _ in range(steps):
        logits = model(features)[:, 0]
        rank = PWiseR.apply(torch.sigmoid(logits), clicks, conversions)
        loss = bce(logits, conversions.float()) + LAMBDA * rank
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.4f} -> {losses[-1]:.4f}")
    return losses[0], losses[-1]


if __name__ == "__main__":
    main()
