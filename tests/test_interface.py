"""The Python interface: what loads, and that results are objects with attributes."""

import subprocess
import sys
from pathlib import Path

import jax
import pytest

import pwiser_jax
from pwiser_jax.config import Config
from pwiser_jax.errors import UserError

HEAVY = ("flax", "optax", "orbax", "polars", "jsonargparse", "tensorboardX")


@pytest.mark.parametrize("module", ["pwiser_jax", "pwiser_jax.losses"])
def test_the_losses_load_none_of_what_training_needs(module: str) -> None:
    program = f"""
import sys, {module}
from pwiser_jax import pwiser_loss
print([name for name in {HEAVY} if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout == "[]\n"


def test_every_name_exists() -> None:
    for name in pwiser_jax.__all__:
        assert getattr(pwiser_jax, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'prepare_nothing'"):
        _ = pwiser_jax.prepare_nothing
    assert set(dir(pwiser_jax)) == set(pwiser_jax.__all__)


def test_a_run_from_python(tmp_path: Path) -> None:
    manifest = pwiser_jax.prepare_synthetic(tmp_path / "data", rows=6_000, users=50)
    assert manifest.splits["train"].rows > 0
    config = pwiser_jax.Config.from_dict(
        {
            "data": {"path": str(tmp_path / "data"), "batch_size": 256},
            "model": {"name": "shared_bottom", "embedding_dim": 4, "bottom": [8]},
            "train": {"epochs": 1},
        }
    )
    # Commands set options of jax; functions leave them as they are.
    jax.config.update("jax_cpu_enable_async_dispatch", True)
    options = dict(jax.config.values)
    pwiser_jax.train(config, tmp_path / "run")
    pwiser_jax.train_sweep([config], [tmp_path / "sweep"])
    assert dict(jax.config.values) == options
    evaluation = pwiser_jax.evaluate(tmp_path / "run", "test")
    assert 0 < evaluation.tasks["ctr"].auc.value < 1
    assert evaluation.to_dict()["ctr"]["auc"]["value"] == (
        evaluation.tasks["ctr"].auc.value
    )


def test_mistakes_in_a_configuration_are_sentences(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="did you mean 'model'"):
        Config.from_dict({"modle": {}})
    with pytest.raises(UserError, match=r"model\.experts is two; expected a whole"):
        Config.from_dict({"model": {"experts": "two"}})
    path = tmp_path / "c.yaml"
    path.write_text("optimizer: {l2: 1e-3}")
    assert Config.from_yaml(path, ["--train.seed=4"]).optimizer.l2 == 1e-3
    assert Config.from_yaml(path) == Config.from_dict({"optimizer": {"l2": 1e-3}})
