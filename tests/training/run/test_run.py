"""Whole runs: reproducible, resumed, with clear errors."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest

from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.data.prepared.folder import DataWarning, Prepared
from pwiser_jax.errors import UserError
from pwiser_jax.evaluation import mean_auc
from pwiser_jax.inference.evaluate import evaluate_run
from pwiser_jax.inference.load import load_best
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.logits import predict_logits
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from tests.training.helpers import Lines, small_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "synthetic"
    prepare_synthetic(folder, rows=6_000, seed=3)
    return folder


@pytest.fixture(scope="module")
def finished(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "finished"
    train(small_config(data), run, Silent())
    return run


def test_a_run_leaves_what_its_numbers_can_be_traced_to(finished: Path) -> None:
    names = {path.name for path in finished.iterdir()}
    assert {"config.yaml", "data", "checkpoints", "metrics.jsonl"} <= names
    assert {"tensorboard", "result.json"} <= names
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))
    result = json.loads((finished / "result.json").read_text())
    lines = read_metrics(finished, timing=True)
    kinds = [line["kind"] for line in lines]
    assert kinds.count("valid") == 2
    assert kinds.count("timing") == kinds.count("train")
    logged = [line for line in lines if "norm/update" in line]
    assert len(logged) == 7
    assert any(line["active/ctcvr/conversion>exposure"] for line in logged)
    for line in logged:
        assert line["norm/gradient"] > 0
        assert line["norm/update"] > 0
        for term in ("conversion>click", "conversion>exposure"):
            pairs, active = (line[f"{k}/ctcvr/{term}"] for k in ("pairs", "active"))
            assert 0 <= active <= pairs
        assert 0 < line["gate/entropy/ctr"] <= np.log(3) + 1e-6
        assert line["gate/dead/ctr"] in range(4)
    for line in lines:
        if line["kind"] == "timing":
            parts = ("data", "compute", "checkpoint")
            spent = sum(line[f"{part}_seconds"] for part in parts)
            assert spent == pytest.approx(line["step_seconds"])
    assert set(result["best"]["auc"]) == {"ctr", "ctcvr"}


def test_the_same_seed_gives_the_same_metrics_and_another_does_not(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    train(small_config(data), tmp_path / "same", Silent())
    train(small_config(data, train={"seed": 1}), tmp_path / "other", Silent())
    assert read_metrics(tmp_path / "same") == read_metrics(finished)
    assert read_metrics(tmp_path / "other") != read_metrics(finished)


@pytest.mark.parametrize("stop_after", [3, 7, 11])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    data: Path, finished: Path, tmp_path: Path, stop_after: int
) -> None:
    run, config = tmp_path / "run", small_config(data)
    for _ in range(100):
        reporter = Lines()
        try:
            result = train(config, run, reporter, stop_after=stop_after)
            break
        except Interrupted:
            continue
    assert any("resuming from the checkpoint" in line for line in reporter.lines)
    assert read_metrics(run) == read_metrics(finished)
    assert result.to_dict() == json.loads((finished / "result.json").read_text())
    assert evaluate_run(run, "valid") == evaluate_run(finished, "valid")


def test_a_finished_run_is_not_run_again(data: Path, finished: Path) -> None:
    reporter = Lines()
    before = (finished / "metrics.jsonl").stat().st_mtime_ns
    train(small_config(data), finished, reporter)
    assert (finished / "metrics.jsonl").stat().st_mtime_ns == before
    assert "finished already" in reporter.lines[0]


def test_another_configuration_in_the_same_folder_is_refused(
    data: Path, finished: Path
) -> None:
    with pytest.raises(UserError, match=r"train\.seed 0, not 5"):
        train(small_config(data, train={"seed": 5}), finished, Silent())


def test_a_folder_with_other_things_is_refused_and_left_alone(
    data: Path, tmp_path: Path
) -> None:
    (tmp_path / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match="holds no run"):
        train(small_config(data), tmp_path, Silent())
    assert [path.name for path in tmp_path.iterdir()] == ["letter.txt"]


def test_a_loss_that_is_not_finite_stops_with_step_task_and_value(
    data: Path, tmp_path: Path
) -> None:
    config = small_config(data, optimizer={"learning_rate": 1e30}, model={"dropout": 0})
    with pytest.raises(
        UserError, match=r"not finite: bce/(ctr|ctcvr) is (nan|-?inf) at step \d+;"
    ):
        train(config, tmp_path / "run", Silent())


def test_a_damaged_checkpoint_is_skipped_for_the_one_before(
    data: Path, finished: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", small_config(data)
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(config, run, Silent(), stop_after=7)
    checkpoints = run / "checkpoints" / "last"
    assert sorted(path.name for path in checkpoints.iterdir()) == ["14", "7"]
    for path in (checkpoints / "14").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    reporter = Lines()
    train(config, run, reporter)
    (damaged,) = (line for line in reporter.lines if "is damaged" in line)
    assert str(checkpoints / "14") in damaged
    assert any("from the checkpoint at step 7" in line for line in reporter.lines)
    assert read_metrics(run) == read_metrics(finished)


def test_no_readable_checkpoint_is_an_error_that_says_so(
    data: Path, tmp_path: Path
) -> None:
    run, config = tmp_path / "run", small_config(data)
    with pytest.raises(Interrupted):
        train(config, run, Silent(), stop_after=7)
    shutil.rmtree(run / "checkpoints" / "last" / "7" / "state")
    with pytest.raises(UserError, match=r"no checkpoint .* can be read"):
        train(config, run, Silent())


def test_training_learns_the_synthetic_funnel(tmp_path: Path) -> None:
    prepare_synthetic(tmp_path / "data", rows=40_000, users=300, items=100)
    config = small_config(
        tmp_path / "data",
        model={"name": "shared_bottom", "bottom": (32,)},
        optimizer={"learning_rate": 5e-3},
        train={"epochs": 5},
    )
    result = train(config, tmp_path / "run", Silent())
    assert result.best.auc["ctr"] > 0.65
    assert result.best.auc["ctcvr"] > 0.65
    # Products in bfloat16 learn it too, and rank as those of float32 do.
    rounded = replace(config, model=replace(config.model, compute="bfloat16"))
    result = train(rounded, tmp_path / "bfloat16", Silent())
    assert result.best.auc["ctr"] > 0.65
    assert result.best.auc["ctcvr"] > 0.65
    prepared = Prepared(tmp_path / "data")
    valid, labels = prepared.load("valid"), prepared.schema.labels
    state = load_best(tmp_path / "run", config, prepared.schema)
    aucs = [
        mean_auc(
            predict_logits(one, prepared.schema, state, valid),
            valid.labels,
            labels,
            config.model.cvr_space,
        ).auc
        for one in (config, rounded)
    ]
    assert aucs[0] != aucs[1]
    for task, auc in aucs[0].items():
        assert abs(aucs[1][task] - auc) < 0.001, task


def test_evaluation_of_an_empty_test_split_is_an_error(
    finished: Path, data: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "data"
    with pytest.warns(DataWarning, match="test split is empty"):
        prepare_synthetic(copy, rows=6_000, seed=3, test=0.0)
    run = tmp_path / "run"
    train(small_config(copy, train={"epochs": 1}), run, Silent())
    with pytest.raises(UserError, match="test"):
        evaluate_run(run, "test")


def test_state_leaves_are_float32(finished: Path, data: Path) -> None:
    from pwiser_jax.inference.evaluate import run_config

    state = load_best(finished, run_config(finished), Prepared(data).schema)
    kinds = {np.asarray(leaf).dtype for leaf in jax.tree.leaves(state)}
    assert kinds == {np.dtype("float32"), np.dtype("int32")}
