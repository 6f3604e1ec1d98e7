"""Large tables in a training step: exactly the rows read are updated."""

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax.training.devices.programs import (
    AXIS,
    shard,
    split_rows,
    stack,
    train_program,
    unshard,
)
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.loop import train
from pwiser_jax.training.optimizer import Rates, TableState
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from pwiser_jax.training.step import train_step
from tests.data.multi_valued import write_folder
from tests.training.helpers import small_config
from tests.training.large_tables import (
    HYPER,
    MODEL,
    TAGS,
    USERS,
    spec_of,
    start,
    step_of,
    tagged,
)


@pytest.mark.parametrize("name", ["shared_bottom", "single_task"])
def test_a_first_step_is_dense_adam_on_the_rows_read(name: str) -> None:
    model = replace(MODEL, name=name)
    batch, read = tagged(40, padding=8)
    states = {}
    for embedding in ("adam", "lazy_adam"):
        step = step_of(model, embedding)
        states[embedding], losses, _ = jax.jit(step)(
            start(model, embedding), batch, HYPER
        )
        states[embedding + " loss"] = float(losses["loss"])
    assert states["adam loss"] == pytest.approx(states["lazy_adam loss"], rel=1e-6)
    before, dense, lazy = (
        jax.tree.map(np.asarray, state.params)
        for state in (start(model, "adam"), states["adam"], states["lazy_adam"])
    )
    others = np.setdiff1d(np.arange(USERS + TAGS), list(read))
    embeddings = [key for key in before if key.startswith("embedding")]
    assert len(embeddings) == (2 if name == "single_task" else 1)
    for key in embeddings:
        was, by_adam, by_lazy = (p[key].pop("large") for p in (before, dense, lazy))
        assert len(was) == USERS + TAGS
        np.testing.assert_array_equal(by_lazy[others], was[others])
        np.testing.assert_allclose(by_lazy[list(read)], by_adam[list(read)], atol=1e-5)
        assert np.all(np.any(by_lazy != was, axis=1)[list(read)])
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), dense, lazy)


def test_four_devices_equal_one() -> None:
    batch, _ = tagged(53, padding=3)
    # The last step's moments tell its gradients: the parameters of devices that count
    # in another order drift apart by Adam's division.
    state = start(MODEL, "lazy_adam")
    one = jax.jit(step_of(MODEL, "lazy_adam"))
    four = jax.pmap(
        step_of(MODEL, "lazy_adam", AXIS),
        axis_name=AXIS,
        in_axes=(None, 0, None),
        out_axes=0,
    )
    expected, *trees = one(state, batch, HYPER)
    got, *got_trees = four(state, split_rows(batch, 4), HYPER)
    for values, got_values in zip(trees, got_trees, strict=True):
        for name, value in values.items():
            np.testing.assert_allclose(got_values[name], np.full(4, value), rtol=1e-4)
    moments, devices = expected.optimizer.tables, got.optimizer.tables
    assert np.asarray(moments["embedding"].mu).any()
    jax.tree.map(
        lambda a, b: [np.testing.assert_allclose(x, a, atol=1e-6) for x in b],
        moments,
        devices,
    )


@pytest.mark.parametrize("embedding", ["lazy_adam", "rowwise_adagrad"])
def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    embedding: str, tmp_path: Path
) -> None:
    data = write_folder(tmp_path / "folder")
    config = small_config(
        data,
        data={"batch_size": 64, "eval_batch_size": 128},
        model={"name": "shared_bottom"},
        optimizer={"embedding": embedding},
    )
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    result = train(config, whole, Silent())
    with pytest.raises(Interrupted):
        train(config, cut, Silent(), stop_after=13)
    assert train(config, cut, Silent()) == result
    kinds = "train", "valid"
    losses = [
        [line for line in read_metrics(run) if line["kind"] in kinds]
        for run in (whole, cut)
    ]
    assert losses[0] == losses[1]


@pytest.mark.parametrize("embedding", ["adam", "lazy_adam", "rowwise_adagrad"])
def test_the_norm_of_the_update_is_that_of_what_was_added(embedding: Any) -> None:
    batch, _ = tagged(40, padding=8)
    model = replace(MODEL, name="shared_bottom")
    step, state = jax.jit(step_of(model, embedding)), start(model, embedding)
    for _ in range(2):
        before = jax.device_get(state.params)
        state, _, metrics = step(state, batch, HYPER)
        added = jax.tree.map(lambda a, b: a - b, jax.device_get(state.params), before)
        squares = [
            np.sum(np.square(leaf, dtype=float)) for leaf in jax.tree.leaves(added)
        ]
        expected = np.sqrt(np.sum(squares))
        np.testing.assert_allclose(metrics["norm/update"], expected, rtol=1e-4)


def rates(**numbers: float) -> list[float]:
    at = Rates(0.5, 0.0, **numbers).at
    return [float(at(jnp.int32(step))) for step in range(8)]


