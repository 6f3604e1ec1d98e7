"""One process of a run: trains one step into OUTPUT-1, then a whole run into OUTPUT.

python processes_worker.py DATA OUTPUT [HOST:PORT COUNT INDEX]
"""

import sys
from contextlib import nullcontext, suppress
from pathlib import Path

from pwiser_jax.config import Config
from pwiser_jax.training.devices import processes
from pwiser_jax.training.devices.processes import joined
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.progress import Silent
from tests.training.helpers import small_config


def worker_config(data: Path, shard_tables: bool = False) -> Config:
    return small_config(
        data,
        data={"batch_size": 256, "min_conversions": 4},
        model={"name": "shared_bottom"},
        loss={"bank": 300},
        optimizer={"embedding": "lazy_adam", "shard_tables": shard_tables},
        train={"log_every": 1, "steps_per_call": 5},
    )


def main(data: str, output: str, *cluster: str) -> None:
    """Alone with whole tables; where there are several processes, spread over them."""
    config = worker_config(Path(data), shard_tables=bool(cluster))
    processes.PIECE_BYTES = 2_000  # so that tables come in several pieces
    coordinator, count, index = cluster or (None, 1, 0)
    several = joined(coordinator, int(count), int(index)) if cluster else nullcontext()
    with several:
        with suppress(Interrupted):
            train(config, Path(f"{output}-1"), Silent(), stop_after=1)
        train(config, Path(output), Silent())


if __name__ == "__main__":
    main(*sys.argv[1:])
