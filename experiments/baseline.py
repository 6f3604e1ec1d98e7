"""How well do the four models do with binary cross-entropy alone?

    python -m experiments.baseline --data data/kuairand --configs configs/kuairand \
        --output runs/baseline
"""

import sys

from experiments.compare import Experiment, main

BASELINE = Experiment(
    name="baseline",
    title="Baseline: BCE alone",
    asked="How well do the models do with binary cross-entropy alone?",
    losses=("bce",),
)

if __name__ == "__main__":
    sys.exit(main(BASELINE))
