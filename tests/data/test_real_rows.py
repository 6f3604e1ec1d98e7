"""Training on real rows: KuaiRand-Pure, prepared and trained in a minute."""

from dataclasses import replace
from pathlib import Path

import pytest

from pwiser_jax.config import load_config
from pwiser_jax.data.datasets.kuairand import prepare_kuairand
from pwiser_jax.data.prepared.folder import DataWarning
from pwiser_jax.inference.evaluate import evaluate_run
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.progress import Silent

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def test_a_small_model_learns_clicks_on_real_rows(
    real_rows: Path, tmp_path: Path
) -> None:
    with pytest.warns(DataWarning, match="test split is empty"):
        prepare_kuairand(real_rows / "kuairand_pure", tmp_path / "data")
    config = load_config(
        CONFIGS / "kuairand" / "smoke.yaml", (f"--data.path={tmp_path / 'data'}",)
    )
    config = replace(config, train=replace(config.train, epochs=2))
    train(config, tmp_path / "run", Silent())
    report = evaluate_run(tmp_path / "run", "valid").to_dict()
    assert report["ctr"]["auc"]["value"] > 0.70
    assert report["ctr"]["auc"]["low"] > 0.69
    # Predicted clicks are as many as observed ones, give or take a tenth.
    assert abs(report["ctr"]["calibration"]["predicted_over_observed"] - 1) < 0.1
