"""Trains the model, loss and dataset of `own_parts.py`."""

import sys
import tempfile
from pathlib import Path

import own_parts  # registers the parts

from pwiser_jax.config import Config
from pwiser_jax.training.loop import train


def main(folder: Path, epochs: int = 5) -> dict[str, float]:
    own_parts.prepare_coins(folder / "coins")
    sizes = {"embedding_dim": 8, "bottom": (16, 8), "tower": (8,)}
    config = Config.from_dict(
        {
            "data": {"path": str(folder / "coins"), "batch_size": 64},
            "model": {"name": "two_bottoms", **sizes},
            "loss": {"pointwise": "smoothed_bce", "ranking": "pwiser"},
            "train": {"epochs": epochs},
        }
    )
    best = train(config, folder / "run").best
    print(f"epoch {best.epoch + 1}: validation AUC {best.auc}")
    return best.auc


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(temporary))