def test_the_learning_rate_follows_its_schedule() -> None:
    assert rates() == [0.5] * 8
    warm = [0.125, 0.25, 0.375, 0.5, 0.5, 0.5, 0.5, 0.5]
    np.testing.assert_allclose(rates(warmup_steps=4), warm, rtol=1e-6)
    # 4 steps of warmup, then half a cosine over the 4 that remain.
    cosine = [0.25 * (1 + np.cos(np.pi * k / 4)) for k in range(4)]
    got = rates(warmup_steps=4, total_steps=8)
    # 1 + cos cancels at the end: float32 rounds it by an ulp of 1, not of itself.
    ulp = {"rtol": 1e-6, "atol": 0.25 * np.finfo(np.float32).eps}
    np.testing.assert_allclose(got, [*warm[:4], *cosine], **ulp)
    cosine = [0.25 * (1 + np.cos(np.pi * k / 8)) for k in range(8)]
    np.testing.assert_allclose(rates(warmup_steps=0, total_steps=8), cosine, **ulp)


@pytest.mark.parametrize("embedding", ["adam", "lazy_adam"])
def test_clipping_scales_the_gradient_of_all_parameters(embedding: Any) -> None:
    batch, _ = tagged(40, padding=8)
    model = replace(MODEL, name="shared_bottom")
    step, state = jax.jit(step_of(model, embedding)), start(model, embedding)
    hyper = HYPER._replace(l2=0.0)
    plain, _, diagnostics = step(state, batch, hyper)
    norm = float(diagnostics["norm/gradient"])
    for share in (0.25, 2.0):
        clipped, _, after = step(state, batch, hyper._replace(clip_norm=share * norm))
        # The norm that is logged is that before clipping.
        np.testing.assert_allclose(after["norm/gradient"], norm, rtol=1e-6)
        # After one step Adam's first moment is 0.1 g.
        jax.tree.map(
            lambda a, b, share=share: np.testing.assert_allclose(
                b, min(share, 1) * a, rtol=1e-5, atol=1e-9
            ),
            first_moments(plain.optimizer),
            first_moments(clipped.optimizer),
        )


@pytest.mark.parametrize("embedding", ["adam", "lazy_adam"])
def test_the_wide_part_has_an_l2_of_its_own(embedding: Any) -> None:
    batch, read = tagged(40, padding=8)
    model = replace(MODEL, name="shared_bottom", wide=True)
    state = start(model, embedding)
    keys = iter(jax.random.split(jax.random.key(0), 99))
    wide = jax.tree.map(
        lambda x: jax.random.normal(next(keys), x.shape), state.params["wide"]
    )
    state = state._replace(params=state.params | {"wide": wide})
    step = jax.jit(step_of(model, embedding))
    after = {
        l2: jax.device_get(step(state, batch, HYPER._replace(wide_l2=l2))[0])
        for l2 in (None, HYPER.l2, 0.0, 0.5)
    }
    jax.tree.map(np.testing.assert_array_equal, after[None], after[HYPER.l2])
    # After one step Adam's first moment is 0.1 (g + l2 w). Lazy optimizers decay the
    # rows that the batch reads.
    added = jax.tree.map(np.zeros_like, jax.device_get(state.params))
    added["wide"] = jax.tree.map(lambda w: 0.05 * np.asarray(w), wide)
    if embedding == "lazy_adam":
        unread = np.setdiff1d(np.arange(USERS + TAGS), list(read))
        added["wide"]["large"][unread] = 0
    plain, heavy = (merged(first_moments(after[l2].optimizer)) for l2 in (0.0, 0.5))
    jax.tree.map(
        lambda a, b, c: np.testing.assert_allclose(a, b + c, atol=1e-6),
        *(heavy, plain, added),
    )
    four = jax.pmap(
        step_of(model, embedding, AXIS), AXIS, in_axes=(None, 0, None), out_axes=0
    )
    got, *_ = four(state, split_rows(batch, 4), HYPER._replace(wide_l2=0.5))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(b[0], a, atol=1e-6),
        heavy,
        merged(first_moments(got.optimizer)),
    )


def merged(moments: Any) -> dict[str, Any]:
    """Moments by part of the model, those of tables too."""
    if not isinstance(moments, tuple):
        return moments
    others, tables = moments
    large = {name: {"large": table} for name, table in tables.items()}
    return {name: others.get(name, {}) | large.get(name, {}) for name in others}


def test_clipping_of_sharded_tables_is_that_of_one_device() -> None:
    batch, _ = tagged(53, padding=3)
    model = replace(MODEL, name="shared_bottom")
    spec = spec_of(model, "lazy_adam")
    hyper = HYPER._replace(l2=0.0, clip_norm=0.01)
    state = jax.device_get(start(model, "lazy_adam"))
    expected, _, diagnostics = jax.jit(partial(train_step, spec))(state, batch, hyper)
    assert float(diagnostics["norm/gradient"]) > 0.02
    for sharded in (False, True):
        program = train_program(replace(spec, sharded=sharded))
        calls = stack([split_rows(batch, 4)], 1)
        got, _ = program(shard(state, sharded), calls, 1, hyper)
        if sharded:
            got = unshard(got, USERS + TAGS)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-8),
            first_moments(expected.optimizer),
            first_moments(got.optimizer),
        )


def first_moments(state: Any) -> Any:
    """Adam's first moments, of tables too."""
    if isinstance(state, TableState):
        tables = {name: table.mu for name, table in state.tables.items()}
        return state.others[1].mu, tables
    return state[1].mu
