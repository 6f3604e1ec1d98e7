"""Three labels (click, cart, order) from a config to a trained, measured run."""

from pathlib import Path

import numpy as np

from pwiser_jax.config import load_config
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.inference.evaluate import evaluate_run
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent

LADDER = Path(__file__).resolve().parents[2] / "configs" / "synthetic" / "ladder.yaml"
RATES = {"click_rate": 0.3, "conversion_rate": 0.3}


def test_a_ladder_of_three_labels_is_trained_from_its_config(tmp_path: Path) -> None:
    data, run = tmp_path / "data", tmp_path / "run"
    manifest = prepare_synthetic(data, rows=8_000, labels=3, valid=0.2, **RATES)
    assert manifest.schema.labels == ("click", "cart", "order")
    sizes = ("--model.expert=[8]", "--model.experts=2", "--model.tower=[4]")
    small = ("--train.epochs=2", "--data.batch_size=256", "--loss.bank=32")
    config = load_config(LADDER, (f"--data.path={data}", *sizes, *small))
    train(config, run, Silent())
    lines = read_metrics(run)
    logged = [line for line in lines if line["kind"] == "train"][-1]
    heads = ("ctr", "cart", "order")
    for head in heads:
        assert logged[f"bce/{head}"] > 0
        assert logged[f"pwiser/{head}"] > 0
    report = evaluate_run(run, "valid").to_dict()
    for task in (*heads, "cart_given_click", "order_given_cart"):
        assert np.isfinite(report[task]["auc"]["value"])
    assert report["ctr"]["auc"]["value"] > 0.55
