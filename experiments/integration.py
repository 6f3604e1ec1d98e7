"""Does PWiseR, with lambda 0.1 and default margins, help over BCE alone?

    python -m experiments.integration --data data/kuairand --configs configs/kuairand \
        --output runs/integration
"""

import sys

from experiments.compare import Experiment, main

INTEGRATION = Experiment(
    name="integration",
    title="Integration: BCE + 0.1 PWiseR against BCE",
    asked="Does PWiseR with lambda 0.1 and default margins help over BCE alone?",
    losses=("bce", "pwiser"),
)

if __name__ == "__main__":
    sys.exit(main(INTEGRATION))
