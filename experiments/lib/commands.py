"""Runs a command of the experiments and returns its exit code."""

import sys
from collections.abc import Callable

from pwiser_jax.errors import UserError
from pwiser_jax.host import prepare_host, use_compilation_cache
from pwiser_jax.training.devices.signals import Interrupted


def prepare_jax() -> None:
    """Sets jax up for the rest of the process. Comes before jax is used."""
    prepare_host()
    use_compilation_cache()


def run_command(name: str, work: Callable[[], None], *, computes: bool = True) -> int:
    """Runs `work`; returns 0, 2 for a user's error, or the exit code of a signal.

    Args:
        name: of the command.
        work: what it does.
        computes: whether it uses jax.
    """
    if computes:
        prepare_jax()
    try:
        work()
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Interrupted) as stop:
        print("interrupted; run the same command to resume", file=sys.stderr)
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    return 0
