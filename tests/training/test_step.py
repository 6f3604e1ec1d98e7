"""The training step: four devices equal one, padding is nothing, one compilation."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytest

from pwiser_jax.config import LossConfig
from pwiser_jax.errors import UserError
from pwiser_jax.losses import ConversionBank
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices.programs import AXIS, split_rows
from pwiser_jax.training.step import Hyper, StepSpec, initial_state
from tests.training.helpers import SMALL
from tests.training.steps import PWISER, SCHEMA, gradients, make_batch, step_of

# Two conversions of the steps before, four places free.
REMEMBERED = ConversionBank(
    np.float32([0.3, 0.2, 0, 0, 0, 0]), np.float32([1, 1, 0, 0, 0, 0])
)


def setup(name: str, space: str, lambdas: float = 0.5) -> tuple[Any, Any, Hyper]:
    model = SMALL.__class__(**{**SMALL.__dict__, "name": name, "cvr_space": space})
    objective, weights = objectives.build(
        LossConfig(ranking="pwiser", lambdas=lambdas, bank=6),
        SCHEMA.labels,
        model.cvr_space,
    )
    hyper = Hyper(seed=3, learning_rate=1e-3, l2=1e-6, weights=weights)
    return model, objective, hyper


def start(model: Any, objective: Any) -> Any:
    spec = StepSpec(model=model, schema=SCHEMA, objective=objective)
    return jax.jit(lambda: initial_state(spec, 0))()


def same_metric(name: str, got: Any, expected: Any) -> None:
    # Where a gradient is rounding alone, Adam's first step is as large as elsewhere.
    rtol = 1e-3 if name == "norm/update" else 1e-5
    np.testing.assert_allclose(got, expected, rtol=rtol, err_msg=name)


@pytest.mark.parametrize(
    ("name", "space"),
    [
        ("single_task", "ctcvr"),
        ("shared_bottom", "ctcvr"),
        ("shared_bottom", "click"),
        ("shared_bottom", "product"),
        ("shared_bottom", "escm2_ips"),
        ("mmoe", "escm2_dr"),
        ("mmoe", "ctcvr"),
        ("ple", "ctcvr"),
    ],
)
def test_four_devices_equal_one(name: str, space: str) -> None:
    model, objective, hyper = setup(name, space)
    batch = make_batch(53, padding=3)
    # The last device holds three rows of padding, the first no conversion.
    batch.labels[:14, 1] = 0
    state = start(model, objective)
    state = state._replace(banks=dict.fromkeys(state.banks, REMEMBERED))
    one = jax.jit(step_of(model, objective))
    four = jax.pmap(
        step_of(model, objective, AXIS),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=0,
    )
    expected, expected_metrics = gradients(one, state, batch, hyper)
    got, metrics = gradients(four, state, split_rows(batch, 4), hyper)
    for name_, value in expected_metrics.items():
        for device in range(4):
            same_metric(name_, metrics[name_][device], value)
    largest = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(expected))

    def same(a: np.ndarray, b: np.ndarray) -> None:
        for device in range(4):  # every device has the global gradient
            np.testing.assert_allclose(b[device], a, rtol=1e-4, atol=1e-5 * largest)

    jax.tree.map(same, expected, got)


def test_padding_changes_nothing() -> None:
    model, objective, hyper = setup("ple", "ctcvr")
    step = jax.jit(step_of(model, objective))
    plain, padded = make_batch(50), make_batch(50, padding=14)
    padded.inputs["numerical"][50:] = 1e3
    state = start(model, objective)
    expected, expected_metrics = gradients(step, state, plain, hyper)
    got, metrics = gradients(step, state, padded, hyper)
    for name, value in expected_metrics.items():
        same_metric(name, metrics[name], value)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6),
        expected,
        got,
    )


def test_what_a_config_varies_compiles_once() -> None:
    traces = 0
    model, objective, _ = setup("shared_bottom", "ctcvr")
    step = step_of(model, objective)

    def counted(*arguments: Any) -> Any:
        nonlocal traces
        traces += 1
        return step(*arguments)

    program = jax.jit(counted)
    batch = make_batch(32)
    state = start(model, objective)
    for lambda_, margin, seed, rate in [(0.1, 0.1, 0, 1e-3), (0.7, 0.3, 5, 1e-2)]:
        objective_, weights = objectives.build(
            LossConfig(
                ranking="pwiser",
                lambdas=lambda_,
                bank=6,
                margins={"conversion>click": margin},
            ),
            SCHEMA.labels,
            "ctcvr",
        )
        assert objective_ == objective
        program(state, batch, Hyper(seed, rate, 1e-6 * (1 + seed), weights))
    assert traces == 1


def test_bce_on_conversions_alone_ignores_the_other_rows() -> None:
    objective, weights = objectives.build(
        LossConfig(bce_rows="conversions"), SCHEMA.labels, "ctcvr"
    )
    batch = make_batch(40)
    converted = batch.labels[:, 1] == 1
    rng = np.random.default_rng(0)
    logits = {name: rng.normal(size=40).astype(np.float32) for name in ("ctr", "ctcvr")}
    value, (_, _) = objective(logits, batch, weights)
    expected = np.mean(
        [np.mean(np.log1p(np.exp(-z[converted]))) for z in logits.values()]
    )
    np.testing.assert_allclose(value, expected, rtol=1e-5)


def test_rows_weigh_in_the_cross_entropy_and_not_in_the_pairs() -> None:
    objective, weights = objectives.build(
        LossConfig(ranking="pwiser", lambdas=0.5), SCHEMA.labels, "ctcvr"
    )
    batch = make_batch(40)
    rng = np.random.default_rng(0)
    logits = {name: rng.normal(size=40).astype(np.float32) for name in ("ctr", "ctcvr")}
    w = rng.uniform(0.1, 2, 40).astype(np.float32)
    _, (plain, _) = objective(logits, batch, weights)
    _, (parts, _) = objective(logits, batch._replace(weights=w), weights)
    for at, name in enumerate(("ctr", "ctcvr")):
        sign = 2 * batch.labels[:, at] - 1
        each = np.log1p(np.exp(-sign * logits[name]))
        expected = np.sum(w * each) / w.sum()
        np.testing.assert_allclose(parts[f"bce/{name}"], expected, rtol=1e-5)
        np.testing.assert_array_equal(parts[f"pwiser/{name}"], plain[f"pwiser/{name}"])


def test_lambda_weighs_each_head_and_tasks_are_averaged() -> None:
    rng = np.random.default_rng(1)
    batch = make_batch(40)
    logits = {name: rng.normal(size=40).astype(np.float32) for name in ("ctr", "ctcvr")}
    objective, weights = objectives.build(
        LossConfig(ranking="pwiser", lambdas={"ctr": 0.25, "ctcvr": 2.0}),
        SCHEMA.labels,
        "ctcvr",
    )
    value, (parts, _) = objective(logits, batch, weights)
    ctr = parts["bce/ctr"] + 0.25 * parts["pwiser/ctr"]
    ctcvr = parts["bce/ctcvr"] + 2.0 * parts["pwiser/ctcvr"]
    np.testing.assert_allclose(value, (ctr + ctcvr) / 2, rtol=1e-6)
    assert parts["pwiser/ctr"] > 0


def balanced(
    axis_name: str | None = None, **options: Any
) -> Callable[..., tuple[Any, Any]]:
    """(logits, batch) -> ((loss, parts), gradient) at lambda 0.7."""
    loss = LossConfig(ranking="pwiser", lambdas=0.7, normalize="balanced", **options)
    objective, weights = objectives.build(loss, SCHEMA.labels, "ctcvr")

    def value(logits: Any, batch: Any) -> Any:
        loss, (parts, _) = objective(logits, batch, weights, axis_name=axis_name)
        return loss, parts

    return jax.value_and_grad(value, has_aux=True)


def random_logits(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {
        name: rng.normal(-2, 1, rows).astype(np.float32) for name in ("ctr", "ctcvr")
    }


@pytest.mark.parametrize("pairs", ["broadcast", "sorted"])
def test_balanced_losses_pull_as_lambda_says(pairs: Any) -> None:
    batch, logits = make_batch(40), random_logits(40)
    given = logits, batch
    plain, weights = objectives.build(
        LossConfig(ranking="pwiser", lambdas=1.0), SCHEMA.labels, "ctcvr"
    )

    def gradient(kind: str) -> dict[str, np.ndarray]:
        def loss(logits: Any) -> Any:
            _, (parts, _) = plain(logits, batch, weights)
            return sum(part for name, part in parts.items() if name.startswith(kind))

        return jax.grad(loss)(logits)

    of_bce, of_pwiser = gradient("bce"), gradient("pwiser")
    (value, parts), found = balanced(pairs=pairs)(*given)
    total = 0.0
    for name in logits:
        norms = [float(np.linalg.norm(g[name])) for g in (of_bce, of_pwiser)]
        lambda_ = 0.7 * norms[0] / norms[1]
        np.testing.assert_allclose(parts[f"lambda/{name}"], lambda_, rtol=1e-5)
        total += parts[f"bce/{name}"] + lambda_ * parts[f"pwiser/{name}"]
        # The ratio is a constant to the gradient.
        expected = (of_bce[name] + lambda_ * of_pwiser[name]) / 2
        np.testing.assert_allclose(found[name], expected, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(value, total / 2, rtol=1e-5)


def test_without_pairs_balanced_lambda_is_zero() -> None:
    batch, logits = make_batch(40), random_logits(40)
    batch.labels[:, 1] = 0
    (value, parts), gradient = balanced()(logits, batch)
    assert parts["lambda/ctr"] == parts["lambda/ctcvr"] == 0
    np.testing.assert_allclose(
        value, (parts["bce/ctr"] + parts["bce/ctcvr"]) / 2, rtol=1e-6
    )
    assert all(np.isfinite(g).all() and np.any(g) for g in gradient.values())


def test_balance_is_that_of_all_devices() -> None:
    batch, logits = make_batch(37, padding=3), random_logits(40)
    batch.labels[:10, 1] = 0  # the first device has no conversion
    given = logits, batch
    (value, parts), expected = balanced()(*given)
    split = jax.tree.map(lambda x: x.reshape(4, 10, *x.shape[1:]), given)
    (values, all_parts), found = jax.pmap(balanced(AXIS), AXIS)(*split)
    np.testing.assert_allclose(values, [value] * 4, rtol=1e-5)
    for name, part in parts.items():
        np.testing.assert_allclose(all_parts[name], [part] * 4, rtol=1e-5)
    for name, gradient in expected.items():
        # The mean over devices is that of the whole batch.
        got = found[name].reshape(40) / 4
        np.testing.assert_allclose(got, gradient, rtol=1e-4, atol=1e-8)


PARTS_OF_A_UNION = {
    "bce": PWISER,
    "both": LossConfig(ranking="pwiser", lambdas=0.3),
    "one_head": LossConfig(
        ranking="pwiser", lambdas={"ctcvr": 2.0}, margins={"conversion>click": 0.4}
    ),
    "one_term": LossConfig(
        ranking="pwiser", lambdas=0.3, margins={"conversion>exposure": None}
    ),
    "lower_rung": LossConfig(
        ranking="pwiser",
        lambdas=0.3,
        margins={
            "click>exposure": 0.2,
            "conversion>click": None,
            "conversion>exposure": None,
        },
    ),
}


@pytest.mark.parametrize("without_conversions", [False, True])
def test_a_union_of_objectives_is_each_of_them(without_conversions: bool) -> None:
    batch = make_batch(40)
    if without_conversions:
        batch.labels[:, 1] = 0
    rng = np.random.default_rng(2)
    logits = {name: rng.normal(size=40).astype(np.float32) for name in ("ctr", "ctcvr")}
    built = [
        objectives.build(loss, SCHEMA.labels, "ctcvr")
        for loss in PARTS_OF_A_UNION.values()
    ]
    whole, all_weights = objectives.union(built)
    assert objectives.union(built[:1]) == (built[0][0], [built[0][1]])

    def value_and_gradient(objective: Any, weights: Any) -> Any:
        def loss(logits: Any) -> Any:
            value, (parts, _) = objective(logits, batch, weights)
            return value, parts

        return jax.value_and_grad(loss, has_aux=True)(logits)

    for (objective, own), weights in zip(built, all_weights, strict=True):
        (expected, parts), gradient = value_and_gradient(objective, own)
        (got, got_parts), got_gradient = value_and_gradient(whole, weights)
        np.testing.assert_allclose(got, expected, rtol=1e-6)
        for name, part in parts.items():
            np.testing.assert_allclose(got_parts[name], part, rtol=1e-6)
        largest = max(float(np.abs(x).max()) for x in gradient.values())
        for name, x in gradient.items():
            np.testing.assert_allclose(got_gradient[name], x, atol=1e-6 * largest)


def test_what_cannot_be_one_objective_is_refused() -> None:
    def built(**options: Any) -> Any:
        return objectives.build(
            LossConfig(ranking="pwiser", **options), SCHEMA.labels, "ctcvr"
        )

    lower = PARTS_OF_A_UNION["lower_rung"].margins
    for a, b in [
        (built(lambdas=1.0), built(lambdas=1.0, gate="literal")),
        (built(lambdas=1.0, bank=4), built(lambdas=1.0, bank=4, margins=lower)),
    ]:
        with pytest.raises(ValueError, match="no union"):
            objectives.union([a, b])


@pytest.mark.parametrize(
    ("loss", "word"),
    [
        (LossConfig(ranking="pwiser", lambdas={"cvr": 0.1}), "cvr"),
        (
            LossConfig(
                ranking="pwiser", lambdas=0.1, margins={"click>conversion": 0.1}
            ),
            "click>conversion",
        ),
        (
            LossConfig(ranking="pwiser", lambdas=0.1, margins={"cart>click": 0.1}),
            "cart>click",
        ),
    ],
)
def test_names_that_do_not_exist_are_refused(loss: LossConfig, word: str) -> None:
    with pytest.raises(UserError, match=word):
        objectives.build(loss, SCHEMA.labels, "ctcvr")


def test_a_head_without_a_cross_entropy_has_nothing_to_be_balanced_with() -> None:
    loss = LossConfig(ranking="pwiser", lambdas={"ctcvr": 0.1}, normalize="balanced")
    with pytest.raises(UserError, match="'ctcvr' has no pointwise loss"):
        objectives.build(loss, SCHEMA.labels, "click")
