"""Runs killed at random moments and resumed equal uninterrupted runs."""

import json
import os
import random
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from pwiser_jax.config import Config
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from tests.training.helpers import small_config

# Of a run of this configuration, at the least: a kill after so many steps on the file
# system comes before the run's end.
STEPS = 300
LONGEST_DELAY = 0.03


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    data = tmp_path_factory.mktemp("prepared") / "synthetic"
    prepare_synthetic(data, rows=6_000, seed=3)
    return small_config(
        data,
        model={"name": "shared_bottom"},
        data={"min_conversions": 4},
        loss={"bank": 16},
        train={
            "log_every": 3,
            "checkpoint_every": 2,
            "max_steps_without_checkpoint": 4,
        },
    )


@pytest.fixture(scope="module")
def unstopped(config: Config, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "unstopped"
    train(config, run, Silent())
    return run


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which processes share what they compile."""
    return {
        **os.environ,
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def killed_and_resumed(
    seed: int, config: Config, unstopped: Path, run: Path, env: dict[str, str]
) -> None:
    draw = random.Random(seed)
    at, delay = draw.randrange(1, STEPS), draw.choice([0, draw.random()])
    file = run.with_name("config.yaml")
    file.write_text(yaml.safe_dump(json.loads(json.dumps(config.to_dict()))))
    command = [sys.executable, "-m", "tests.training.killed_run", file, run]
    command += [str(at), str(LONGEST_DELAY * delay)]
    found = subprocess.run(command, capture_output=True, text=True, env=env)
    assert found.returncode == -signal.SIGKILL, found.stderr
    assert not (run / "result.json").exists()
    train(config, run, Silent())
    for name in ("result.json", "config.yaml"):
        assert (run / name).read_bytes() == (unstopped / name).read_bytes()
    assert read_metrics(run) == read_metrics(unstopped)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_run_ends_as_an_unstopped_one(
    seed: int,
    config: Config,
    unstopped: Path,
    tmp_path: Path,
    compiled: dict[str, str],
) -> None:
    killed_and_resumed(seed, config, unstopped, tmp_path / "run", compiled)


@pytest.mark.long
@pytest.mark.parametrize("seed", range(20))
def test_twenty_killed_runs_end_as_an_unstopped_one(
    seed: int,
    config: Config,
    unstopped: Path,
    tmp_path: Path,
    compiled: dict[str, str],
) -> None:
    killed_and_resumed(seed, config, unstopped, tmp_path / "run", compiled)
