"""Two processes of two devices each, on loopback, equal one device."""

import json
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.checkpoint import Checkpoints
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from pwiser_jax.training.state import state_template
from tests.training.processes import BOUND, ended, free_port, start
from tests.training.processes_worker import worker_config

TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "synthetic"
    # So many rows that an AUC does not turn on the order of two of them.
    prepare_synthetic(folder, rows=20_000, seed=3)
    Prepared(folder).load("train")  # so that the cache stands
    return folder


def checkpoint(run: Path, data: Path) -> Any:
    series = Checkpoints(run, "last")
    template = state_template(worker_config(data), Prepared(data).schema)
    found = series.restore(template, pytest.fail)
    series.close()
    assert found is not None
    return found[0]


def test_two_processes_of_two_devices_equal_one_of_one(
    data: Path, tmp_path: Path
) -> None:
    worker, port = str(TESTS / "processes_worker.py"), free_port()
    one, two = str(tmp_path / "one"), str(tmp_path / "two")
    started = [start(1, worker, str(data), one)]
    for index in range(2):
        cluster = (f"127.0.0.1:{port}", "2", str(index))
        started.append(start(2, worker, str(data), two, *cluster))
    for process in started:
        code, said = ended(process)
        assert code == 0, said

    # After one step Adam's first moment is a tenth of the gradient.
    expected, got = (checkpoint(Path(f"{run}-1"), data) for run in (one, two))
    optimizers = (expected.optimizer, got.optimizer)
    moments = [
        jax.tree.leaves((o.others[1].mu, o.tables["embedding"].mu)) for o in optimizers
    ]
    largest = max(float(np.abs(leaf).max()) for leaf in moments[0])
    assert largest > 0
    for a, b in zip(*moments, strict=True):
        np.testing.assert_allclose(b, a, rtol=0, atol=1e-5 * largest)
    for a, b in zip(
        *(jax.tree.leaves(s.batch_stats) for s in (expected, got)), strict=True
    ):
        np.testing.assert_allclose(b, a, rtol=1e-5, atol=1e-6)

    lines = [read_metrics(Path(run)) for run in (one, two)]
    losses = [[x["loss"] for x in each if x["kind"] == "train"] for each in lines]
    assert len(losses[0]) == len(losses[1]) > 30
    np.testing.assert_allclose(losses[1][0], losses[0][0], rtol=1e-5)
    np.testing.assert_allclose(losses[1][:20], losses[0][:20], rtol=1e-4)
    # Of the first epoch: over more steps the rounding grows, by 3e-3 for some seeds.
    aucs = [next(x["auc"] for x in each if x["kind"] == "valid") for each in lines]
    for task, auc in aucs[0].items():
        assert abs(aucs[1][task] - auc) < 1e-3


def both_at_work(data: Path, run: Path, given: Path) -> list[subprocess.Popen[str]]:
    """Two processes of a long run, which has written ten lines."""
    port, config = free_port(), worker_config(data)
    config = replace(config, train=replace(config.train, epochs=500, patience=500))
    given.write_text(json.dumps(config.to_dict()))  # JSON is YAML too
    both = [
        start(
            1,
            *("-m", "pwiser_jax", "train", "--config", str(given)),
            *("--output", str(run), "--coordinator", f"127.0.0.1:{port}"),
            *("--num-processes", "2", "--process-id", str(index)),
        )
        for index in range(2)
    ]
    until = time.monotonic() + BOUND
    while not (run / "metrics.jsonl").exists() or len(read_metrics(run)) < 10:
        assert time.monotonic() < until, "the run has not come to ten lines"
        time.sleep(0.1)
    return both


@pytest.mark.long
def test_a_signal_to_one_process_saves_and_ends_both(
    data: Path, tmp_path: Path
) -> None:
    """And one process alone goes on where the two stopped."""
    run, given = tmp_path / "run", tmp_path / "config.yaml"
    both = both_at_work(data, run, given)
    both[1].send_signal(signal.SIGTERM)
    for process in both:
        code, said = ended(process)
        assert code == 128 + signal.SIGTERM, said
        assert "with a checkpoint" in said

    done = max(line["step"] for line in read_metrics(run))
    config = worker_config(data)
    config = replace(config, train=replace(config.train, epochs=500, patience=500))
    with pytest.raises(Interrupted):
        train(config, run, Silent(), stop_after=done + 7)
    assert max(line["step"] for line in read_metrics(run)) > done


@pytest.mark.long
@pytest.mark.parametrize("killed", [0, 1])
def test_where_a_process_is_killed_the_other_says_so_and_ends(
    data: Path, tmp_path: Path, killed: int
) -> None:
    both = both_at_work(data, tmp_path / "run", tmp_path / "config.yaml")
    both[killed].kill()
    both[killed].communicate()
    code, said = ended(both[1 - killed])
    assert code == 1, said
    assert said.startswith("pwiser: error: another process was lost"), said
    assert both[killed].returncode == -signal.SIGKILL


@pytest.mark.long
def test_two_processes_start_warm_as_one_does(data: Path, tmp_path: Path) -> None:
    config = worker_config(data, shard_tables=True)
    config = replace(config, train=replace(config.train, epochs=1))
    before, given = tmp_path / "before", tmp_path / "config.yaml"
    train(config, before, Silent())
    given.write_text(json.dumps(replace(config, warm_start=str(before)).to_dict()))
    command = "-m", "pwiser_jax", "train", "--config", str(given)
    port, one, two = free_port(), tmp_path / "one", tmp_path / "two"
    cluster = "--coordinator", f"127.0.0.1:{port}", "--num-processes", "2"
    started = [start(1, *command, "--output", str(one))]
    for index in range(2):
        mine = "--output", str(two), *cluster, "--process-id", str(index)
        started.append(start(1, *command, *mine))
    for process in started:
        code, said = ended(process)
        assert code == 0, said
    cold, expected, got = (
        [line["loss"] for line in read_metrics(run) if line["kind"] == "train"]
        for run in (before, one, two)
    )
    np.testing.assert_allclose(got[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(got[:20], expected[:20], rtol=1e-4)
    assert got[0] < cold[0]
