"""Learned weights of tasks and PCGrad: definitions, devices, runs."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax.config import LossConfig
from pwiser_jax.errors import UserError
from pwiser_jax.models import MODELS, build
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.balancing import TASK_WEIGHTS, pcgrad, uncertainty_weighted
from pwiser_jax.training.devices.programs import AXIS, split_rows
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from pwiser_jax.training.step import Hyper, StepSpec, initial_state
from pwiser_jax.training.sweep import train_sweep
from tests.models.data import make_inputs, make_schema, make_variables, tiny
from tests.training.helpers import SMALL, small_config
from tests.training.steps import SCHEMA, gradients, make_batch, step_of


def test_uncertainty_weighted_is_its_definition() -> None:
    losses, s = np.array([0.7, 0.02]), np.array([0.3, -1.2])

    def total(losses: Any, s: Any) -> Any:
        return sum(map(uncertainty_weighted, losses, s))

    value, (by_loss, by_s) = jax.value_and_grad(total, (0, 1))(
        list(jnp.asarray(losses)), list(jnp.asarray(s))
    )
    np.testing.assert_allclose(value, np.sum(np.exp(-s) * losses + s / 2), rtol=1e-6)
    np.testing.assert_allclose(by_loss, np.exp(-s), rtol=1e-6)
    np.testing.assert_allclose(by_s, 0.5 - np.exp(-s) * losses, rtol=1e-6)
    best = np.log(2 * losses)  # where the weight is 1 / (2 L)
    slope = jax.grad(uncertainty_weighted, 1)
    np.testing.assert_allclose([*map(slope, losses, best)], 0, atol=1e-6)


def surgery(g: np.ndarray, orders: Any) -> np.ndarray:
    """Algorithm 1 of the paper, in float64, of gradients [T, D]."""
    projected = g.copy()
    for i, order in enumerate(orders):
        for j in order:
            along = projected[i] @ g[j]
            if j != i and along < 0:
                projected[i] -= along / (g[j] @ g[j]) * g[j]
    return projected.sum(axis=0)


@pytest.mark.parametrize("tasks", [2, 3])
def test_pcgrad_is_the_papers_algorithm(tasks: int) -> None:
    rng, key = np.random.default_rng(tasks), jax.random.key(5)
    g = rng.normal(size=(tasks, 6))
    g[1] -= 1.5 * g[0]
    assert g[0] @ g[1] < 0
    own = rng.normal(size=(tasks, 3))
    trees = [
        {"shared": jnp.float32(a).reshape(2, 3), "own": jnp.float32(b)}
        for a, b in zip(g, own, strict=True)
    ]
    shared = {"shared": np.True_, "own": np.array([False])}
    got = jax.jit(lambda t: pcgrad(t, shared, key))(trees)
    orders = [range(2)] * 2
    if tasks > 2:
        orders = [
            np.asarray(jax.random.permutation(each, tasks))
            for each in jax.random.split(key, tasks)
        ]
    expected = surgery(g, orders)
    assert not np.allclose(expected, g.sum(axis=0))
    np.testing.assert_allclose(got["shared"].ravel(), expected, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got["own"], own.sum(axis=0), rtol=1e-5)


def test_pcgrad_of_gradients_that_agree_or_vanish_is_their_sum() -> None:
    trees = [jnp.array([1.0, 2.0]), jnp.array([2.0, 0.5]), jnp.zeros(2)]
    got = pcgrad(trees, np.True_, jax.random.key(0))
    np.testing.assert_array_equal(got, [3.0, 2.5])


@pytest.mark.parametrize("space", ["ctcvr", "escm2_dr"])
@pytest.mark.parametrize("name", MODELS)
def test_a_tower_depends_on_no_other_parameters_than_a_model_says(
    name: str, space: Any
) -> None:
    schema = replace(make_schema(), labels=("click", "conversion"))
    model = build(tiny(name, wide=True, cvr_space=space), schema)
    inputs = make_inputs(schema, 9)
    variables = make_variables(model, inputs)

    def logits(params: Any) -> Any:
        values = {**variables, "params": params}
        result, _ = model.apply(values, inputs, train=True, mutable=["batch_stats"])
        return [jnp.sum(result[head] ** 2) for head in model.heads]

    jacobian = jax.jacrev(logits)(variables["params"])
    leaves = [jax.tree.leaves_with_path(each) for each in jacobian]
    for each in zip(*leaves, strict=True):
        path = tuple(key.key for key in each[0][0])
        towers = model.towers_reading(path, each[0][1].ndim)
        for (_, slope), reads in zip(each, towers, strict=True):
            masked = np.where(reads, 0, slope)
            np.testing.assert_array_equal(masked, 0, err_msg="/".join(path))
        # And what two towers are said to read, both do, units that are off aside.
        both = np.all(towers[:2], axis=0)
        if both.any() and path[-1] == "kernel":
            for _, slope in each[:2]:
                assert np.any(np.where(both, slope, 0)), path


OPTIONS: dict[str, dict[str, Any]] = {
    "uncertainty": {"task_weights": "uncertainty", "ranking": "pwiser"},
    "pcgrad": {"gradients": "pcgrad", "ranking": "pwiser", "constraint": "aitm"},
    "both": {"task_weights": "uncertainty", "gradients": "pcgrad"},
}


def setup(loss: LossConfig, name: str = "mmoe") -> tuple[Any, Any, Any, Hyper]:
    """A model, an objective, a state at step 0 and the numbers of a step."""
    model = replace(SMALL, name=name, dropout=0.0)
    objective, weights = objectives.build(loss, SCHEMA.labels, model.cvr_space)
    spec = StepSpec(model=model, schema=SCHEMA, objective=objective)
    state = jax.jit(lambda: initial_state(spec, 0))()
    hyper = Hyper(seed=3, learning_rate=1e-3, l2=1e-6, weights=weights)
    return model, objective, state, hyper


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.usefixtures("four_devices")
def test_four_devices_equal_one(name: str) -> None:
    model, objective, state, hyper = setup(LossConfig(**OPTIONS[name]))
    batch = make_batch(53, padding=3)
    one = jax.jit(step_of(model, objective))
    four = jax.pmap(
        step_of(model, objective, AXIS),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=0,
    )
    expected, losses = gradients(one, state, batch, hyper)
    got, several = gradients(four, state, split_rows(batch, 4), hyper)
    np.testing.assert_allclose(several["loss"], [losses["loss"]] * 4, rtol=1e-5)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))

    def same(a: np.ndarray, b: np.ndarray) -> None:
        for device in range(4):
            np.testing.assert_allclose(b[device], a, rtol=1e-4, atol=1e-5 * largest)

    jax.tree.map(same, expected, got)


def test_a_step_projects_the_gradients_of_shared_parameters() -> None:
    """Against the gradients of the tasks, each taken alone, in float64."""
    model, objective, state, hyper = setup(LossConfig(gradients="pcgrad"))
    # Tasks of opposite labels are in conflict.
    batch = make_batch(53)
    batch.labels[:, 1] = batch.labels[:, 0]
    towers = {k: np.array(v) for k, v in state.params["towers"]["out"].items()}
    for leaf in towers.values():
        leaf[1] = -leaf[0]
    hidden = jax.tree.map(
        lambda x: jnp.stack([x[0], x[0]]), state.params["towers"]["hidden"]
    )
    gates = jax.tree.map(lambda x: jnp.stack([x[0], x[0]]), state.params["gates"])
    params = state.params | {"towers": {"hidden": hidden, "out": towers}}
    state = state._replace(params=params | {"gates": gates})
    got, _ = gradients(jax.jit(step_of(model, objective)), state, batch, hyper)

    def alone(task: str) -> Any:
        def loss(params: Any) -> Any:
            module = StepSpec(model=model, schema=SCHEMA, objective=objective).module()
            logits, _ = module.apply(
                {"params": params, "batch_stats": state.batch_stats},
                batch.inputs,
                train=True,
                mask=batch.mask,
                mutable=["batch_stats"],
            )
            return objective.terms_of(logits, batch, hyper.weights)[0].tasks[task]

        return jax.grad(loss)(state.params)

    each = [alone(task) for task in ("ctr", "ctcvr")]
    shared = ("embedding", "experts")
    flat = np.stack(
        [
            np.concatenate(
                [np.ravel(x) for name in shared for x in jax.tree.leaves(tree[name])]
            ).astype(float)
            for tree in each
        ]
    )
    assert flat[0] @ flat[1] < 0
    expected = surgery(flat, [range(2)] * 2)
    actual = np.concatenate(
        [np.ravel(x) for name in shared for x in jax.tree.leaves(got[name])]
    )
    decay = np.concatenate(
        [np.ravel(x) for name in shared for x in jax.tree.leaves(params[name])]
    )
    np.testing.assert_allclose(
        actual, expected + 1e-6 * decay, rtol=1e-3, atol=1e-5 * np.abs(expected).max()
    )
    for name in ("towers", "gates"):
        own = jax.tree.map(lambda a, b: a + b, each[0][name], each[1][name])
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            got[name],
            own,
        )


def test_learned_weights_have_no_l2() -> None:
    model, objective, state, hyper = setup(LossConfig(task_weights="uncertainty"))
    s = jnp.array([0.5, -0.5])
    params = state.params | {TASK_WEIGHTS: {"log_variances": s}}
    state = state._replace(params=params)
    batch = make_batch(53)
    heavy = hyper._replace(l2=10.0)
    got, losses = gradients(jax.jit(step_of(model, objective)), state, batch, heavy)
    each = np.array([losses["bce/ctr"], losses["bce/ctcvr"]])
    np.testing.assert_allclose(
        got[TASK_WEIGHTS]["log_variances"], 0.5 - np.exp(-s) * each, rtol=1e-4
    )
    expected = np.sum(np.exp(-s) * each + s / 2)
    np.testing.assert_allclose(losses["loss"], expected, rtol=1e-5)
    np.testing.assert_allclose(losses["weight/ctr"], np.exp(-0.5), rtol=1e-6)


def test_what_has_no_task_to_be_weighted_with_is_refused() -> None:
    loss = LossConfig(
        ranking="pwiser", lambdas={"cvr": 0.1}, task_weights="uncertainty"
    )
    with pytest.raises(UserError, match="'cvr' has no pointwise loss"):
        objectives.build(loss, SCHEMA.labels, "product")
    with pytest.raises(UserError, match=r"loss\.task_weights uncertainty"):
        objectives.build(
            LossConfig(task_weights="uncertainty"), SCHEMA.labels, "escm2_ips"
        )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pwiser_jax.data.datasets.synthetic import prepare_synthetic

    folder = tmp_path_factory.mktemp("prepared") / "synthetic"
    prepare_synthetic(
        folder, rows=3_000, seed=3, click_rate=0.4, conversion_rate=0.3, valid=0.3
    )
    return folder


def losses_of(run: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(run) if line["kind"] in ("train", "valid")]


def test_both_train_alone_resumed_and_in_a_sweep(data: Path, tmp_path: Path) -> None:
    config = replace(
        small_config(data, train={"epochs": 1, "log_every": 2}),
        loss=LossConfig(ranking="pwiser", lambdas=0.5, **OPTIONS["both"]),
    )
    whole, cut, member, other = (tmp_path / x for x in ("w", "c", "m", "o"))
    train(config, whole, Silent())
    expected = losses_of(whole)
    assert expected[0]["weight/ctr"] != expected[-2]["weight/ctr"]
    with pytest.raises(Interrupted):
        train(config, cut, Silent(), stop_after=5)
    train(config, cut, Silent())
    assert losses_of(cut) == expected
    zero = replace(config, loss=replace(config.loss, lambdas=0.0))
    train_sweep([config, zero], [member, other], Silent())
    for got, line in zip(losses_of(member), expected, strict=True):
        name, rtol = ("loss", 1e-4) if "loss" in line else ("mean_auc", 1e-2)
        assert got[name] == pytest.approx(line[name], rel=rtol)
