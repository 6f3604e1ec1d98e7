"""Memory that one large array has freed is there for the next one."""

import ctypes
import sys

# Parameters of glibc's mallopt.
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Makes large arrays cheap for the rest of the process.

    glibc gives a large block back to the system when it is freed, and takes the next
    one page by page: a step of AliExpress' SharedBottom took up to 1.4 times as long on
    2 CPU cores (experiments.bench_training). From here on it keeps up to 2 GiB. Blocks
    of more than 64 MB that other threads than the first ask for are still taken and
    given back each time. Other C libraries are left as they are.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(TRIM_THRESHOLD, 2**31 - 1)
            mallopt(MMAP_MAX, 0)
