"""A small prepared folder and a small configuration, for tests of training."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.monitoring

from pwiser_jax.config import Config, DataConfig, LossConfig, TrainConfig
from pwiser_jax.models.config import ModelConfig
from pwiser_jax.training.run.progress import Silent

SMALL = ModelConfig(
    name="mmoe",
    embedding_dim=4,
    bottom=(8,),
    expert=(8,),
    experts=3,
    levels=((8,), (6,)),
    shared_experts=1,
    task_experts=2,
    tower=(6,),
    dropout=0.2,
)


def small_config(data: Path, /, **changes: Any) -> Config:
    """A run of seconds; `changes` are by section, as `train={"seed": 1}`."""
    config = Config(
        data=DataConfig(path=str(data), batch_size=256, eval_batch_size=1024),
        model=SMALL,
        loss=LossConfig(ranking="pwiser", lambdas=0.1),
        train=TrainConfig(epochs=2, log_every=5, checkpoint_every=7),
    )
    for section, values in changes.items():
        config = replace(
            config, **{section: replace(getattr(config, section), **values)}
        )
    return config


class Lines(Silent):
    """Keeps the lines of a run."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def line(self, text: str) -> None:
        self.lines.append(text)


@contextmanager
def compilations() -> Iterator[list[str]]:
    """The names of the functions that are compiled inside."""
    names: list[str] = []

    def note(event: str, seconds: float, **what: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(what.get("fun_name")))

    jax.monitoring.register_event_duration_secs_listener(note)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(note)
