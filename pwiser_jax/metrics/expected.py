"""Measures against the true probabilities of synthetic data.

A measure on labels varies with the draw of the labels. With the true probability π_i of
each row the labels can be averaged out: y_i ~ Bernoulli(π_i), independent over rows.
`weights` are the probabilities that a row belongs to the task, such as P(click) for
CVR.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pwiser_jax.metrics.calibration import EPSILON

Floats = NDArray[np.float64]


def expected_auc(
    truth: ArrayLike, scores: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """AUC over all draws of the labels: expected ordered pairs over expected pairs.

        Σ_{i≠j} π_i (1 - π_j) ([s_i > s_j] + [s_i = s_j] / 2) / Σ_{i≠j} π_i (1 - π_j)

    In place of π_i and 1 - π_j stand w_i π_i and w_j (1 - π_j). O(N log N).

    Args:
        truth: π in [0, 1], f[rows].
        scores: f[rows]; only their order matters.
        weights: w in [0, 1], f[rows]; 1 by default.

    Returns:
        The expected AUC; NaN if no pair is possible.

    Raises:
        ValueError: shapes differ, a score is NaN, π or w is outside [0, 1].
    """
    truth, scores, weights = _checked(truth, scores, weights)
    positive, negative = weights * truth, weights * (1 - truth)
    _, run = np.unique(scores, return_inverse=True)
    # By runs of equal scores: the positives and negatives that are expected there.
    above, below = (np.bincount(run, weights=w) for w in (positive, negative))
    self_pairs = float(positive @ negative)  # a row is not both
    pairs = float(positive.sum() * negative.sum()) - self_pairs
    if not pairs > 0:
        return np.nan
    ordered = float(above @ (np.cumsum(below) - below / 2))
    return (ordered - self_pairs / 2) / pairs


def expected_log_loss(
    truth: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Σ w (-π log p - (1 - π) log(1 - p)) / Σ w, in nats; p clipped as in `log_loss`.

    Args:
        truth: π in [0, 1], f[rows].
        probabilities: p in [0, 1], f[rows].
        weights: w in [0, 1], f[rows]; 1 by default.

    Returns:
        The mean; NaN without rows. It is least at p = π.

    Raises:
        ValueError: as `expected_auc`, and for p outside [0, 1].
    """
    truth, p, weights = _checked(truth, probabilities, weights)
    _in_unit_interval("probabilities", p)
    p = np.clip(p, EPSILON, 1 - EPSILON)
    costs = -truth * np.log(p) - (1 - truth) * np.log1p(-p)
    total = float(weights.sum())
    return float(weights @ costs) / total if total > 0 else np.nan


def predicted_over_true(
    truth: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None
) -> float:
    """Σ w p / Σ w π; NaN without any true probability. Args, Raises: as above."""
    truth, p, weights = _checked(truth, probabilities, weights)
    _in_unit_interval("probabilities", p)
    total = float(weights @ truth)
    return float(weights @ p) / total if total > 0 else np.nan


def true_calibration_error(
    truth: ArrayLike,
    probabilities: ArrayLike,
    weights: ArrayLike | None = None,
    bins: int = 20,
) -> float:
    """Σ over bins of (w in bin / Σ w) |mean p - mean π|, means weighted by w.

    Bins hold equal numbers of rows in the order of p; equal p share a bin.

    Args, Raises: as `expected_log_loss`, and ValueError for bins below 1.

    Returns:
        The error; NaN without rows.
    """
    truth, p, weights = _checked(truth, probabilities, weights)
    _in_unit_interval("probabilities", p)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    total = float(weights.sum())
    if not total > 0:
        return np.nan
    last = np.unique((np.arange(1, bins + 1) * len(p) + bins - 1) // bins - 1)
    bin_of = np.searchsorted(np.unique(np.sort(p)[last]), p)
    return float(np.abs(np.bincount(bin_of, weights * (p - truth))).sum()) / total


def _checked(
    truth: ArrayLike, values: ArrayLike, weights: ArrayLike | None
) -> tuple[Floats, Floats, Floats]:
    truth, values = np.asarray(truth, np.float64), np.asarray(values, np.float64)
    weights = np.ones_like(truth) if weights is None else np.asarray(weights, float)
    if truth.ndim != 1 or not truth.shape == values.shape == weights.shape:
        raise ValueError(
            "truth, predictions and weights must be vectors of one length, not "
            f"{truth.shape}, {values.shape} and {weights.shape}"
        )
    if np.isnan(values).any():
        raise ValueError(f"row {int(np.argmax(np.isnan(values)))} has NaN for a score")
    _in_unit_interval("truth", truth)
    _in_unit_interval("weights", weights)
    return truth, values, weights


def _in_unit_interval(name: str, values: Floats) -> None:
    outside = ~((values >= 0) & (values <= 1))
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(f"{name} must lie in [0, 1], row {row} has {values[row]}")
