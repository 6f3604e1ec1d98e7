"""The process as a host of the devices' work."""

import jax

from pwiser_jax.memory import keep_freed_memory


def prepare_host() -> None:
    """Makes steps on a CPU fast for the rest of the process. Comes before jax is used.

    Programs for a single CPU device run in the thread that calls them. In a thread of
    XLA's own each call would take its temporary buffer from the system anew: a step of
    AliExpress' MMoE, with 203 MB of it, took 1.3 to 1.9 times as long on 2 CPU cores
    (experiments.bench_training). Nothing is lost by it: what reads data has threads of
    its own, and two programs at once would share the same cores.
    """
    keep_freed_memory()
    jax.config.update("jax_cpu_enable_async_dispatch", False)
