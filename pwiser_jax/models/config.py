"""The sizes of a model; the defaults are MTReclib's for AliExpress."""

from dataclasses import dataclass
from typing import Literal

from pwiser_jax.tasks import CvrSpace

ModelName = Literal["single_task", "shared_bottom", "mmoe", "ple"]


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and its sizes.

    Args:
        name: the model.
        cvr_space: "ctcvr": the second head predicts click and conversion on all rows;
            "click": it predicts conversion on clicked rows only; "product": ESMM, the
            product of both heads is trained on all rows.
        embedding_dim: width of an embedded field.
        bottom: hidden layers of the bottom of single_task and shared_bottom.
        expert: hidden layers of an expert of mmoe.
        experts: number of experts of mmoe.
        levels: of ple, the hidden layers of an expert of each level.
        shared_experts: of ple, shared experts in a level.
        task_experts: of ple, experts of each task in a level.
        tower: hidden layers of a task's tower.
        dropout: rate of every dropout.
    """

    name: ModelName = "mmoe"
    cvr_space: CvrSpace = "ctcvr"
    embedding_dim: int = 128
    bottom: tuple[int, ...] = (512, 256)
    expert: tuple[int, ...] = (512, 256)
    experts: int = 8
    levels: tuple[tuple[int, ...], ...] = ((512,), (256,))
    shared_experts: int = 4
    task_experts: int = 4
    tower: tuple[int, ...] = (128, 64)
    dropout: float = 0.2
