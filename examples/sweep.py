"""A sweep over lambda and seeds from Python: one program trains all runs."""

import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np

from pwiser_jax import Config, train_sweep
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.metrics import mean_interval

LAMBDAS, SEEDS = (0.0, 0.1, 0.3), (0, 1, 2)


def main(folder: Path, rows: int = 20_000, epochs: int = 3) -> dict[float, float]:
    prepare_synthetic(folder / "data", rows=rows)
    sizes = {"embedding_dim": 8, "expert": (16, 8), "experts": 3, "tower": (8,)}
    base = Config.from_dict(
        {
            "data": {"path": str(folder / "data"), "batch_size": 512},
            "model": {"name": "mmoe", **sizes},
            "loss": {"ranking": "pwiser"},
            "train": {"epochs": epochs},
        }
    )
    grid = [(value, seed) for value in LAMBDAS for seed in SEEDS]
    configs = [
        replace(
            base,
            loss=replace(base.loss, lambdas=value),
            train=replace(base.train, seed=seed),
        )
        for value, seed in grid
    ]
    outputs = [folder / f"lambda{value}_seed{seed}" for value, seed in grid]
    results = train_sweep(configs, outputs)
    auc = np.array([result.best.auc["ctcvr"] for result in results])
    by_lambda = dict(zip(LAMBDAS, auc.reshape(len(LAMBDAS), -1), strict=True))
    for value in LAMBDAS[1:]:
        effect = mean_interval(by_lambda[value] - by_lambda[0.0])
        print(
            f"lambda {value}: CTCVR AUC minus that of BCE {effect.value:+.4f} "
            f"[{effect.low:+.4f}, {effect.high:+.4f}]"
        )
    return {value: float(values.mean()) for value, values in by_lambda.items()}


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary))
