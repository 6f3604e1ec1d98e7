"""Every file of configs/ can be read, and its model is built and has a gradient."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from pathlib import Path

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwiser_jax.config import Config, load_config
from pwiser_jax.data.datasets.funnel import LADDERS
from pwiser_jax.errors import UserError
from pwiser_jax.models import MODELS, build
from pwiser_jax.schema import CategoricalField, NumericalField, Schema
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.step import example_inputs

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
FILES = sorted(CONFIGS.rglob("*.yaml"))
SHIPPED = frozenset(MODELS)  # before other tests register theirs
SCHEMA = Schema((CategoricalField("user", 5),), (NumericalField("price"),))


@pytest.mark.parametrize("dataset", ["synthetic", "kuairand", "aliexpress", "aliccp"])
def test_each_dataset_has_a_config_for_each_model_and_a_smoke_variant(
    dataset: str,
) -> None:
    names = {path.stem for path in (CONFIGS / dataset).glob("*.yaml")}
    assert names == {*SHIPPED, "smoke"} | (
        {"ladder"} if dataset == "synthetic" else set()
    )


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_a_config_builds_its_model(path: Path) -> None:
    config, ladder = load_config(path), path.stem == "ladder"
    schema = replace(SCHEMA, labels=LADDERS[3]) if ladder else SCHEMA
    module = build(config.model, schema)
    inputs = example_inputs(schema)
    variables = jax.eval_shape(
        lambda: module.init(jax.random.key(0), inputs, train=False)
    )
    logits = jax.eval_shape(lambda v: module.apply(v, inputs, train=False), variables)
    objective, weights = objectives.build(
        config.loss, schema.labels, config.model.cvr_space
    )
    assert set(logits) >= {task.name for task in objective.tasks}
    assert set(logits) >= set(objective.ranked)
    if path.stem not in ("smoke", "ladder"):
        assert config.model.name == path.stem
        assert not objective.ranked
    else:
        assert objective.ranked
    assert np.all(np.array(list(weights.margins.values())) > 0)


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_the_head_of_a_config_names_its_own_command(path: Path) -> None:
    head = "".join(x for x in path.read_text().splitlines(True) if x.startswith("#"))
    assert f"--config configs/{path.parent.name}/{path.name}" in head
    assert f"pwiser prepare {path.parent.name}" in head


@pytest.mark.parametrize("path", FILES, ids=lambda p: f"{p.parent.name}-{p.stem}")
def test_one_option_adds_pwiser_to_a_config(path: Path) -> None:
    plain, pwiser = load_config(path), load_config(path, ["--loss.ranking=pwiser"])
    assert replace(pwiser, loss=plain.loss) == plain
    assert pwiser.loss.resolved_lambdas == 0.1
    assert plain.loss.resolved_lambdas == (0.1 if plain.loss == pwiser.loss else 0.0)


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("model: {nmae: mmoe}", "nmae"),
        ("model: {name: mmeo}", "did you mean 'mmoe'"),
        ("train: {epochs: many}", "train.epochs"),
        ("train: {epochs: 0}", "train.epochs"),
        ("optimizer: {wide_l2: 0.1}", "optimizer.wide_l2 needs model.wide"),
        ("loss: {ranking: pwiser, gate: literal, surrogate: hinge}", "loss.gate"),
        ("loss: {ranking: pwiser, pairs: sorted, surrogate: logistic}", "loss.pairs"),
        ("loss: {ranking: pwiser, bank: -1}", "loss.bank"),
        ("data: {min_conversions: 2048}", "data.min_conversions"),
        ("model: [", "bad.yaml"),
    ],
)
def test_a_wrong_file_is_named_with_its_option(
    tmp_path: Path, text: str, word: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=word.replace(".", r"\.")) as caught:
        load_config(path)
    assert "\n" not in str(caught.value)


# Values of every wrong kind, as YAML writes them.
VALUES = (
    *("null", ".nan", ".inf", "-.inf", "-1", "0", "1e30", str(10**30), "2147483648"),
    *('""', '" "', "[]", "{}", "[1, 2]", "[null]", "[[1]]", "{a: 1}", "{a: null}"),
    *("{1: 2}", "true", "x", "0.5", "3", "2024-01-01", "!!python/object:os.system x"),
)
OPTIONS = [
    f"{section.name}.{option.name}" if section.name != "protocol" else "protocol"
    for section in fields(Config)
    for option in (
        fields(getattr(Config(), section.name))
        if is_dataclass(getattr(Config(), section.name))
        else [section]
    )
]


def is_one_sentence(load: Callable[[], Config]) -> None:
    """A value is accepted, or refused by a sentence without Python's own names."""
    message = ""
    try:
        config = load()
        objectives.build(config.loss, SCHEMA.labels, config.model.cvr_space)
    except UserError as error:
        message = str(error)
    for text in ("\n", "<class", "typing.", "NoneType", "Traceback"):
        assert text not in message


@pytest.mark.parametrize("option", OPTIONS)
def test_any_value_of_an_option_is_accepted_or_refused_in_a_sentence(
    tmp_path: Path, option: str
) -> None:
    path = tmp_path / "run.yaml"
    section, _, name = option.rpartition(".")
    for value in VALUES:
        line = f"{name}: {value}"
        path.write_text(f"{section}: {{{line}}}\n" if section else f"{line}\n")
        is_one_sentence(lambda: load_config(path))


@settings(max_examples=80, derandomize=True, deadline=None)
@given(st.sampled_from(OPTIONS), st.sampled_from(VALUES) | st.text(max_size=5))
def test_any_value_on_the_command_line_is_accepted_or_refused_in_a_sentence(
    option: str, value: str
) -> None:
    path = CONFIGS / "synthetic" / "smoke.yaml"
    is_one_sentence(lambda: load_config(path, [f"--{option}={value}"]))
