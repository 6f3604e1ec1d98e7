"""The logits that a model returns: of its heads, and of joint tasks."""

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from pwiser_jax.tasks import CvrSpace, heads, joint_task


def both_logits(head: str) -> str:
    """The name under which a head's two logits, f32[B, 2], are returned."""
    return f"{head}:both"


def product_logit(a: jax.Array, b: jax.Array) -> jax.Array:
    """The logit of σ(a) σ(b), elementwise: -log(e^-a + e^-b + e^(-a-b)).

    Accurate where the product of the probabilities would round to 0 or to 1.
    """
    return -logsumexp(jnp.stack([-a, -b, -a - b]), axis=0)


def joint_logits(
    logits: dict[str, jax.Array], labels: tuple[str, ...], space: CvrSpace
) -> dict[str, jax.Array]:
    """Adds the logits of joint tasks, in all spaces but "ctcvr".

    There each head above the first is conditional on the label before, and P(level >=
    k) is the product of the first k heads. In "ctcvr" the heads are joint already.
    """
    if space == "ctcvr":
        return logits
    first, *above = heads(labels, space)
    joint, together = {}, logits[first.name]
    for head in above:
        together = product_logit(together, logits[head.name])
        joint[joint_task(labels, head.rung).name] = together
    return logits | joint
