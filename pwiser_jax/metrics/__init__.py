"""Metrics over NumPy arrays: ranking, calibration, intervals. No other part is needed.

Labels are 0 or 1; what is not defined for the rows given is NaN, never an error.
"""

from pwiser_jax.metrics.auc import (
    GroupedAuc,
    auc,
    auc_difference,
    auc_interval,
    grouped_auc,
)
from pwiser_jax.metrics.calibration import (
    Reliability,
    expected_calibration_error,
    log_loss,
    log_loss_from_logits,
    predicted_over_observed,
    reliability,
)
from pwiser_jax.metrics.checks import group_codes
from pwiser_jax.metrics.significance import Interval, mean_interval, paired_interval

__all__ = [
    "GroupedAuc",
    "Interval",
    "Reliability",
    "auc",
    "auc_difference",
    "auc_interval",
    "expected_calibration_error",
    "group_codes",
    "grouped_auc",
    "log_loss",
    "log_loss_from_logits",
    "mean_interval",
    "paired_interval",
    "predicted_over_observed",
    "reliability",
]
