"""A program on a CPU reuses the buffer of the previous call."""

import platform
import resource
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from pwiser_jax import host
from pwiser_jax.data.datasets.synthetic import prepare_synthetic

SCRIPT = """
import ctypes
import resource
import sys

ctypes.CDLL(None).prctl(41, 1, 0, 0, 0)  # PR_SET_THP_DISABLE: no huge pages
{before}
import jax
import jax.numpy as jnp

@jax.jit
def program(x):  # with a buffer of 100 MB
    return jnp.sum(jnp.outer(x, x) @ x[:, None])

def new_pages(x):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    program(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

x = jnp.ones(5_000)
# A small array that has come to lie in freed memory may cost one call its place there.
print("pages", min(new_pages(x) for _ in range(5)))
"""
MEMORY = "from pwiser_jax.host import keep_freed_memory; keep_freed_memory()"
HOST = "from pwiser_jax.host import prepare_host; prepare_host()"
TRAIN = "from pwiser_jax.cli import main; assert main(sys.argv[1:]) == 0"


def new_pages(before: str, *arguments: str) -> int:
    run = [sys.executable, "-c", SCRIPT.format(before=before), *arguments]
    environment = {"JAX_PLATFORMS": "cpu"}  # and a single device
    done = subprocess.run(
        run, env=environment, capture_output=True, text=True, check=True
    )
    return int(done.stdout.split("pages")[-1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_a_program_takes_pages_that_its_last_call_has_freed(tmp_path: Path) -> None:
    usual = new_pages(MEMORY)
    assert usual * resource.getpagesize() > 20_000 * 4096
    assert new_pages(HOST) < 0.1 * usual
    # As a command it comes before anything else asks jax for its devices.
    prepare_synthetic(tmp_path / "data", rows=6_000, users=300, items=100)
    arguments = [f"--data.path={tmp_path / 'data'}", f"--output={tmp_path / 'run'}"]
    arguments += ["--train.epochs=1", "--data.batch_size=512"]
    assert new_pages(TRAIN, "train", *arguments) < 0.1 * usual


def test_programs_are_freed_where_they_are_many(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    maps = tmp_path / "maps"
    maps.write_text("a map\n" * 9)
    monkeypatch.setattr(host, "MAPS", maps)
    compiled: list[int] = []

    @jax.jit
    def program(x: jax.Array) -> jax.Array:
        compiled.append(1)
        return x + 1

    program(jnp.zeros(3))
    host.free_programs()
    program(jnp.zeros(3))
    assert len(compiled) == 1
    monkeypatch.setattr(host, "MOST_MAPS", 8)
    host.free_programs()
    program(jnp.zeros(3))
    assert len(compiled) == 2
