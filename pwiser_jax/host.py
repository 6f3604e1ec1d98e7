"""The host process: its memory allocator and the thread that runs CPU programs."""

import ctypes
import functools
import gc
import hashlib
import os
import platform
import re
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Each compiled program takes memory maps. Linux gives a process 65,530.
MOST_MAPS = 20_000
MAPS = Path("/proc/self/maps")

# Parameters of glibc's mallopt.
TRIM_THRESHOLD, MMAP_MAX = -1, -4

# What jax reports when a program is lowered, and when it is compiled.
COMPILE_EVENTS = (
    "/jax/core/compile/jaxpr_to_mlir_module_duration",
    "/jax/core/compile/backend_compile_duration",
)
LONG = 0.1
"""Seconds: what took less has freed little."""

# jax's warnings about its persistent cache.
CACHE_ERROR = re.compile(
    r"Error (?P<action>reading|writing) persistent compilation cache entry for "
    r"'(?P<program>.*?)': (?P<reason>.*)",
    re.DOTALL,
)


def keep_freed_memory() -> None:
    """Makes large arrays cheap for the rest of the process.

    glibc returns a large block to the system when it is freed, and page-faults in the
    next one: a step of AliExpress' SharedBottom took up to 1.4 times as long on 2 CPU
    cores (experiments.bench.training). After this call it keeps up to 2 GiB. Blocks
    above 64 MB in other threads than the first are still returned each time. Other C
    libraries are not changed.
    """
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(TRIM_THRESHOLD, 2**31 - 1)
            mallopt(MMAP_MAX, 0)


def return_freed_memory() -> None:
    """Returns what glibc has kept to the system, once."""
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def free_programs() -> None:
    """Frees jax's compiled programs where they are so many that the next may crash.

    With no memory map left, the compiler ends the process. For work that trains many
    shapes in one process; a program that is needed again is compiled again, or read
    from the compilation cache.
    """
    if MAPS.exists() and MAPS.read_bytes().count(b"\n") > MOST_MAPS:
        import jax

        jax.clear_caches()
        gc.collect()


@functools.cache
def return_memory_of_compiling() -> None:
    """Returns freed memory whenever jax has lowered or compiled a large program.

    The compiler's threads would keep what they have freed, and the arrays of the first
    step would come on top of it.
    """
    from jax import monitoring

    def trim(event: str, duration_secs: float, **_: Any) -> None:
        if event in COMPILE_EVENTS and duration_secs > LONG:
            return_freed_memory()

    monitoring.register_event_duration_secs_listener(trim)


def prepare_host() -> None:
    """Makes steps on a CPU fast for the rest of the process. Comes before jax is used.

    Programs for a single CPU device run in the thread that calls them. In one of XLA's
    threads each call would allocate its temporary buffer anew: a step of AliExpress'
    MMoE, with 203 MB of it, took 1.3 to 1.9 times as long on 2 CPU cores
    (experiments.bench.training). It costs nothing: data is read in other threads, and
    two concurrent programs would share the same cores.

    Freed memory is kept for the steps (`keep_freed_memory`), but not what compiling has
    freed (`return_memory_of_compiling`).
    """
    import jax

    keep_freed_memory()
    return_memory_of_compiling()
    jax.config.update("jax_cpu_enable_async_dispatch", False)


def use_compilation_cache() -> Path | None:
    """Keeps compiled programs on disk, so that later processes need not compile them.

    For commands only: importing the package, or calling `train` from Python, leaves
    jax's configuration as it is. `PWISER_COMPILATION_CACHE` names the folder, by
    default `~/.cache/pwiser_jax/compiled` (`XDG_CACHE_HOME`); "off" disables the cache.
    If `JAX_COMPILATION_CACHE_DIR` is set, jax's setting is used.

    The folder's name holds the versions, flags and CPU features that a program depends
    on: different machines that share a home folder do not share programs.
    Numbers do not depend on it. A damaged entry is removed and compiled again, with one
    warning; so is a folder that cannot be written.

    Returns:
        The folder, or None if this function sets no cache.
    """
    choice = os.environ.get("PWISER_COMPILATION_CACHE", "")
    if choice == "off" or os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return None
    import jax

    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    base = Path(choice) if choice else Path(cache) / "pwiser_jax" / "compiled"
    folder = base / _program_fingerprint()
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    warnings.showwarning = _cache_warnings(warnings.showwarning, folder)
    return folder


def _program_fingerprint() -> str:
    """What compiled programs depend on, beside the computation itself."""
    import jax
    import jaxlib.version

    features = platform.processor()
    if sys.platform == "linux":
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        matches = [x for x in lines if x.lower().startswith(("flags", "features"))]
        features = " ".join(sorted(matches[0].split())) if matches else features
    parts = (
        jax.__version__,
        jaxlib.version.__version__,
        platform.machine(),
        features,
        os.environ.get("XLA_FLAGS", ""),
    )
    digest = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]
    return f"jax-{jax.__version__}-{platform.machine()}-{digest}"


def _cache_warnings(default: Callable[..., None], folder: Path) -> Callable[..., None]:
    """Shows jax's warnings about cache entries as one sentence, and only once."""
    shown = False

    def show(message: Any, category: type[Warning], *rest: Any, **more: Any) -> None:
        nonlocal shown
        error = CACHE_ERROR.match(str(message))
        if not error:
            default(message, category, *rest, **more)
            return
        if error["action"] == "reading":  # jax does not replace an entry
            for entry in folder.iterdir() if folder.is_dir() else ():
                if entry.name.startswith(f"{error['program']}-"):
                    entry.unlink(missing_ok=True)
        if not shown:
            shown = True
            verb = {"reading": "read", "writing": "written"}[error["action"]]
            print(
                f"pwiser: warning: an entry of the compilation cache {folder} cannot "
                f"be {verb} ({_first_line(error['reason'])}); its program is compiled",
                file=sys.stderr,
            )

    return show


def _first_line(text: str) -> str:
    return text.splitlines()[0][:200]
