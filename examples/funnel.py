"""Rows for the examples: ten features, clicks, and rarer conversions among them."""

import numpy as np


def funnel(rows: int = 2048, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Features f[rows, 10], clicks and conversions int[rows]."""
    rng = np.random.default_rng(seed)
    features = rng.standard_normal((rows, 10)).astype(np.float32)
    clicks = rng.random(rows) < 1 / (1 + np.exp(1.5 - features[:, 0]))
    buys = rng.random(rows) < 1 / (1 + np.exp(1.0 - features[:, 1]))
    return features, clicks.astype(np.int32), (clicks & buys).astype(np.int32)
