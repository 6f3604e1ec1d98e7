"""A custom model, loss and dataset, registered from outside the package."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl

from pwiser_jax.data.datasets import register_dataset
from pwiser_jax.data.prepared.folder import write
from pwiser_jax.data.raw.flat import FlatSpec, FlatTable
from pwiser_jax.losses import bce_loss
from pwiser_jax.models import MultiTaskModel, register_model
from pwiser_jax.parts import register_pointwise


class TwoBottoms(MultiTaskModel):
    """logit_k = tower_k([deep(z), shallow(z)]), z the embedded row."""

    def features(self, inputs, context):
        sizes = self.config
        z = self.embed("embedding", inputs, context)
        deep = self.blocks(sizes.bottom, sizes.dropout, name="deep")(z, context)
        shallow = self.blocks(sizes.bottom[-1:], sizes.dropout, name="shallow")
        return jnp.concatenate([deep, shallow(z, context)], axis=-1)


def smoothed_bce(logits, labels, **options):
    """Cross-entropy with labels moved by 0.01 towards one half."""
    labels = 0.99 * jnp.asarray(labels, jnp.float32) + 0.005
    return bce_loss(logits, jax.lax.stop_gradient(labels), **options)


def prepare_coins(output, *, rows: int = 4000, seed: int = 0, overwrite: bool = False):
    """Rows of one informative and one useless field.

    Args:
        output: the new folder.
        rows: rows over all splits.
        seed: the same seed gives the same rows.
        overwrite: replace a prepared folder.
    """
    rng = np.random.default_rng(seed)
    shop, coin = rng.integers(20, size=rows), rng.integers(2, size=rows)
    click = rng.random(rows) < shop / 40
    buy = click & (rng.random(rows) < shop / 40)
    frame = pl.DataFrame({"shop": shop, "coin": coin, "click": click, "buy": buy})
    frame = frame.with_columns(pl.col("click", "buy").cast(pl.Int8))
    edges = 0, 6 * rows // 10, 8 * rows // 10, rows
    parts = [frame[start:end].lazy() for start, end in pairwise(edges)]
    splits = dict(zip(("train", "valid", "test"), parts, strict=True))
    labels = {"click": "click", "conversion": "buy"}
    spec = FlatSpec(categorical=("shop", "coin"), labels=labels)
    return write(FlatTable("coins", spec, splits), output, overwrite=overwrite)


register_model("two_bottoms", TwoBottoms)
register_pointwise("smoothed_bce", smoothed_bce)
register_dataset("coins", prepare_coins)
