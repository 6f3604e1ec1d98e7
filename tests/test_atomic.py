"""A locked folder has one holder, until that ends."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pwiser_jax.atomic import LOCK, LOST, InUse, locked
from pwiser_jax.errors import UserError

HOLD = """
import sys, time
from pathlib import Path
from pwiser_jax.atomic import locked
with locked(Path(sys.argv[1]), "training"):
    print("locked", flush=True)
    time.sleep(600)
"""


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        said = rf"in use: process {holder.pid} on .+ is training there"
        with pytest.raises(UserError, match=said), locked(tmp_path, "training"):
            pass
        holder.send_signal(signal.SIGKILL)
    assert (tmp_path / LOCK).exists()
    with locked(tmp_path, "training"):
        assert f"process {os.getpid()} " in (tmp_path / LOCK).read_text()
    assert not (tmp_path / LOCK).exists()


def test_locks_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    with locked(tmp_path, "training"):
        with pytest.raises(UserError, match="in use"), locked(tmp_path, "preparing"):
            pass
        assert (tmp_path / LOCK).exists()


def test_another_hosts_lock_holds_while_it_is_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the file system does not share flock."""
    file = tmp_path / LOCK
    file.write_text("process 7 on elsewhere\n")
    with (
        pytest.raises(InUse, match=r"process 7 on elsewhere is training there"),
        locked(tmp_path, "training"),
    ):
        pass
    monkeypatch.setattr("pwiser_jax.atomic.FREE", 0.0)  # it is silent for longer
    with locked(tmp_path, "training"):
        assert file.read_text() == f"process {os.getpid()} on {socket.gethostname()}\n"
    assert not list(tmp_path.iterdir())


def test_a_holder_renews_its_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pwiser_jax.atomic.BEAT", 0.01)
    file = tmp_path / LOCK
    with locked(tmp_path, "training"):
        os.utime(file, (0, 0))
        until = time.monotonic() + 30
        while file.stat().st_mtime == 0:
            assert time.monotonic() < until
            time.sleep(0.01)


ELSEWHERE = """
import socket
from pwiser_jax import atomic
atomic.BEAT, socket.gethostname = 0.01, lambda: "elsewhere"
"""


def test_a_silent_hosts_lock_is_taken_over_and_its_process_ends(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", ELSEWHERE + HOLD, str(tmp_path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "locked\n"
    try:
        holder.send_signal(signal.SIGSTOP)
        with pytest.raises(InUse), locked(tmp_path, "training"):
            pass
        long_ago = time.time() - 2 * LOST
        os.utime(tmp_path / LOCK, (long_ago, long_ago))
        with locked(tmp_path, "training"):
            holder.send_signal(signal.SIGCONT)
            _, said = holder.communicate(timeout=60)
            assert (tmp_path / LOCK).read_text().startswith(f"process {os.getpid()}")
    finally:
        holder.kill()
        holder.communicate()
    assert holder.returncode == 1
    assert f"process {os.getpid()} on" in said
    assert "has taken the folder over" in said
