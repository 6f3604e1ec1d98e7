"""Metrics over NumPy arrays: ranking, calibration, statistics.

They need only NumPy and SciPy. Labels are 0 or 1; a measure that is undefined for the
given rows is NaN, not an error.
"""

from pwiser_jax.metrics.auc import (
    GroupedAuc,
    auc,
    auc_difference,
    auc_interval,
    grouped_auc,
)
from pwiser_jax.metrics.bootstrap import bootstrap_auc_difference
from pwiser_jax.metrics.calibration import (
    Refit,
    Reliability,
    expected_calibration_error,
    log_loss,
    log_loss_from_logits,
    predicted_over_observed,
    refit,
    reliability,
)
from pwiser_jax.metrics.checks import group_codes
from pwiser_jax.metrics.expected import (
    expected_auc,
    expected_log_loss,
    predicted_over_true,
    true_calibration_error,
)
from pwiser_jax.metrics.harmony import Discordance, discordance, order_agreement
from pwiser_jax.metrics.order import score_order
from pwiser_jax.metrics.sessions import (
    gauc_interval,
    session_auc,
    session_ndcg,
    session_revenue,
)
from pwiser_jax.metrics.significance import (
    Interval,
    holm,
    mean_interval,
    paired_interval,
    paired_test,
    seeds_needed,
    wilcoxon_test,
)

__all__ = [
    "Discordance",
    "GroupedAuc",
    "Interval",
    "Refit",
    "Reliability",
    "auc",
    "auc_difference",
    "auc_interval",
    "bootstrap_auc_difference",
    "discordance",
    "expected_auc",
    "expected_calibration_error",
    "expected_log_loss",
    "gauc_interval",
    "group_codes",
    "grouped_auc",
    "holm",
    "log_loss",
    "log_loss_from_logits",
    "mean_interval",
    "order_agreement",
    "paired_interval",
    "paired_test",
    "predicted_over_observed",
    "predicted_over_true",
    "refit",
    "reliability",
    "score_order",
    "seeds_needed",
    "session_auc",
    "session_ndcg",
    "session_revenue",
    "true_calibration_error",
    "wilcoxon_test",
]
