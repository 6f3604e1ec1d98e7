"""Faults around a run give a one-sentence error, and nothing is lost."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import yaml

from pwiser_jax.atomic import LOCK, locked
from pwiser_jax.cli import main
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.errors import UserError
from pwiser_jax.training.devices.several import MOST_STEPS, RECENT, Pace
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.checkpoint import Checkpoints
from pwiser_jax.training.run.metrics import MetricsWriter, read_metrics
from pwiser_jax.training.sweep import train_sweep
from tests.training.helpers import Lines, small_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "synthetic"
    prepare_synthetic(folder, rows=6_000, seed=3)
    return folder


@pytest.fixture(scope="module")
def begun(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was stopped after its second checkpoint."""
    run = tmp_path_factory.mktemp("runs") / "begun"
    for _ in range(2):
        with pytest.raises(Interrupted):
            train(small_config(data), run, stop_after=7)
    return run


def command(data: Path, folder: Path, *options: str) -> list[str]:
    config = json.loads(json.dumps(small_config(data).to_dict()))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    given = ["train", f"--config={folder / 'config.yaml'}", *options]
    return [*given, f"--output={folder / 'run'}"]


def test_a_folder_is_trained_in_by_one_process(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, config = tmp_path / "run", small_config(data)
    run.mkdir()
    with locked(run, "training"):
        assert main(command(data, tmp_path)) == 2
        assert f"process {os.getpid()} on" in capsys.readouterr().err
        with pytest.raises(UserError, match="in use"):
            train_sweep([config], [run])
        assert [path.name for path in run.iterdir()] == [LOCK]
    with pytest.raises(Interrupted):
        train(config, run, stop_after=1)
    assert not (run / LOCK).exists()


def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(
    tmp_path: Path,
) -> None:
    rng = np.random.default_rng(0)
    states = [{"a": rng.random(500, np.float32), "b": np.int32(7 + i)} for i in (0, 1)]
    checkpoints = Checkpoints(tmp_path, "last")
    for step, state in enumerate(states, 1):
        checkpoints.save(step, state, {"step": step, "text": "x" * 40})
    newest = tmp_path / "checkpoints" / "last" / "2"
    files = sorted(p for p in newest.rglob("*") if p.is_file() and p.stat().st_size)
    believed = skipped = 0
    for at in range(60):
        path = files[at % len(files)]
        whole = path.read_bytes()
        bit = int(rng.integers(8 * len(whole)))
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        warnings: list[str] = []
        restored = checkpoints.restore(states[0], warnings.append)
        path.write_bytes(whole)
        assert restored is not None
        state, loop = restored
        # Some bits mean nothing: then the checkpoint is as it was.
        expected = states[loop["step"] - 1]
        jax.tree.map(np.testing.assert_array_equal, state, expected)
        assert loop["text"] == "x" * 40
        assert len(warnings) == (loop["step"] == 1)
        skipped += loop["step"] == 1
        believed += loop["step"] == 2
    checkpoints.close()
    assert skipped > 20


def test_lines_are_written_once_when_a_kill_comes_at_the_end_of_an_epoch(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(data, train={"log_every": 4})
    train(config, tmp_path / "whole")
    lines = read_metrics(tmp_path / "whole")
    end = next(line["step"] for line in lines if line["kind"] == "valid")
    # A checkpoint is due at the very step that ends the epoch, too.
    config = small_config(data, train={"log_every": 4, "checkpoint_every": end})
    saved, save = [], Checkpoints.save

    class Killed(BaseException):
        pass

    def killed(self: Checkpoints, *arguments: Any) -> None:
        if (tmp_path / "run" / "metrics.jsonl").read_text().count("valid"):
            raise Killed
        saved.append(arguments[0])
        save(self, *arguments)

    monkeypatch.setattr(Checkpoints, "save", killed)
    with pytest.raises(Killed):
        train(config, tmp_path / "run")
    monkeypatch.setattr(Checkpoints, "save", save)
    assert saved == []  # its lines were written before any checkpoint of that step
    train(config, tmp_path / "run")
    assert read_metrics(tmp_path / "run") == lines


def test_a_kill_while_metrics_are_cut_back_loses_no_line(
    begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(begun, tmp_path / "run")
    before = read_metrics(tmp_path / "run", timing=True)
    real = Path.write_text

    def killed(self: Path, text: str, *rest: Any, **more: Any) -> int:
        real(self, text[: len(text) // 2], *rest, **more)
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", killed)
    with pytest.raises(KeyboardInterrupt):
        MetricsWriter(tmp_path / "run", 10)
    assert read_metrics(tmp_path / "run", timing=True) == before


@pytest.mark.parametrize(
    ("kibibytes", "expert"),
    # With wide experts many arrays of a checkpoint fail at once.
    [(1, "[8]"), (8, "[8]"), (24, "[8]"), (24, "[512,512]")],
)
def test_a_full_disk_is_one_sentence(
    data: Path, tmp_path: Path, kibibytes: int, expert: str
) -> None:
    """A limit on the size of files, for a disk that is full."""
    # A shell sets it, in blocks of 512 bytes: jax warns where this process forks.
    limited = ["sh", "-c", f'ulimit -f {2 * kibibytes}; exec "$@"', "sh"]
    options = ["--train.checkpoint_every=1000", f"--model.expert={expert}"]
    given = [sys.executable, "-m", "pwiser_jax", *command(data, tmp_path, *options)]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    done = subprocess.run(
        [*limited, *given], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if "epoch" not in line]
    assert len(lines) == 1, done.stderr
    assert "File too large" in lines[0]


def damaged_config(run: Path) -> None:
    (run / "config.yaml").write_text("train: [unclosed")


def config_of_text(run: Path) -> None:
    (run / "config.yaml").write_text("hello")


def deep_config(run: Path) -> None:
    (run / "config.yaml").write_text("[" * 10_000)


def deep_result(run: Path) -> None:
    (run / "result.json").write_text("[" * 100_000)


def without_data(run: Path) -> None:
    shutil.rmtree(run / "data")


def cut_result(run: Path) -> None:
    (run / "result.json").write_text('{"best": {"epo')


def file_for_folder(run: Path) -> None:
    shutil.rmtree(run / "checkpoints")
    (run / "checkpoints").write_text("")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged_config, r"config\.yaml is damaged"),
        (config_of_text, r"config\.yaml is damaged"),
        (deep_config, r"config\.yaml is damaged"),
        (deep_result, r"result\.json is damaged"),
        (without_data, r"data/manifest\.json cannot be read"),
        (cut_result, r"result\.json is damaged"),
        (file_for_folder, r"checkpoints.* cannot be used: "),
    ],
)
def test_a_damaged_run_folder_is_one_sentence(
    data: Path,
    begun: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    damage: Callable[[Path], None],
    said: str,
) -> None:
    shutil.copytree(begun, tmp_path / "run")
    damage(tmp_path / "run")
    with pytest.raises(UserError, match=said):
        train(small_config(data), tmp_path / "run")
    assert main(command(data, tmp_path)) == 2
    errors = capsys.readouterr().err.splitlines()
    assert sum(line.startswith("pwiser: error:") for line in errors) == 1


def test_what_is_kept_of_a_failed_run_is_said_as_it_is(
    data: Path, tmp_path: Path
) -> None:
    wild = small_config(data, optimizer={"learning_rate": 1e30}, model={"dropout": 0})
    with pytest.raises(UserError, match="there is no checkpoint yet"):
        train(wild, tmp_path / "run")


def test_short_epochs_and_useless_probabilities_are_said(
    data: Path, tmp_path: Path
) -> None:
    reporter = Lines()
    config = small_config(
        data, optimizer={"learning_rate": 30.0}, train={"epochs": 1}, data={"path": ""}
    )
    with pytest.raises(UserError, match=r"data\.path is needed"):
        train(config, tmp_path / "none", reporter)
    config = small_config(data, optimizer={"learning_rate": 30.0}, train={"epochs": 1})
    result = train(config, tmp_path / "run", reporter)
    assert any(
        "steps an epoch: the model may learn little" in line for line in reporter.lines
    )
    assert result.warning is not None
    assert "worse than a constant prediction" in result.warning
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written["warning"] == result.warning


def test_the_speed_counts_the_time_of_the_last_calls(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a CPU a call is over when it is dispatched: the last two are read at once."""
    now = 100.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    pace, begun = Pace(), []
    for call in range(RECENT + 2):
        begun.append(now)
        now += 0.5  # a call of one step
        if call:
            assert pace.note(begun[call - 1], 1) >= 0.5
    assert pace.note(begun[-1], 1) == pytest.approx(0.5)
    assert pace.steps == 4
    assert Pace(3).steps == 3
    for _ in range(9):
        pace.note(now - 1e-6, 1)
    assert pace.steps == MOST_STEPS


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_before_the_first_step_ends_the_process(
    data: Path, tmp_path: Path, sent: signal.Signals
) -> None:
    given = [sys.executable, "-m", "pwiser_jax", *command(data, tmp_path)]
    environment = {**os.environ, "JAX_ENABLE_COMPILATION_CACHE": "0"}
    process = subprocess.Popen(
        given, env=environment, stderr=subprocess.PIPE, text=True
    )
    while not (tmp_path / "run" / LOCK).exists():
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(sent)
    sent_at = time.monotonic()
    _, error = process.communicate(timeout=60)
    assert time.monotonic() - sent_at < 2
    assert process.returncode == 128 + sent
    assert error.strip().splitlines()[-1] == "pwiser: interrupted"
    assert "Traceback" not in error
