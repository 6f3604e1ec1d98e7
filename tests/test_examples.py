"""Each example runs; those whose framework is absent are skipped."""

import importlib.util
import re
import shlex
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
# The frameworks that `make test` does not install.
LONG = {"loss_equinox": "equinox", "loss_keras": "keras", "loss_pytorch": "torch"}


def load(name: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(EXAMPLES)
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, module)
    spec.loader.exec_module(module)
    return module


def test_the_list_names_each_example_and_no_other():
    listed = set(re.findall(r"`(\w+\.py)`", (EXAMPLES / "README.md").read_text()))
    assert listed == {path.name for path in EXAMPLES.glob("*.py")}


@pytest.mark.parametrize("name", ["loss_flax_linen", "loss_flax_nnx"])
def test_the_loss_falls(name: str, monkeypatch: pytest.MonkeyPatch):
    first, last = load(name, monkeypatch).main(steps=50)
    assert last < 0.7 * first


def test_an_own_model_loss_and_dataset_are_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Registered from outside, by names that the package does not have."""
    from pwiser_jax.data.datasets import DATASETS
    from pwiser_jax.models import MODELS
    from pwiser_jax.parts import POINTWISE

    own = {"two_bottoms": MODELS, "smoothed_bce": POINTWISE, "coins": DATASETS}
    assert not any(name in table for name, table in own.items())
    try:
        run = load("own_run", monkeypatch)
        auc = run.main(tmp_path, epochs=8)
    finally:
        for name, table in own.items():
            table.pop(name, None)
        sys.modules.pop("own_parts", None)
    assert auc["ctr"] > 0.6
    config = (tmp_path / "run" / "config.yaml").read_text()
    assert "name: two_bottoms" in config
    assert "pointwise: smoothed_bce" in config


def test_a_sweep_from_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    auc = load("sweep", monkeypatch).main(tmp_path, rows=6000, epochs=1)
    assert set(auc) == {0.0, 0.1, 0.3}
    assert len(list(tmp_path.glob("lambda*/result.json"))) == 9


def test_the_own_table_trains_and_predicts(tmp_path: Path, monkeypatch):
    """The commands of its README, in a folder of its own."""
    from pwiser_jax.cli import main

    text = (EXAMPLES / "own_table" / "README.md").read_text()
    commands = [
        shlex.split(line) for line in text.splitlines() if "    pwiser " in line
    ]
    (tmp_path / "examples").symlink_to(EXAMPLES)
    monkeypatch.chdir(tmp_path)
    for words in commands:
        assert main(words[1:]) == 0, words
    predictions = (tmp_path / "predictions.csv").read_text().splitlines()
    assert len(predictions) == 201
    assert predictions[0].startswith("session,item,ctr,")


@pytest.mark.long
@pytest.mark.parametrize("name", LONG)
@pytest.mark.filterwarnings("default")
def test_the_loss_falls_in_other_frameworks(name: str, monkeypatch: pytest.MonkeyPatch):
    pytest.importorskip(LONG[name])
    first, last = load(name, monkeypatch).main(steps=50)
    assert last < 0.7 * first


def test_examples_are_short():
    for path in EXAMPLES.rglob("*.py"):
        assert len(path.read_text().splitlines()) <= 60, path.name
