"""The table of models: the one place where a model's name is written."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from pwiser_jax.errors import UserError, did_you_mean, listed

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


def refuse_unread(name: str, options: Iterable[str]) -> None:
    """Raises UserError for an option of `ModelConfig` that the model does not read.

    Only options that the models' `reads` tell apart are refused, so that one YAML file
    can hold the sizes of several models.
    """
    known = {model: cls.reads for model, cls in MODELS.items() if cls.reads is not None}
    for option in options if name in known else ():
        models = [model for model, reads in known.items() if option in reads]
        if models and name not in models:
            raise UserError(
                f"--model.{option} is an option of {listed(models, 'and')}, and "
                f"model.name is {name}: leave it out, or name another model"
            )


def check_name(name: str) -> None:
    """Raises ValueError unless the table has a model of this name."""
    if name not in MODELS:
        raise ValueError(
            f"model.name must be one of {', '.join(MODELS)}, not {name!r}"
            f"{did_you_mean(name, MODELS)}"
        )
