"""The host process: its memory allocator and the thread that runs CPU programs."""

import ctypes
import sys

# Parameters of glibc's mallopt.
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Makes large arrays cheap for the rest of the process.

    glibc gives a large block back to the system when it is freed, and takes the next
    one page by page: a step of AliExpress' SharedBottom took up to 1.4 times as long on
    2 CPU cores (experiments.bench.training). From here on it keeps up to 2 GiB. Blocks
    of more than 64 MB that other threads than the first ask for are still taken and
    given back each time. Other C libraries are left as they are.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(TRIM_THRESHOLD, 2**31 - 1)
            mallopt(MMAP_MAX, 0)


def prepare_host() -> None:
    """Makes steps on a CPU fast for the rest of the process. Comes before jax is used.

    Programs for a single CPU device run in the thread that calls them. In a thread of
    XLA's own each call would take its temporary buffer from the system anew: a step of
    AliExpress' MMoE, with 203 MB of it, took 1.3 to 1.9 times as long on 2 CPU cores
    (experiments.bench.training). Nothing is lost by it: what reads data has threads of
    its own, and two programs at once would share the same cores.
    """
    import jax

    keep_freed_memory()
    jax.config.update("jax_cpu_enable_async_dispatch", False)
