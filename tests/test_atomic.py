"""A locked folder has one holder, until that ends."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pwiser_jax.atomic import LOCK, locked
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
