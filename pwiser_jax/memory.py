"""Memory that one large array has freed is there for the next one."""

import ctypes
import sys

# Parameters of glibc's mallopt.
TRIM_THRESHOLD, MMAP_MAX = -1, -4


def keep_freed_memory() -> None:
    """Makes large arrays cheap for the rest of the process.

    glibc gives a large block back to the system when it is freed, and takes the next
    one page by page: a step of AliExpress' SharedBottom took 1.4 times as long on 2 CPU
    cores, that of its MMoE as long (experiments.bench_training). From here on it keeps
    up to 2 GiB. Other C libraries are left as they are.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(TRIM_THRESHOLD, 2**31 - 1)
            mallopt(MMAP_MAX, 0)
