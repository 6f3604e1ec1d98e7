"""Runs a command of the experiments and returns its exit code."""

import sys
from collections.abc import Callable

from pwiser_jax.errors import UserError
from pwiser_jax.host import prepare_host, use_compilation_cache
from pwiser_jax.training.devices.signals import Interrupted


def run_command(name: str, work: Callable[[], None]) -> int:
    """Runs `work`; returns 0, 2 for a user's error, or the exit code of a signal."""
    prepare_host()
    use_compilation_cache()
    try:
        work()
    except UserError as error:
        print(f"{name}: error: {error}", file=sys.stderr)
        return 2
    except (KeyboardInterrupt, Interrupted) as stop:
        print("interrupted; run the same command to resume", file=sys.stderr)
        return stop.exit_code if isinstance(stop, Interrupted) else 130
    return 0
