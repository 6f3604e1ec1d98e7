"""Training on whole groups: pairs within a group, resumed as if uninterrupted."""

import json
from pathlib import Path

import pytest

from pwiser_jax.config import Config
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from tests.training.helpers import Lines, small_config


def config(data: Path, order: str) -> Config:
    return small_config(
        data,
        data={"batch_size": 256, "order": order},
        model={"name": "shared_bottom"},
        loss={"ranking": "pwiser", "segments": "group", "pair_value": "true_ctr"},
        train={"epochs": 1},
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "synthetic"
    prepare_synthetic(folder, rows=4_000, click_rate=0.3, conversion_rate=0.3, seed=3)
    return folder


def shares(reporter: Lines) -> list[str]:
    return [text for text in reporter.lines if "of the conversions share" in text]


def test_a_run_on_groups_resumes_as_if_uninterrupted(data: Path, tmp_path: Path):
    said = Lines()
    train(config(data, "groups"), tmp_path / "whole", said)
    (share,) = shares(said)
    assert not share.startswith("warning")
    assert float(share.split("%")[0]) > 80
    with pytest.raises(Interrupted):
        train(config(data, "groups"), tmp_path / "cut", Silent(), stop_after=5)
    train(config(data, "groups"), tmp_path / "cut", Silent())
    results = [
        json.loads((tmp_path / name / "result.json").read_text())
        for name in ("whole", "cut")
    ]
    assert results[0] == results[1]
    losses = [
        [line["loss"] for line in read_metrics(tmp_path / name) if "loss" in line]
        for name in ("whole", "cut")
    ]
    assert losses[0] == losses[1]


def test_pairs_within_groups_in_the_order_of_rows_are_warned_of(
    data: Path, tmp_path: Path
):
    said = Lines()
    with pytest.raises(Interrupted):
        train(config(data, "rows"), tmp_path / "run", said, stop_after=1)
    (share,) = shares(said)
    assert share.startswith("warning: ")
    assert "data.order groups" in share
