"""The table of models: the one place where a model's name is written."""

from typing import TYPE_CHECKING

from pwiser_jax.errors import did_you_mean

if TYPE_CHECKING:
    from pwiser_jax.models.base import MultiTaskModel

MODELS: dict[str, type["MultiTaskModel"]] = {}


def register_model(name: str, cls: type["MultiTaskModel"]) -> None:
    """Makes `cls` the model that `model.name: NAME` builds.

    Your own module can call it before it calls `train`.

    Args:
        name: name of the model in configurations.
        cls: a subclass of `MultiTaskModel`.

    Raises:
        ValueError: the name belongs to another class.
    """
    if MODELS.setdefault(name, cls) is not cls:
        raise ValueError(
            f"a model named {name!r} is already registered: {MODELS[name].__name__}"
        )


def check_name(name: str) -> None:
    """Raises ValueError unless the table has a model of this name."""
    if name not in MODELS:
        raise ValueError(
            f"model.name must be one of {', '.join(MODELS)}, not {name!r}"
            f"{did_you_mean(name, MODELS)}"
        )
