"""A model registered by a user's module is trained by name."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import jax
import pytest

from pwiser_jax.cli import main
from pwiser_jax.models import MODELS, ModelConfig, MultiTaskModel, build, register_model
from pwiser_jax.models.features import product, width
from pwiser_jax.models.layers import Linear
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.progress import Silent
from tests.data.multi_valued import write_folder
from tests.models.data import make_inputs, make_schema, tiny
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


OTHER_SIZES = {
    "bottom": (7,),
    "expert": (7,),
    "experts": 3,
    "levels": ((7,),),
    "shared_experts": 3,
    "task_experts": 3,
}


@pytest.mark.parametrize("name", list(MODELS))
def test_a_model_reads_the_sizes_that_change_its_parameters(name: str) -> None:
    schema = make_schema()
    inputs = make_inputs(schema, 2)

    def shapes(**changes):
        model = build(tiny(name, **changes), schema)
        init = partial(model.init, inputs=inputs, train=False)
        return jax.eval_shape(init, jax.random.key(0))

    first = shapes()
    changing = {k for k, v in OTHER_SIZES.items() if shapes(**{k: v}) != first}
    assert changing == set(MODELS[name].reads or ())


def test_a_size_that_a_model_does_not_read_is_refused_on_the_command_line(
    one_linear, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "shared.yaml"
    shared.write_text("model: {name: shared_bottom, experts: 4}")
    command = ["train", "--data.path=nowhere", f"--output={tmp_path / 'run'}"]
    assert main([*command, "--model.name=shared_bottom", "--model.experts=4"]) == 2
    assert capsys.readouterr().err == (
        "pwiser: error: --model.experts is an option of mmoe, and model.name is "
        "shared_bottom: leave it out, or name another model\n"
    )
    for allowed in (
        [f"--config={shared}"],
        ["--model.experts=4"],
        [f"--model.name={one_linear}", "--model.experts=4"],
    ):
        assert main([*command, *allowed]) == 2
        assert "nowhere" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["mmeo", "", "MMoE"])
def test_an_unknown_name_is_an_error_that_lists_the_table(name: str) -> None:
    with pytest.raises(ValueError, match=r"model\.name .*shared_bottom, mmoe.*") as e:
        ModelConfig(name=name)
    assert ("did you mean 'mmoe'?" in str(e.value)) == (name == "mmeo")
    with pytest.raises(ValueError, match=r"model\.name"):
        replace(ModelConfig(), name=name)
