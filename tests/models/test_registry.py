"""A model registered by a user's module is trained by name."""

from dataclasses import replace
from pathlib import Path

import pytest

from pwiser_jax.models import MODELS, ModelConfig, MultiTaskModel, build, register_model
from pwiser_jax.models.features import product, width
from pwiser_jax.models.layers import Linear
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.progress import Silent
from tests.data.multi_valued import write_folder
from tests.models.data import make_schema
from tests.training.helpers import small_config


class OneLinear(MultiTaskModel):
    """Towers on one linear layer of the embeddings."""

    def features(self, inputs, context):
        z = self.embed("embedding", inputs, context)
        return product(z, Linear(3, name="linear")(width(z)), context.dtype)


@pytest.fixture
def one_linear():
    register_model("one_linear", OneLinear)
    yield "one_linear"
    del MODELS["one_linear"]


def test_a_registered_model_is_trained_by_its_name(one_linear, tmp_path: Path) -> None:
    data = write_folder(tmp_path / "data")
    config = small_config(data, model={"name": one_linear}, train={"epochs": 1})
    result = train(config, tmp_path / "run", Silent())
    assert result.steps > 0
    assert isinstance(build(config.model, make_schema()), OneLinear)


def test_a_name_belongs_to_one_class(one_linear) -> None:
    register_model(one_linear, OneLinear)  # again: a module may be imported twice
    with pytest.raises(ValueError, match="'mmoe' is already registered: MMoE"):
        register_model("mmoe", OneLinear)


@pytest.mark.parametrize("name", ["mmeo", "", "MMoE"])
def test_an_unknown_name_is_an_error_that_lists_the_table(name: str) -> None:
    with pytest.raises(ValueError, match=r"model\.name .*shared_bottom, mmoe.*") as e:
        ModelConfig(name=name)
    assert ("did you mean 'mmoe'?" in str(e.value)) == (name == "mmeo")
    with pytest.raises(ValueError, match=r"model\.name"):
        replace(ModelConfig(), name=name)
