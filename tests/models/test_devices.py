"""Padding changes nothing; many devices equal one; many runs equal each alone."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from pwiser_jax.models import build
from tests.models.data import make_inputs, make_schema, make_variables, tiny

pytestmark = pytest.mark.usefixtures("four_devices")

DEVICES, PER_DEVICE = 4, 6
REAL_ROWS = (6, 3, 1, 0)  # of each device: one holds nothing but padding
MASK = np.concatenate([np.arange(PER_DEVICE) < n for n in REAL_ROWS])
ROWS = np.arange(DEVICES * PER_DEVICE, dtype=np.uint32)
SCHEMA = make_schema(labels=("click", "conversion"))
# A stack of layers and lone ones; few, because each way compiles all of it again.
CONFIG = tiny("mmoe", expert=(4,), dropout=0.3)
KEY = jax.random.key(7)


def padded_batch():
    inputs = make_inputs(SCHEMA, len(MASK))
    inputs["numerical"][~MASK] = np.nan
    random = np.random.default_rng(1)
    labels = random.integers(0, 2, (len(MASK), 2)).astype(np.float32)
    return {"inputs": inputs, "labels": labels, "mask": MASK, "rows": ROWS}


def step(model, variables, batch, key):
    """Loss, logits and new statistics; loss and counts are global with an axis."""
    logits, state = model.apply(
        variables,
        batch["inputs"],
        train=True,
        mask=batch["mask"],
        rows=batch["rows"],
        rngs={"dropout": key},
        mutable=["batch_stats"],
    )
    together = jnp.stack(list(logits.values()), axis=1)
    losses = jax.nn.softplus(together) - together * batch["labels"]
    mask = batch["mask"]
    total, count = jnp.where(mask[:, None], losses, 0).sum(), mask.sum()
    if model.axis_name is not None:
        total, count = jax.lax.psum((total, count), model.axis_name)
    return total / count, (together, state["batch_stats"])


def gradients(model, variables, batch, key):
    def loss(params):
        return step(model, {**variables, "params": params}, batch, key)

    (value, (logits, stats)), grads = jax.value_and_grad(loss, has_aux=True)(
        variables["params"]
    )
    return {"loss": value, "stats": stats, "grads": grads}, logits


def pmapped(model, variables, batch):
    def local(variables, batch):
        out, logits = gradients(model, variables, batch, KEY)
        return {**out, "grads": jax.lax.pmean(out["grads"], "batch")}, logits

    shards = jax.tree.map(lambda x: x.reshape(DEVICES, PER_DEVICE, *x.shape[1:]), batch)
    out, logits = jax.pmap(local, "batch", in_axes=(None, 0))(variables, shards)
    for leaf in jax.tree.leaves(out):
        np.testing.assert_array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape))
    return jax.tree.map(lambda x: x[0], out), logits.reshape(len(MASK), -1)


def sharded(model, variables, batch, check_vma):
    def local(variables, batch):
        out, logits = gradients(model, variables, batch, KEY)
        if not check_vma:  # otherwise shard_map has added the devices' shares already
            out["grads"] = jax.lax.pmean(out["grads"], "batch")
        return out, logits

    mesh = Mesh(np.array(jax.devices()), ("batch",))
    share = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(P(), P("batch")),
        out_specs=(P(), P("batch")),
        check_vma=check_vma,
    )
    return jax.jit(share)(variables, batch)


WAYS = {
    "one device, padded": lambda model, *args: jax.jit(partial(gradients, model))(
        *args, KEY
    ),
    "pmap": pmapped,
    "shard_map": partial(sharded, check_vma=True),
    "shard_map, check_vma=False": partial(sharded, check_vma=False),
}


@pytest.fixture(scope="module")
def real_rows_alone():
    """Variables, and the outcome on one device without any padding."""
    model, batch = build(CONFIG, SCHEMA), padded_batch()
    variables = make_variables(model, batch["inputs"])
    real = jax.tree.map(lambda x: x[MASK], batch)
    return variables, jax.jit(partial(gradients, model))(variables, real, KEY)


@pytest.mark.parametrize("way", WAYS)
def test_padding_and_devices_change_nothing(way, real_rows_alone):
    variables, (expected, expected_logits) = real_rows_alone
    axis = None if way == "one device, padded" else "batch"
    model = build(CONFIG, SCHEMA, axis_name=axis)
    out, logits = WAYS[way](model, variables, padded_batch())
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    close(np.asarray(logits)[MASK], expected_logits)
    jax.tree.map(close, out, expected)


def test_no_mask_means_that_all_rows_are_real():
    inputs = make_inputs(SCHEMA, 5)
    model = build(tiny("shared_bottom"), SCHEMA)
    variables = make_variables(model, inputs)
    # Not compiled: knowing that all rows are real, XLA sums in another order.
    apply = partial(model.apply, train=True, mutable=["batch_stats"])
    without = apply(variables, inputs)
    jax.tree.map(
        partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6),
        without,
        apply(variables, inputs, mask=np.ones(5, bool)),
    )


def test_runs_side_by_side_equal_each_alone():
    batch = padded_batch()
    model = build(CONFIG, SCHEMA)
    runs = [make_variables(model, batch["inputs"], seed) for seed in range(3)]
    keys = jax.random.split(KEY, 3)
    run = partial(gradients, model)
    stacked = jax.tree.map(lambda *leaves: np.stack(leaves), *runs)
    together = jax.jit(jax.vmap(run, in_axes=(0, None, 0)))(stacked, batch, keys)
    alone = jax.jit(run)
    close = partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
    for i, (variables, key) in enumerate(zip(runs, keys, strict=True)):
        expected, expected_logits = alone(variables, batch, key)
        out, logits = jax.tree.map(lambda x, i=i: x[i], together)
        jax.tree.map(close, out, expected)
        close(logits[MASK], expected_logits[MASK])
