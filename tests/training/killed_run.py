"""A run that kills itself at a chosen moment: python -m tests.training.killed_run.

Arguments: CONFIG RUN AT DELAY.

The moment is so many seconds (DELAY) after the run's AT-th step on the file system, in
its own folder: opening, making, renaming or removing something there. So moments are
spread over everything that a run writes, checkpoints above all, and over what it does
between. With AT 0 nobody is killed, and the number of those steps is printed.
"""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

EVENTS = {"open", "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.scandir"}


def main(config: str, run: str, at: str, delay: str) -> None:
    seen = 0

    def die() -> None:
        time.sleep(float(delay))
        os.kill(os.getpid(), signal.SIGKILL)

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if event in EVENTS and run in str(arguments[0]):
            seen += 1
            if seen == int(at):
                if float(delay) == 0:
                    die()
                threading.Thread(target=die, daemon=True).start()

    sys.addaudithook(watch)
    from pwiser_jax.config import load_config
    from pwiser_jax.training.loop import train
    from pwiser_jax.training.run.progress import Silent

    train(load_config(Path(config)), Path(run), Silent())
    print(seen)


if __name__ == "__main__":
    main(*sys.argv[1:])
