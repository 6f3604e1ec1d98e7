"""Which part of the loss does it?

The click-only term, the no-click term, or the cross-entropy on all rows: each is left
out in turn; the last is replaced by a cross-entropy on conversion samples only. Then
two ways to have conversions in every batch: a bank of earlier ones, and batches that
hold at least 8, the latter with BCE alone too.

    python -m experiments.ablation --data data/kuairand --configs configs/kuairand \
        --output runs/ablation
"""

import sys

from experiments.compare import Experiment, main

ABLATION = Experiment(
    name="ablation",
    title="Ablation: which part of the loss does it",
    asked=(
        "What remains of PWiseR's effect without the click-only term, without the "
        "no-click term, with BCE on conversion samples only, with a bank of earlier "
        "conversions, and with batches that hold at least 8?"
    ),
    losses=(
        "bce",
        "pwiser",
        "without_click_only",
        "without_no_click",
        "bce_on_conversions",
        "bank",
        "bce_conversion_aware",
        "conversion_aware",
    ),
)

if __name__ == "__main__":
    sys.exit(main(ABLATION))
