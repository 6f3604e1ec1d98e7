"""The multi-task models, in Flax linen."""

from pwiser_jax.models.aitm import AITM
from pwiser_jax.models.base import MultiTaskModel
from pwiser_jax.models.config import ModelConfig
from pwiser_jax.models.mmoe import MMoE
from pwiser_jax.models.ple import PLE
from pwiser_jax.models.registry import MODELS, register_model
from pwiser_jax.models.shared_bottom import SharedBottom
from pwiser_jax.models.single_task import SingleTask
from pwiser_jax.schema import Schema

__all__ = [
    "AITM",
    "MODELS",
    "PLE",
    "MMoE",
    "ModelConfig",
    "MultiTaskModel",
    "SharedBottom",
    "SingleTask",
    "build",
    "register_model",
]

register_model("single_task", SingleTask)
register_model("shared_bottom", SharedBottom)
register_model("mmoe", MMoE)
register_model("ple", PLE)
register_model("aitm", AITM)


def build(
    config: ModelConfig, schema: Schema, axis_name: str | None = None
) -> MultiTaskModel:
    """Builds the model that the config names, for data with the schema.

    With axis_name, batch statistics are those of the whole batch under a pmap or
    shard_map over that axis.

    Raises:
        ValueError: the schema has no feature field.
    """
    if not schema.embedded and not schema.numerical:
        raise ValueError(
            "the schema must have a categorical, multi-valued or numerical field"
        )
    return MODELS[config.name](config, schema, axis_name)
