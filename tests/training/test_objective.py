"""Losses of the tables: definitions in NumPy, devices, sweeps, resumed runs."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax import parts
from pwiser_jax.config import Config, LossConfig
from pwiser_jax.data.batches.batches import Batch
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.errors import UserError
from pwiser_jax.models.heads import both_logits, joint_logits
from pwiser_jax.tasks import IMPUTATION
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices.programs import AXIS, split_rows
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from pwiser_jax.training.sweep import train_sweep
from tests.training.helpers import small_config
from tests.training.steps import SCHEMA, make_batch

HEADS = ("ctr", "ctcvr")
ROWS = 21


def softplus(x: Any) -> Any:
    return np.logaddexp(0, x)


def sigmoid(x: Any) -> Any:
    return 1 / (1 + np.exp(-x))


def pair_mean(
    cost: Callable[[float], float], s: Any, level: Any, w: Any, groups: Any, values: Any
) -> float:
    """Mean of cost(s_i - s_j) over pairs with level_i > level_j, one by one."""
    total = weight = 0.0
    for i in range(len(s)):
        for j in range(len(s)):
            if level[i] > level[j] and groups[i] == groups[j]:
                v = w[i] * w[j] * values[i]
                total, weight = total + v * cost(s[i] - s[j]), weight + v
    return total / weight if weight else 0.0


def pwiser(z: Any, level: Any, w: Any, groups: Any, values: Any, margins: Any) -> float:
    s, total = sigmoid(z), 0.0
    for (hi, lo), m in margins.items():
        rows = (level == hi) | (level == lo)
        some = (x[rows] for x in (s, level, w, groups, values))
        total += pair_mean(lambda d, m=m: max(0, m - d) ** 2, *some)
    return total


def jrc(both: Any, y: Any, w: Any, groups: Any) -> float:
    """Mean over rows of -log of a softmax over the row's group of its label's logit."""
    total = 0.0
    for i in range(len(y)):
        f, group = both[:, int(y[i])], groups == groups[i]
        total -= w[i] * (f[i] - np.log(np.sum(w[group] * np.exp(f[group]))))
    return total / w.sum()


def definition(loss: LossConfig, both: Any, rows: dict[str, Any]) -> float:
    """The objective in float64, of two logits f[B, 2] by head."""
    level, w, pair_w = rows["level"], rows["weights"], rows["pair_weights"]
    groups = rows["groups"] if loss.segments == "group" else np.zeros(len(level))
    values = rows["values"] if loss.pair_value else np.ones(len(level))
    margins = {(2, 1): 0.1, (2, 0): 0.2}
    total, probabilities = 0.0, []
    for rung, head in enumerate(HEADS, start=1):
        z, y = both[head][:, 1] - both[head][:, 0], level >= rung
        probabilities.append(sigmoid(z))
        ones, zeros = softplus(-z), softplus(z)
        if loss.pointwise == "focal":
            alpha = 0.5 if loss.focal_alpha is None else loss.focal_alpha
            scale = 2.0 if loss.focal_alpha is None else 1.0
            ones = scale * alpha * sigmoid(-z) ** loss.focal_gamma * ones
            zeros = scale * (1 - alpha) * sigmoid(z) ** loss.focal_gamma * zeros
        if rung == 2:
            ones = ones * loss.conversion_weight
        total += np.sum(w * np.where(y, ones, zeros)) / w.sum()
        if loss.ranking == "pwiser":
            rank = pwiser(z, level, pair_w, groups, values, margins)
        elif loss.ranking == "ranknet":
            order, m = (level if loss.ranknet_labels == "levels" else y), 1.0
            m = loss.ranknet_margin
            cost = (
                (lambda d, m=m: max(0, m - d))
                if loss.surrogate == "hinge"
                else (lambda d: softplus(-d))
            )
            rank = pair_mean(cost, z, order, pair_w, groups, values)
        elif loss.ranking == "jrc":
            rank = jrc(both[head], y, pair_w, groups)
        else:
            rank = 0.0
        lambdas: Any = loss.resolved_lambdas
        total += lambdas * rank
    total /= 2
    if loss.constraint == "aitm":
        rises = np.maximum(0, probabilities[1] - probabilities[0])
        mean = np.sum(pair_w * rises) / pair_w.sum()
        total += loss.constraint_weight * mean
    return float(total)


def numerical(loss: LossConfig, both: Any, rows: dict[str, Any]) -> Any:
    """The gradient of the definition, by central differences."""
    gradient = {head: np.zeros_like(f) for head, f in both.items()}
    for head in HEADS:
        for at in np.ndindex(both[head].shape):
            sides = []
            for step in (1e-6, -1e-6):
                moved = {name: f.copy() for name, f in both.items()}
                moved[head][at] += step
                sides.append(definition(loss, moved, rows))
            gradient[head][at] = (sides[0] - sides[1]) / 2e-6
    return gradient


CASES = {
    "bce": LossConfig(),
    "weighted": LossConfig(conversion_weight=3.0),
    "focal": LossConfig(pointwise="focal", focal_gamma=1.5),
    "focal_alpha": LossConfig(pointwise="focal", focal_alpha=0.3, conversion_weight=2),
    "pwiser": LossConfig(ranking="pwiser", lambdas=0.7),
    "pwiser_groups": LossConfig(
        ranking="pwiser", lambdas=0.7, segments="group", pair_value="price"
    ),
    "ranknet": LossConfig(ranking="ranknet", lambdas=0.5),
    "ranknet_hinge": LossConfig(
        ranking="ranknet",
        lambdas=0.5,
        surrogate="hinge",
        ranknet_margin=0.8,
        ranknet_labels="levels",
    ),
    "ranknet_groups": LossConfig(
        ranking="ranknet", segments="group", pair_value="price", ranknet_labels="levels"
    ),
    "jrc": LossConfig(ranking="jrc", lambdas=0.5),
    "jrc_groups": LossConfig(ranking="jrc", lambdas=0.5, segments="group"),
    "aitm": LossConfig(constraint="aitm", constraint_weight=2.0),
}


def test_every_loss_of_the_tables_has_a_case() -> None:
    for option, table in (
        ("pointwise", parts.POINTWISE),
        ("ranking", parts.RANKINGS),
        ("constraint", parts.CONSTRAINTS),
    ):
        assert {getattr(loss, option) for loss in CASES.values()} == set(table)


def batch_of(loss: LossConfig) -> tuple[Batch, dict[str, Any], dict[str, Any]]:
    """A batch with 3 rows of padding, two logits by head, and its real rows."""
    rng = np.random.default_rng(7)
    batch = make_batch(ROWS, seed=2, padding=3)
    size = ROWS + 3
    pair_weights = rng.uniform(0.2, 2, size).astype(np.float32) * batch.mask
    weights = pair_weights * rng.uniform(0.2, 1, size).astype(np.float32)
    groups = rng.integers(0, 4, size).astype(np.int32)
    values = rng.uniform(0.5, 3, size).astype(np.float32)
    batch = batch._replace(
        weights=weights,
        pair_weights=pair_weights,
        groups=groups if loss.segments == "group" else None,
        values=values if loss.pair_value else None,
    )
    both = {head: rng.normal(size=(size, 2)).astype(np.float32) for head in HEADS}
    rows = {
        "level": batch.labels.sum(axis=1),
        "weights": weights,
        "pair_weights": pair_weights,
        "groups": groups,
        "values": values,
    }
    real = {
        name: x[:ROWS].astype(float) if x.dtype.kind == "f" else x[:ROWS]
        for name, x in rows.items()
    }
    return batch, both, real


def value_and_gradient(loss: LossConfig, axis_name: str | None = None) -> Any:
    """(two logits by head, batch) -> (loss, gradient)."""
    objective, weights = objectives.build(loss, SCHEMA.labels, "ctcvr")

    def value(both: Any, batch: Any) -> Any:
        logits = {head: f[:, 1] - f[:, 0] for head, f in both.items()}
        logits |= {both_logits(head): f for head, f in both.items()}
        return objective(logits, batch, weights, axis_name=axis_name)[0]

    return jax.value_and_grad(value)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.usefixtures("four_devices")
def test_a_loss_and_its_gradient_are_the_definition(name: str) -> None:
    loss = CASES[name]
    batch, both, rows = batch_of(loss)
    real = {head: f[:ROWS].astype(float) for head, f in both.items()}
    expected, gradient = definition(loss, real, rows), numerical(loss, real, rows)
    value, got = value_and_gradient(loss)(both, batch)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    pmapped = jax.pmap(value_and_gradient(loss, AXIS), AXIS)
    values, parts_ = pmapped(*split_rows((both, batch), 4))
    np.testing.assert_allclose(values, [value] * 4, rtol=1e-5)
    for head in HEADS:
        np.testing.assert_allclose(
            got[head][:ROWS], gradient[head], rtol=1e-4, atol=1e-6
        )
        assert not np.asarray(got[head])[ROWS:].any()
        # The mean over devices is the gradient of the whole batch.
        devices = np.asarray(parts_[head]).reshape(-1, 2) / 4
        np.testing.assert_allclose(devices, got[head], rtol=1e-4, atol=1e-7)


def test_lambda_zero_is_ranking_none() -> None:
    none = objectives.build(LossConfig(), SCHEMA.labels, "ctcvr")
    for ranking in ("pwiser", "ranknet"):
        loss = LossConfig(ranking=ranking, lambdas=0.0)
        assert objectives.build(loss, SCHEMA.labels, "ctcvr") == none
        (line,) = objectives.notes(loss, none[0])
        assert "lambda 0" in line
    assert objectives.notes(LossConfig(), none[0]) == []


def test_lambda_and_margins_increase_linearly() -> None:
    loss = LossConfig(ranking="pwiser", lambda_ramp_steps=10, margin_ramp_steps=4)
    _, weights = objectives.build(loss, SCHEMA.labels, "ctcvr")
    for step, lambda_, margin in (
        (0, 0, 0),
        (1, 0.01, 0.05),
        (4, 0.04, 0.2),
        (50, 0.1, 0.2),
    ):
        now = objectives.ramped(weights, jnp.int32(step))
        np.testing.assert_allclose(now.lambdas["ctr"], lambda_, atol=1e-7)
        np.testing.assert_allclose(now.margins[2, 0], margin, atol=1e-7)
    constant = objectives.build(LossConfig(ranking="pwiser"), SCHEMA.labels, "ctcvr")[1]
    assert objectives.ramped(constant, 3) == constant


def test_the_share_of_conversions_with_a_pair_in_their_group() -> None:
    loss = CASES["pwiser_groups"]
    batch, both, _ = batch_of(loss)
    objective, weights = objectives.build(loss, SCHEMA.labels, "ctcvr")
    logits = {head: f[:, 1] - f[:, 0] for head, f in both.items()}
    got = objective.pair_counts(logits, batch, weights)
    level = np.where(batch.mask, batch.labels.sum(axis=1), -1)
    paired = [
        np.any((level >= 0) & (level < 2) & (batch.groups == batch.groups[row]))
        for row in np.flatnonzero(level == 2)
    ]
    assert paired
    np.testing.assert_allclose(
        got["groups/conversions_paired"], np.mean(paired), rtol=1e-6
    )


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"lambdas": 0.1}, "--loss.ranking pwiser"),
        ({"lambdas": {"ctr": 0.1}}, "--loss.ranking pwiser"),
        ({"margins": {"conversion>click": 0.1}}, "loss.margins has no effect"),
        ({"bank": 4}, "loss.bank has no effect with loss.ranking none"),
        ({"ranking": "ranknet", "bank": 4}, "loss.bank has no effect"),
        ({"ranking": "jrc", "bank": 4}, "loss.bank has no effect"),
        ({"ranking": "ranknet", "scores": "probability"}, "loss.scores has no effect"),
        ({"ranking": "pwiser", "ranknet_margin": 2.0}, "loss.ranknet_margin"),
        ({"ranking": "ranknet", "ranknet_margin": 2.0}, "loss.ranknet_margin has no"),
        ({"ranking": "ranknet", "margin_ramp_steps": 5}, "loss.margin_ramp_steps has"),
        ({"ranking": "ranknet", "normalize": "negatives"}, "no normalize negatives"),
        ({"ranking": "pwiser", "bank": 4, "segments": "group"}, "loss.segments"),
        ({"segments": "group"}, "loss.segments has no effect"),
        ({"focal_gamma": 1.0}, "loss.focal_gamma has no effect"),
        ({"constraint_weight": 2.0}, "loss.constraint_weight"),
        ({"propensity_floor": 0.0}, "loss.propensity_floor must be above 0"),
        ({"propensity_floor": 1.5}, "loss.propensity_floor must be at most 1"),
        ({"cvr_weight": -1.0}, "loss.cvr_weight must be 0 or more"),
        ({"ranking": "pwisr"}, "did you mean 'pwiser'"),
        ({"pointwise": "bec"}, "did you mean 'bce'"),
        ({"constraint": "aitn"}, "did you mean 'aitm'"),
        ({"ranking": "pwiser", "lambdas": float("nan")}, "loss.lambdas"),
        ({"ranking": "pwiser", "lambdas": {"ctr": float("nan")}}, "loss.lambdas.ctr"),
        ({"ranking": "pwiser", "margins": {"a>b": float("inf")}}, "loss.margins.a>b"),
    ],
)
def test_options_without_effect_or_sense_are_refused(
    options: dict[str, Any], word: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(word)) as caught:
        LossConfig(**options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "space", "word"),
    [
        (
            {
                "ranking": "pwiser",
                "margins": {"conversion>click": None, "conversion>exposure": None},
            },
            "ctcvr",
            "loss.margins is null for every pair",
        ),
        ({"ranking": "jrc"}, "product", "cvr_space product"),
        ({"ranking": "jrc", "lambdas": {"ctcvr": 1.0}}, "click", "'ctcvr'"),
        ({"constraint": "aitm"}, "click", "loss.constraint aitm"),
        ({"ranking": "jrc"}, "escm2_dr", "cvr_space escm2_dr"),
        ({"cvr_weight": 0.5}, "product", "loss.cvr_weight has no effect"),
        ({"pointwise": "focal"}, "escm2_ips", "leave loss.pointwise out"),
    ],
)
def test_losses_that_do_not_fit_the_model_are_refused(
    options: dict[str, Any], space: Any, word: str
) -> None:
    with pytest.raises(UserError) as caught:
        objectives.build(LossConfig(**options), SCHEMA.labels, space)
    assert word in str(caught.value)


@pytest.mark.parametrize("labels", [("click",), ("click", "cart", "order")])
def test_escm2_needs_a_click_and_a_conversion(labels: tuple[str, ...]) -> None:
    with pytest.raises(UserError, match="needs two labels, a click and a conversion"):
        objectives.build(LossConfig(), labels, "escm2_ips")


@pytest.mark.parametrize("space", ["escm2_ips", "escm2_dr"])
def test_escm2_is_the_sum_of_its_three_losses(space: Any) -> None:
    options = {"cvr_weight": 0.7, "ctcvr_weight": 0.3, "propensity_floor": 0.2}
    labels = ("view", "order")  # tasks have other names than CVR and CTCVR
    objective, weights = objectives.build(LossConfig(**options), labels, space)
    batch = make_batch(ROWS, seed=2, padding=3)
    rng = np.random.default_rng(1)
    names = ["view", "order_given_view", IMPUTATION]
    logits = {n: rng.normal(size=ROWS + 3).astype(np.float32) for n in names}
    joint = joint_logits({n: logits[n] for n in names[:2]}, labels, space)
    value, (parts_, _) = objective(logits | joint, batch, weights)
    rows = slice(ROWS)
    p = {n: sigmoid(z[rows].astype(float)) for n, z in logits.items()}
    click, conversion = (batch.labels[rows, k].astype(bool) for k in (0, 1))

    def entropy(p: Any, y: Any) -> Any:
        return -np.where(y, np.log(p), np.log(1 - p))

    ctr, cvr = p["view"], p["order_given_view"]
    cost = entropy(cvr, conversion)
    share = click / np.maximum(ctr, 0.2)
    if space == "escm2_dr":
        imputed = np.log(1 + np.exp(logits[IMPUTATION][rows].astype(float)))
        error = cost - imputed
        of_cvr = np.mean(imputed + share * error) + np.mean(share * error**2)
    else:
        of_cvr = np.mean(share * cost)
    expected = (
        np.mean(entropy(ctr, click))
        + 0.7 * of_cvr
        + 0.3 * np.mean(entropy(ctr * cvr, conversion))
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(parts_[f"{space}/order_given_view"], of_cvr, rtol=1e-5)


# Runs.


def square(head: parts.RankedHead) -> jax.Array:
    """A toy ranking: (mean logit of the positives - 1)^2, over all devices."""
    positive = head.defined & head.labels
    sums = jnp.stack([jnp.sum(jnp.where(positive, head.logits, 0)), jnp.sum(positive)])
    if head.axis_name is not None:
        sums = jax.lax.psum(sums, head.axis_name)
    return (sums[0] / jnp.maximum(sums[1], 1) - 1) ** 2


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "synthetic"
    rates = {"click_rate": 0.4, "conversion_rate": 0.3, "valid": 0.3}
    prepare_synthetic(folder, rows=3_000, seed=3, **rates)
    return folder


def run_config(data: Path, loss: LossConfig) -> Config:
    config = small_config(
        data, model={"name": "shared_bottom"}, train={"epochs": 1, "log_every": 2}
    )
    return replace(config, loss=loss)


def losses_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["kind"] in ("train", "valid")]


@pytest.mark.parametrize(
    "options",
    [
        {
            "pointwise": "focal",
            "ranking": "ranknet",
            "constraint": "aitm",
            "lambda_ramp_steps": 3,
        },
        {"ranking": "jrc", "conversion_weight": 2.0, "segments": "group"},
        {"ranking": "toy"},
    ],
    ids=lambda options: options["ranking"],
)
@pytest.mark.usefixtures("toy_ranking")
def test_a_loss_trains_alone_resumed_and_in_a_sweep(
    data: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    loss = LossConfig(**options)
    config = run_config(data, loss)
    if loss.segments == "group":
        config = replace(config, data=replace(config.data, order="groups"))
    whole, cut, member, baseline = (tmp_path / x for x in ("w", "c", "m", "b"))
    train(config, whole, Silent())
    expected = losses_of(whole)
    names = {f"{loss.pointwise}/ctr", f"{loss.ranking}/ctcvr"}
    if loss.constraint != "none":
        names.add(loss.constraint)
    assert names <= expected[0].keys()
    with pytest.raises(Interrupted):
        train(config, cut, Silent(), stop_after=5)
    train(config, cut, Silent())
    assert losses_of(cut) == expected
    if loss.segments == "group":
        assert expected[0]["groups/conversions_paired"] > 0
    zero = replace(config, loss=replace(loss, lambdas=0.0))
    train_sweep([config, zero], [member, baseline], Silent())
    for got, line in zip(losses_of(member), expected, strict=True):
        # AUC counts ranks: a score that rounds differently may swap two rows.
        name, rtol = ("loss", 1e-5) if "loss" in line else ("mean_auc", 1e-3)
        assert got[name] == pytest.approx(line[name], rel=rtol)
    assert not any(name.startswith(loss.ranking) for name in losses_of(baseline)[0])


@pytest.mark.parametrize("space", ["escm2_ips", "escm2_dr"])
def test_escm2_trains_alone_resumed_and_in_a_sweep(
    data: Path, tmp_path: Path, space: Any
) -> None:
    """Runs of a sweep differ in the floor and the weights."""
    config = run_config(data, LossConfig(propensity_floor=0.3))
    config = replace(config, model=replace(config.model, name="mmoe", cvr_space=space))
    numbers = {"propensity_floor": 0.1, "cvr_weight": 0.2, "ctcvr_weight": 3.0}
    other = replace(config, loss=replace(config.loss, **numbers))
    whole, cut, *members = (tmp_path / x for x in ("w", "c", "m", "o"))
    train(config, whole, Silent())
    expected = losses_of(whole)
    assert {"bce/ctr", "bce/ctcvr", f"{space}/cvr"} <= expected[0].keys()
    assert expected[-1]["mean_auc"] > 0.5
    with pytest.raises(Interrupted):
        train(config, cut, Silent(), stop_after=5)
    train(config, cut, Silent())
    assert losses_of(cut) == expected
    train_sweep([config, other], members, Silent())
    for got, line in zip(losses_of(members[0]), expected, strict=True):
        name, rtol = ("loss", 1e-5) if "loss" in line else ("mean_auc", 1e-3)
        assert got[name] == pytest.approx(line[name], rel=rtol)
    assert losses_of(members[1])[0]["loss"] != pytest.approx(expected[0]["loss"])


@pytest.fixture
def toy_ranking() -> Any:
    objectives.register_ranking("toy", square)
    yield
    del parts.RANKINGS["toy"]
