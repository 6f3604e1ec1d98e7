"""The main job on a built-in synthetic funnel, in minutes: `make demo`."""

import sys
from pathlib import Path

from experiments.compare import main
from experiments.integration import INTEGRATION
from pwiser_jax.data.manifest import FILE
from pwiser_jax.data.synthetic import prepare_synthetic

DATA = Path("runs/demo/data")

if __name__ == "__main__":
    if not (DATA / FILE).is_file():
        # More clicks and conversions than in a shop: minutes must show something.
        prepare_synthetic(
            DATA,
            rows=50_000,
            click_rate=0.2,
            conversion_rate=0.2,
            users=1_000,
            items=300,
        )
    arguments = [
        f"--data={DATA}",
        "--configs=configs/synthetic",
        "--output=runs/demo",
        "--runs=runs/demo/cells",
        "--seeds=3",
        "--split=test",
    ]
    sys.exit(main(INTEGRATION, arguments))
