"""The compilation cache of commands: same numbers, fewer compilations, no failures."""

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pwiser_jax.cli import main

SMALL = [
    "--model.name=shared_bottom",
    "--model.embedding_dim=4",
    "--model.bottom=[8]",
    "--model.tower=[4]",
    "--data.batch_size=1024",
    "--train.epochs=1",
    "--train.log_every=2",
]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "funnel"
    assert main(["prepare", "synthetic", "--rows=8000", f"--output={folder}"]) == 0
    return folder


def command(data: Path, run: Path, cache: str) -> tuple[list[str], dict[str, str]]:
    """A training command and its environment."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"PWISER_COMPILATION_CACHE": cache, "JAX_PLATFORMS": "cpu"}
    words = [sys.executable, "-m", "pwiser_jax", "train", f"--data.path={data}"]
    return [*words, f"--output={run}", *SMALL], environment


def started(data: Path, run: Path, cache: Path) -> subprocess.Popen[str]:
    words, environment = command(data, run, str(cache))
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    return subprocess.Popen(words, env=environment, text=True, **pipes)


def measures(run: Path) -> list[dict]:
    """The lines of metrics.jsonl that do not depend on time."""
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["kind"] != "timing"]


def train(
    data: Path, run: Path, cache: str, prefix: Sequence[str] = ()
) -> tuple[list[dict], str]:
    """The measures of a run, and what was printed."""
    words, environment = command(data, run, cache)
    done = subprocess.run(
        [*prefix, *words], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return measures(run), done.stderr


def entries(cache: Path) -> list[Path]:
    return sorted(path for path in cache.rglob("*") if path.is_file())


def test_off_cold_warm_and_damaged_give_the_same_numbers(data: Path, tmp_path: Path):
    cache = tmp_path / "compiled"
    off, _ = train(data, tmp_path / "off", "off")
    assert not cache.exists()
    cold, _ = train(data, tmp_path / "cold", str(cache))
    compiled = entries(cache)
    assert len(compiled) >= 3  # initial state, training, evaluation
    warm, warned = train(data, tmp_path / "warm", str(cache))
    assert entries(cache) == compiled
    assert "warning: an entry of the compilation cache" not in warned

    sizes = [path.stat().st_size for path in compiled]
    for path in compiled:
        os.truncate(path, path.stat().st_size // 2)
    damaged, warned = train(data, tmp_path / "damaged", str(cache))
    assert warned.count("warning: an entry of the compilation cache") == 1
    # Damaged entries were replaced.
    assert [path.stat().st_size for path in entries(cache)] == pytest.approx(
        sizes, rel=0.1
    )
    assert off == cold == warm == damaged


def test_a_folder_that_cannot_be_written_is_one_warning(data: Path, tmp_path: Path):
    off, _ = train(data, tmp_path / "off", "off")
    (tmp_path / "file").write_text("")
    lines, warned = train(data, tmp_path / "run", str(tmp_path / "file"))
    assert lines == off
    assert warned.count("compilation cache") == 1


@pytest.mark.long
def test_a_full_disk_is_one_warning(data: Path, tmp_path: Path):
    off, _ = train(data, tmp_path / "off", "off")
    # No file of more than 128 KiB: the programs are larger, the run's files are not.
    limit = ["bash", "-c", 'ulimit -f 128; exec "$@"', "bash"]
    cache = tmp_path / "compiled"
    lines, warned = train(data, tmp_path / "run", str(cache), limit)
    assert lines == off
    assert warned.count("compilation cache") == 1


@pytest.mark.long
def test_a_folder_deleted_while_training_changes_nothing(data: Path, tmp_path: Path):
    off, _ = train(data, tmp_path / "off", "off")
    cache, run = tmp_path / "compiled", tmp_path / "run"
    with started(data, run, cache) as process:
        assert process.stderr is not None
        while process.poll() is None and not (cache.is_dir() and entries(cache)):
            time.sleep(0.01)
        shutil.rmtree(cache, ignore_errors=True)
        warned = process.stderr.read()
    assert process.returncode == 0, warned
    assert measures(run) == off
    assert warned.count("compilation cache") <= 1


@pytest.mark.long
def test_two_processes_share_a_folder(data: Path, tmp_path: Path):
    off, _ = train(data, tmp_path / "off", "off")
    cache, runs = tmp_path / "compiled", [tmp_path / "one", tmp_path / "two"]
    processes = [started(data, run, cache) for run in runs]
    for process, run in zip(processes, runs, strict=True):
        _, warned = process.communicate()
        assert process.returncode == 0, warned
        assert measures(run) == off
        assert warned.count("compilation cache") <= 1
    assert train(data, tmp_path / "warm", str(cache))[0] == off


def test_importing_and_calling_leave_jax_as_it_is():
    code = (
        "import jax; before = jax.config.jax_compilation_cache_dir\n"
        "import pwiser_jax, pwiser_jax.losses, pwiser_jax.training.loop\n"
        "assert jax.config.jax_compilation_cache_dir == before\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_cached_entries_of_other_programs_survive(tmp_path: Path):
    """Only the entries of the damaged program are removed."""
    from pwiser_jax.host import _cache_warnings

    for name in ("jit_step-1-cache", "jit_steps-1-cache"):
        (tmp_path / name).write_text("x")
    show = _cache_warnings(lambda *rest: None, tmp_path)
    reading = "Error reading persistent compilation cache entry for 'jit_step': E: bad"
    show(reading, UserWarning, "file", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["jit_steps-1-cache"]
    shutil.rmtree(tmp_path)
