"""Which rows a run may see, and how figures of the optimistic protocol are labelled."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pwiser_jax.config import Config, TrainConfig
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.inference.evaluate import evaluate_run, summary
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from pwiser_jax.training.run.protocol import OPTIMISTIC, TRAINED_ON, lines
from tests.training.helpers import small_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "synthetic"
    prepare_synthetic(folder, rows=6_000, seed=3)
    return folder


def test_the_default_never_opens_the_test_split(data: Path, tmp_path: Path) -> None:
    blind = tmp_path / "data"
    shutil.copytree(data, blind, ignore=shutil.ignore_patterns("test-*", "cache"))
    result = train(small_config(blind, train={"epochs": 1}), tmp_path / "run", Silent())
    assert result.note is None
    assert "note" not in evaluate_run(tmp_path / "run", "valid").to_dict()


def test_mtreclib_learns_from_all_but_test_and_chooses_on_test(
    data: Path, tmp_path: Path
) -> None:
    run, prepared = tmp_path / "run", Prepared(data)
    config = replace(small_config(data), protocol="mtreclib")
    result = train(config, run, Silent())
    rows = sum(prepared.manifest.splits[name].rows for name in ("train", "valid"))
    assert result.steps == 2 * -(-rows // config.data.batch_size)
    assert result.note == OPTIMISTIC
    assert "data.batch_size is 256, theirs 2048" in (result.other or [])
    assert json.loads((run / "result.json").read_text()) == result.to_dict()
    kinds = [line["kind"] for line in read_metrics(run)]
    assert kinds.count("test") == 2
    assert "valid" not in kinds
    report = evaluate_run(run, "test")
    assert report.to_dict()["note"] == report.note == OPTIMISTIC
    assert summary(report).endswith(OPTIMISTIC)
    aucs = [report.tasks[task].auc.value for task in ("ctr", "ctcvr")]
    assert np.mean(aucs) == pytest.approx(result.best.mean_auc, abs=1e-6)
    assert evaluate_run(run, "valid").note == TRAINED_ON


def test_splits_are_read_one_after_another(data: Path) -> None:
    prepared = Prepared(data)
    both = prepared.load("train", "valid")
    parts = [prepared.load(name) for name in ("train", "valid")]
    for name, values in both.inputs.items():
        np.testing.assert_array_equal(
            values, np.concatenate([part.inputs[name] for part in parts])
        )
    np.testing.assert_array_equal(
        both.labels, np.concatenate([part.labels for part in parts])
    )
    assert len(both) == sum(map(len, parts))


def test_their_settings_are_the_defaults() -> None:
    assert lines(Config()) == []
    assert lines(Config(protocol="mtreclib")) == [OPTIMISTIC]
    longer = Config(train=TrainConfig(patience=5), protocol="mtreclib")
    assert lines(longer) == [OPTIMISTIC, "train.patience is 5, theirs 2"]
