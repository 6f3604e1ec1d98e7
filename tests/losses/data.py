"""Batches that the tests of the losses share."""

import numpy as np

# (surrogate, gate): every shape of a pair's cost.
SHAPES = [
    ("squared_hinge", "margin"),
    ("hinge", "margin"),
    ("logistic", "margin"),
    ("squared_hinge", "literal"),
]
NORMALIZATIONS = ["pairs", "negatives", "none"]
FORMS = ["broadcast", "blocked", "sorted"]
# Forms by surrogate: the logistic one has no closed prefix form.
FORM_SURROGATES = [
    (form, surrogate)
    for form in FORMS
    for surrogate in ("squared_hinge", "hinge", "logistic")
    if (form, surrogate) != ("sorted", "logistic")
]

SCORES = {
    "random": lambda rng, size: rng.random(size),
    "logits": lambda rng, size: 3 * rng.normal(size=size),
    # Differences equal margins of eighths exactly.
    "ties": lambda rng, size: rng.integers(0, 8, size) / 8,
    # Differences are near margins of tenths: rounding decides.
    "tenths": lambda rng, size: rng.integers(0, 10, size) * np.float32(0.1),
    "equal": lambda rng, size: np.full(size, 0.5),
    "close": lambda rng, size: 0.5 + 1e-6 * rng.integers(0, 5, size),
}


def scores(kind, size, seed=0):
    return SCORES[kind](np.random.default_rng(seed), size).astype(np.float32)


def labels(size, seed=1, conversions=0.2, clicks=0.5):
    """Clicks and conversions, some of these without a click."""
    rng = np.random.default_rng(seed)
    return (
        (rng.random(size) < clicks).astype(np.int8),
        (rng.random(size) < conversions).astype(np.int8),
    )


def row_options(size, seed=2):
    """A mask, weights of which some are 0, and groups of different sizes."""
    rng = np.random.default_rng(seed)
    return {
        "where": rng.random(size) < 0.8,
        "weights": (rng.integers(0, 5, size) / 2).astype(np.float32),
        "segments": rng.integers(0, 4, size).astype(np.int32) ** 2 - 3,
    }
