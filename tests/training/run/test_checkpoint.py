"""Checkpoints are written in the background, and read on any number of devices."""

import asyncio
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
import yaml

from pwiser_jax.config import TrainConfig
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.errors import UserError
from pwiser_jax.inference.evaluate import evaluate_run
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.checkpoint import BackgroundSaves, Checkpoints
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from tests.training.helpers import small_config


class Steps(Silent):
    def __init__(self) -> None:
        self.done = 0

    def steps(self, count: int, loss: float, rows_per_second: float) -> None:
        self.done += count


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


def test_the_loop_goes_on_while_a_checkpoint_is_written_up_to_its_bound(
    data: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reporter, waited_for = Steps(), threading.Event()
    waits: list[int] = []
    write, wait = Checkpoints.save, BackgroundSaves.wait

    def slow(self: Checkpoints, *arguments: Any) -> None:
        # Only once the loop waits for it: a loop that waited at once, or never, would
        # be told by the steps it had done, or by the time running out.
        assert waited_for.wait(60)
        write(self, *arguments)

    def noted(self: BackgroundSaves) -> None:
        if self._job is not None and not waited_for.is_set():
            waits.append(reporter.done)
            waited_for.set()
        wait(self)

    monkeypatch.setattr(Checkpoints, "save", slow)
    monkeypatch.setattr(BackgroundSaves, "wait", noted)
    # Due at 7 and 14: the one of step 7 is in flight until the loop has to wait.
    train(small_config(data), tmp_path / "run", reporter)
    assert waits == [14]
    assert read_metrics(tmp_path / "run") == read_metrics(finished)


@pytest.mark.parametrize(
    ("every", "most", "interval", "lost"),
    [
        (1000, None, 1000, 2000),
        (1000, 5000, 1000, 5000),
        (1000, 500, 250, 500),
        (1, 1, 1, 1),
    ],
)
def test_how_the_two_options_of_checkpoints_go_together(
    every: int, most: int | None, interval: int, lost: int
) -> None:
    config = TrainConfig(checkpoint_every=every, max_steps_without_checkpoint=most)
    assert (config.checkpoint_interval, config.most_steps_lost) == (interval, lost)


def test_a_checkpoint_that_cannot_be_written_stops_the_run_with_one_sentence(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any, **options: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(UserError, match=r"last/7 cannot be written: .*No space left"):
        train(small_config(data), tmp_path / "run", Silent())


@pytest.mark.parametrize("devices", [1, 2])
def test_a_run_goes_on_with_another_number_of_devices(
    data: Path, finished: Path, tmp_path: Path, devices: int
) -> None:
    run, config = tmp_path / "run", small_config(data)
    with pytest.raises(Interrupted):
        train(config, run, Silent(), stop_after=20)
    flags = os.environ["XLA_FLAGS"].replace("count=4", f"count={devices}")
    command = [sys.executable, "-m", "pwiser_jax", "train", f"--output={run}"]
    command.append(f"--config={tmp_path / 'config.yaml'}")
    tree = json.loads(json.dumps(config.to_dict()))
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    environment = {**os.environ, "XLA_FLAGS": flags}
    subprocess.run(command, env=environment, capture_output=True, check=True)
    pairs = zip(read_metrics(run), read_metrics(finished), strict=True)
    for got, expected in pairs:
        assert got["step"] == expected["step"]
        if "loss" in expected:
            np.testing.assert_allclose(got["loss"], expected["loss"], rtol=1e-4)
        else:
            np.testing.assert_allclose(got["mean_auc"], expected["mean_auc"], atol=1e-3)


def test_a_damaged_best_checkpoint_is_an_error_that_says_so(
    data: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train(small_config(data, train={"epochs": 1}), run, Silent())
    (best,) = (run / "checkpoints" / "best").iterdir()
    for path in best.rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with (
        pytest.warns(UserWarning, match="is damaged"),
        pytest.raises(UserError, match=r"no checkpoint in .*best can be read"),
    ):
        evaluate_run(run, "valid")


def test_a_damaged_checkpoint_is_told_once_and_not_by_each_of_its_arrays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {f"array {i}": np.arange(100_000.0) + i for i in range(40)}
    checkpoints = Checkpoints(tmp_path, "last")
    checkpoints.save(1, state, {})
    for path in (tmp_path / "checkpoints" / "last" / "1" / "state").rglob("d/*"):
        os.truncate(path, 20)
    told: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", told.append)
    warnings: list[str] = []
    with pytest.raises(UserError, match=r"no checkpoint in .*last can be read"):
        checkpoints.restore(state, warnings.append)
    time.sleep(0.5)  # what is still being read
    checkpoints.close()
    (warning,) = warnings
    assert "last/1 is damaged" in warning
    assert "tensorstore_spec" not in warning
    assert told == []


def test_a_restore_that_fails_ends_when_each_read_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {f"array_{i}": np.zeros(3) for i in range(5)}
    checkpoints = Checkpoints(tmp_path, "last")
    checkpoints.save(1, state, {})
    ended: list[str] = []

    async def read(_: Any, infos: Any, args: Any = None) -> list[np.ndarray]:
        del args
        (info,) = infos
        if info.name == "array_0":
            raise ValueError("damaged")
        await asyncio.sleep(0.1)
        ended.append(info.name)
        return [np.zeros(3)]

    monkeypatch.setattr(ocp.type_handlers.NumpyHandler, "deserialize", read)
    with pytest.raises(UserError, match="can be read"):
        checkpoints.restore(state, lambda _: None)
    checkpoints.close()
    assert sorted(ended) == ["array_1", "array_2", "array_3", "array_4"]


def test_a_trace_changes_no_number(data: Path, finished: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(small_config(data), run, Silent(), profile=True)
    assert list((run / "profile").rglob("*.xplane.pb"))
    assert read_metrics(run) == read_metrics(finished)


@pytest.mark.parametrize("name", ["lr=[0.1]", "run*", "run?", "lr={0.1}", "$x %20"])
def test_the_name_of_a_run_is_no_pattern(tmp_path: Path, name: str) -> None:
    """Neither is nothing read, nor a neighbour that the name would match."""
    states = {name: {"w": np.arange(5.0)}, "runs": {"w": np.ones(5)}}
    for folder, state in states.items():
        checkpoints = Checkpoints(tmp_path / folder, "last")
        checkpoints.save(3, state, {"step": 3})
        checkpoints.close()
    for folder, state in states.items():
        checkpoints = Checkpoints(tmp_path / folder, "last")
        restored = checkpoints.restore(state, pytest.fail)
        checkpoints.close()
        assert restored is not None
        np.testing.assert_array_equal(restored[0]["w"], state["w"])
