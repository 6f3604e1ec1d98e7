"""The sbatch files of the documentation, run by bash with stand-ins for Slurm.

`srun` starts its command here, `scontrol` names this machine and notes what it is to
requeue. Ray, its two nodes and the commands are real.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.inference.small import TINY, prepare, rows
from tests.training.clusters import WAIT
from tests.training.processes import free_port

DOCS = Path(__file__).parents[2] / "docs"
LONG = ("--train.epochs=60", "--train.patience=60", "--train.checkpoint_every=5")
STAND_INS = {
    "srun": """
        while [[ "$1" == --* ]]; do shift; done
        exec "$@"
    """,
    "scontrol": """
        if [ "$1" = show ]; then echo 127.0.0.1; else echo "$@" >> scontrol.txt; fi
    """,
    "ray": """
        if [ "$1" = start ]; then
            set -- "$@" --num-cpus=1 --object-store-memory=100000000
            set -- "$@" --node-ip-address=127.0.0.1
            if [ "$2" = --head ]; then set -- "$@" --include-dashboard=false; fi
        fi
        exec {python} -m ray.scripts.scripts "$@"
    """,
    "pwiser": """
        exec {python} -m pwiser_jax "$@"
    """,
    # Ray's nodes need some seconds here too, fewer than on a cluster.
    "sleep": """
        exec {sleep} 8
    """,
}


def script(page: str, first: str) -> str:
    """The sbatch file of a page, from its first line to its exit."""
    lines = (DOCS / page).read_text().splitlines()
    at = next(k for k, line in enumerate(lines) if line.strip() == first)
    end = next(k for k in range(at, len(lines)) if lines[k].strip() == "exit $code")
    return "\n".join(line.strip() for line in lines[at - 1 : end + 1])


def submit(text: str, folder: Path, **variables: str) -> subprocess.Popen[bytes]:
    stand_ins = folder / "bin"
    stand_ins.mkdir(exist_ok=True)
    for name, body in STAND_INS.items():
        body = body.replace("{python}", sys.executable)
        body = body.replace("{sleep}", str(shutil.which("sleep")))
        (stand_ins / name).write_text(f"#!/usr/bin/env bash\n{body}")
        (stand_ins / name).chmod(0o755)
    path = f"{stand_ins}{os.pathsep}{os.environ['PATH']}"
    slurm = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "here", "SLURM_NNODES": "2"}
    home = {"HOME": str(folder), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with (folder / "printed.txt").open("ab") as printed:
        return subprocess.Popen(
            ["bash", "-c", text],
            cwd=folder,
            env=os.environ | slurm | home | variables | {"PATH": path},
            stdout=printed,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def ended(job: subprocess.Popen[bytes]) -> int:
    """The exit code; what the job left running ends with it, as on Slurm."""
    try:
        return job.wait(WAIT)
    finally:
        _signal_all(job, signal.SIGTERM)
        time.sleep(3)
        _signal_all(job, signal.SIGKILL)


def _signal_all(job: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError):
        os.killpg(job.pid, number)


def wait_for_checkpoint(run: Path, job: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + WAIT
    while not list(run.glob("**/checkpoints/last/[0-9]*")):
        assert job.poll() is None, (run.parent / "printed.txt").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    data = prepare(tmp_path, rows())
    (tmp_path / "config.yaml").write_text(f"data:\n  path: {data}\n")
    return tmp_path


@pytest.mark.long
def test_a_train_job_is_requeued_and_goes_on(folder: Path) -> None:
    run = folder / "run"
    options = " ".join((*TINY, *LONG))
    text = script(
        "running.md", "#SBATCH --signal=B:TERM@120 --requeue --open-mode=append"
    )
    text = text.replace(
        "--config CONFIG --output RUN", f"--config config.yaml --output {run} {options}"
    )
    job = submit(text, folder)
    wait_for_checkpoint(run, job)
    job.terminate()
    assert ended(job) == 143, (folder / "printed.txt").read_text()
    assert (folder / "scontrol.txt").read_text() == "requeue 7\n"
    assert ended(submit(text, folder)) == 0
    assert (run / "result.json").is_file()


@pytest.mark.long
def test_a_study_on_nodes_is_requeued_and_goes_on(folder: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install '.[cluster]'")
    study = folder / "study"
    options = " ".join((*TINY, *LONG, "--part-size=1"))
    text = script(
        "cluster.md",
        "#SBATCH --nodes=4 --ntasks-per-node=1 --gpus-per-node=8 --cpus-per-task=64",
    )
    text = text.replace("6379", str(free_port()))
    text = text.replace("--seeds 20", f"--seeds 1 --loss.ranking=pwiser {options}")
    given = {
        "CONFIG": "config.yaml",
        "OVER": "loss.lambdas=0.1,0.3",
        "OUTPUT": str(study),
    }
    job = submit(text, folder, **given)
    wait_for_checkpoint(study, job)
    job.terminate()
    assert ended(job) == 143, (folder / "printed.txt").read_text()
    assert (folder / "scontrol.txt").read_text() == "requeue 7\n"
    assert ended(submit(text, folder, **given)) == 0, (
        folder / "printed.txt"
    ).read_text()
    assert len(list(study.glob("*/result.json"))) == 2
