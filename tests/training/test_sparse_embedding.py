"""Optimizers of the rows in a batch, against a definition in float64."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from pwiser_jax.training.sparse_embedding import distinct, of_rows, update_rows

ROWS, DIM, STEPS = 50, 3, 6
BATCH, COLUMNS = 16, 2
L2 = 0.01
LAZY = ["lazy_adam", "rowwise_adagrad"]


def batches(rows: int = ROWS, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Ids [STEPS, B, L] of 30 rows at most, a quarter of them padding, and slopes."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 35, (STEPS, BATCH, COLUMNS))
    ids[rng.random(ids.shape) < 0.25] = rows
    return ids.astype(np.int32), rng.normal(size=(*ids.shape, DIM)).astype(np.float32)


def start() -> np.ndarray:
    return np.random.default_rng(1).normal(size=(ROWS, DIM)).astype(np.float32)


def train(
    embedding: Any,
    table: jax.Array,
    ids: jax.Array,
    slopes: jax.Array,
    rate: Any,
    axis_name: str | None = None,
) -> tuple[jax.Array, Any]:
    """The table and state after steps on the loss sum slope . vector, in one scan."""
    transformation = of_rows(embedding)
    assert transformation is not None

    def step(carry: Any, batch: Any) -> tuple[Any, None]:
        table, state, count = carry
        ids, slopes = batch
        which = distinct(ids, axis_name)

        def loss(rows: jax.Array) -> jax.Array:
            return jnp.sum(rows[which.places] * slopes)

        grads = jax.grad(loss)(which.read(table))
        if axis_name is not None:
            grads = jax.lax.psum(grads, axis_name)
        table, state, _ = update_rows(
            transformation, which, grads, table, state, count, rate, L2
        )
        return (table, state, count + 1), None

    carry = table, transformation.init(table), jnp.ones((), jnp.int32)
    (table, state, _), _ = jax.lax.scan(step, carry, (ids, slopes))
    return table, state


def definition(
    embedding: str, table: Any, ids: np.ndarray, slopes: np.ndarray, rate: float
) -> tuple[np.ndarray, list[np.ndarray]]:
    """Row by row in float64."""
    table = np.float64(table)
    mu, nu, total = np.zeros_like(table), np.zeros_like(table), np.zeros(len(table))
    for t, (names, slope) in enumerate(zip(ids, slopes, strict=True), start=1):
        for row in set(names[names < len(table)].tolist()):
            g = np.float64(slope[names == row]).sum(0) + L2 * table[row]
            if embedding == "lazy_adam":
                mu[row] = 0.9 * mu[row] + 0.1 * g
                nu[row] = 0.999 * nu[row] + 0.001 * g**2
                m, v = mu[row] / (1 - 0.9**t), nu[row] / (1 - 0.999**t)
                table[row] -= rate * m / (np.sqrt(v) + 1e-8)
            else:
                total[row] += np.mean(g**2)
                table[row] -= rate * g / (np.sqrt(total[row]) + 1e-8)
    return table, [mu, nu] if embedding == "lazy_adam" else [total]


@pytest.mark.parametrize("embedding", LAZY)
def test_equals_the_definition(embedding: str) -> None:
    ids, slopes = batches()
    table, state = jax.jit(partial(train, embedding))(start(), ids, slopes, 0.1)
    expected, moments = definition(embedding, start(), ids, slopes, 0.1)
    np.testing.assert_allclose(table, expected, rtol=1e-5, atol=1e-5)
    for got, moment in zip(state, moments, strict=True):
        np.testing.assert_allclose(got, moment, rtol=1e-4, atol=1e-6)
    unread = np.setdiff1d(np.arange(ROWS), ids)
    assert 20 <= len(unread) < ROWS
    np.testing.assert_array_equal(np.asarray(table)[unread], start()[unread])
    for moment in state:
        assert not np.asarray(moment)[unread].any()


@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize("embedding", LAZY)
def test_runs_side_by_side_and_devices(embedding: str) -> None:
    ids, slopes = batches()
    rates = np.float32([0.1, 0.02])
    both, _ = jax.jit(
        jax.vmap(partial(train, embedding), in_axes=(None, None, None, 0))
    )(start(), ids, slopes, rates)
    for rate, got in zip(rates, both, strict=True):
        expected, _ = definition(embedding, start(), ids, slopes, float(rate))
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)

    def cut(x: np.ndarray) -> np.ndarray:
        return x.reshape(STEPS, 4, BATCH // 4, *x.shape[2:]).swapaxes(0, 1)

    devices, _ = jax.pmap(
        partial(train, embedding, axis_name="devices"),
        axis_name="devices",
        in_axes=(None, 0, 0, None),
    )(start(), cut(ids), cut(slopes), rates[0])
    for device in devices:
        np.testing.assert_allclose(device, both[0], rtol=1e-5, atol=1e-5)


def test_lazy_adam_is_adam_where_every_row_is_read() -> None:
    rng = np.random.default_rng(2)
    ids = np.stack([rng.permutation(ROWS) for _ in range(STEPS)])[:, :, None]
    ids = np.concatenate([ids, ids[:, ::-1]], axis=2).astype(np.int32)
    slopes = rng.normal(size=(*ids.shape, DIM)).astype(np.float32)
    got, _ = jax.jit(partial(train, "lazy_adam"))(start(), ids, slopes, 0.1)
    adam = optax.chain(
        optax.add_decayed_weights(L2),
        optax.scale_by_adam(),
        optax.scale_by_learning_rate(0.1),
    )
    table: Any = jnp.asarray(start())
    state = adam.init(table)
    for names, slope in zip(ids, slopes, strict=True):
        grads = np.zeros((ROWS, DIM), np.float32)
        np.add.at(grads, names, slope)
        updates, state = adam.update(jnp.asarray(grads), state, table)
        table = optax.apply_updates(table, updates)
    np.testing.assert_allclose(got, table, rtol=1e-5, atol=1e-5)
