"""Freed memory is reused, and not returned to the system."""

import platform
import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from pwiser_jax.host import keep_freed_memory

def new_pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(50 << 20, np.uint8)[::4096] = 1
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

new_pages()
usual = new_pages()
keep_freed_memory()
new_pages()
print(usual, new_pages())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_large_arrays_take_pages_that_others_have_freed():
    run = [sys.executable, "-c", SCRIPT]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    usual, kept = map(int, done.stdout.split())
    assert kept < 0.1 * usual


RETURNS = """
from pathlib import Path
import numpy as np
from pwiser_jax.host import keep_freed_memory, return_freed_memory

def resident():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))

keep_freed_memory()
arrays = [np.ones(1 << 20) for _ in range(50)]
last = np.ones(1 << 20)  # above them, so that freeing them leaves a gap
before = resident()
del arrays
kept = resident()
return_freed_memory()
print(before, kept, resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc is told")
def test_freed_memory_is_returned_on_demand():
    run = [sys.executable, "-c", RETURNS]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    before, kept, after = map(int, done.stdout.split())
    assert before - kept < 20_000  # of 400,000 KiB
    assert before - after > 350_000


COMPILES = """
import jax
from pwiser_jax import host

host.LONG = 0.0
host.prepare_host()
host.prepare_host()
trims = []
host.return_freed_memory = lambda: trims.append(1)
jax.jit(lambda x: x + 1)(1.0)
print(len(trims))
host.LONG = 1e9
jax.jit(lambda x: x + 2)(1.0)
print(len(trims))
"""


def test_freed_memory_is_returned_once_a_program_is_lowered_and_compiled():
    run = [sys.executable, "-c", COMPILES]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "2"]
