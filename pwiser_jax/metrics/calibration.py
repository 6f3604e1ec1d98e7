"""Log loss and calibration of probabilities: ratio of sums, reliability, refit."""

from dataclasses import dataclass

import numpy as np
import scipy  # scipy.optimize is imported where it is used
from numpy.typing import ArrayLike, NDArray

from pwiser_jax.metrics.checks import binary_rows

EPSILON = float(np.finfo(np.float64).eps)


def log_loss(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean over rows of -y log p - (1 - y) log(1 - p), in nats.

    Probabilities are clipped to [ε, 1 - ε], ε = 2.2e-16: a certain but wrong row costs
    36 nats, instead of infinity.

    Args:
        labels: 0 or 1, [rows].
        probabilities: f[rows] in [0, 1].

    Returns:
        The mean, NaN without rows.

    Raises:
        ValueError: shapes differ, a label is not 0 or 1, a probability is NaN or
            outside [0, 1].
    """
    positive, p = _probabilities(labels, probabilities)
    if not len(p):
        return np.nan
    right = np.where(positive, p, 1 - p)
    return float(-np.log(np.clip(right, EPSILON, 1 - EPSILON)).mean())


def log_loss_from_logits(labels: ArrayLike, logits: ArrayLike) -> float:
    """Mean over rows of log(1 + e^z) - y z, in nats: exact for any finite logit.

    Args:
        labels: 0 or 1, [rows].
        logits: f[rows].

    Returns:
        The mean, NaN without rows.

    Raises:
        ValueError: shapes differ, a label is not 0 or 1, a logit is NaN.
    """
    positive, z = binary_rows(labels, logits, "logits")
    if not len(z):
        return np.nan
    wrong = np.where(positive, -z, z).astype(np.float64, copy=False)
    return float(np.logaddexp(0, wrong).mean())


def predicted_over_observed(labels: ArrayLike, probabilities: ArrayLike) -> float:
    """Σ p / Σ y: 1 is calibrated on average, 2 predicts twice the observed rate.

    Args, Raises: as `log_loss`.

    Returns:
        The ratio, NaN without positives.
    """
    positive, p = _probabilities(labels, probabilities)
    observed = int(positive.sum())
    return float(p.sum()) / observed if observed else np.nan


@dataclass(frozen=True)
class Reliability:
    """By bins of rows, lowest predictions first: mean p, mean y, count; [bins] each."""

    predicted: NDArray[np.float64]
    observed: NDArray[np.float64]
    rows: NDArray[np.int64]


def reliability(
    labels: ArrayLike, probabilities: ArrayLike, bins: int = 20
) -> Reliability:
    """Mean prediction and mean label in bins of equal mass.

    Bins end at the predictions of rank rows * k / bins. Equal predictions share a bin,
    so ties leave fewer bins, of unequal mass.

    Args:
        labels: 0 or 1, [rows].
        probabilities: f[rows] in [0, 1].
        bins: maximum number of bins, at least 1.

    Returns:
        The bins that hold rows; none without rows.

    Raises:
        ValueError: as `log_loss`, and for bins below 1.
    """
    positive, p = _probabilities(labels, probabilities)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    if not len(p):
        return Reliability(np.empty(0), np.empty(0), np.empty(0, np.int64))
    last = np.unique((np.arange(1, bins + 1) * len(p) + bins - 1) // bins - 1)
    ends = np.unique(np.sort(p)[last])
    bin_of = np.searchsorted(ends, p, "left")
    rows = np.bincount(bin_of)
    return Reliability(
        np.bincount(bin_of, weights=p) / rows,
        np.bincount(bin_of[positive], minlength=len(rows)) / rows,
        rows,
    )


def expected_calibration_error(
    labels: ArrayLike, probabilities: ArrayLike, bins: int = 20
) -> float:
    """Σ over bins of (rows in bin / rows) |mean p - mean y|, bins of equal mass.

    Args, Raises: as `reliability`.

    Returns:
        The error, NaN without rows.
    """
    table = reliability(labels, probabilities, bins)
    if not len(table.rows):
        return np.nan
    gaps = np.abs(table.predicted - table.observed)
    return float(np.average(gaps, weights=table.rows))


@dataclass(frozen=True)
class Refit:
    """logit' = slope * logit + shift; a slope above 0 keeps every order and AUC."""

    slope: float
    shift: float

    def __call__(self, logits: ArrayLike) -> NDArray[np.float64]:
        return self.slope * np.asarray(logits, np.float64) + self.shift


def refit(labels: ArrayLike, logits: ArrayLike) -> Refit:
    """Platt's recalibration: slope and shift of minimum log loss.

        argmin over (slope, shift) of mean log(1 + e^z') - y z',  z' = slope z + shift

    by SciPy's trust-region Newton method; the function is convex. Fitted on validation
    rows and applied to test rows, it shows which part of a calibration error is due to
    scale and level. At its minimum Σ p = Σ y on the rows that it was fitted on.

    Args:
        labels: 0 or 1, [rows].
        logits: f[rows].

    Returns:
        The refit; NaN where a class is missing, all logits are equal, or a threshold
        separates the classes, so that no slope is the best.

    Raises:
        ValueError: shapes differ, a label is not 0 or 1, a logit is NaN or infinite.

    Reference:
        Platt (1999), Probabilistic outputs for support vector machines
    """
    positive, z = binary_rows(labels, logits, "logits")
    z = z.astype(np.float64, copy=False)
    if not np.isfinite(z).all():
        raise ValueError(f"logits are infinite in row {int(np.argmin(np.isfinite(z)))}")
    above, below = z[positive], z[~positive]
    if not len(above) or not len(below) or z.min() == z.max():
        return Refit(np.nan, np.nan)
    if above.min() >= below.max() or above.max() <= below.min():
        return Refit(np.nan, np.nan)
    # Scaled to mean 0 and spread 1: slope and shift are then nearly independent.
    centre, spread = float(z.mean()), float(z.std())
    x = np.stack([(z - centre) / spread, np.ones(len(z))], axis=1)

    def loss(at: NDArray[np.float64]) -> float:
        return log_loss_from_logits(positive, x @ at)

    def gradient(at: NDArray[np.float64]) -> NDArray[np.float64]:
        return x.T @ (scipy.special.expit(x @ at) - positive) / len(z)

    def curvature(at: NDArray[np.float64]) -> NDArray[np.float64]:
        p = scipy.special.expit(x @ at)
        return (x * (p * (1 - p))[:, None]).T @ x / len(z)

    start = np.array([0.0, scipy.special.logit(positive.mean())])
    at = scipy.optimize.minimize(
        loss, start, method="trust-exact", jac=gradient, hess=curvature, tol=1e-12
    ).x
    slope = float(at[0]) / spread
    return Refit(slope, float(at[1]) - slope * centre)


def _probabilities(
    labels: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    positive, p = binary_rows(labels, probabilities, "probabilities")
    outside = (p < 0) | (p > 1)
    if outside.any():
        row = int(np.argmax(outside))
        raise ValueError(f"probabilities must lie in [0, 1], row {row} has {p[row]}")
    return positive, p.astype(np.float64, copy=False)
