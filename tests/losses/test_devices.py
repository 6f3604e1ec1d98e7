"""The whole batch's loss and gradient on four devices, under every way to map.

One device has most conversions, one has none, one has no valid row. Gradients are those
of a model's parameters, as a training step takes them.
"""

import math
import re
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from pwiser_jax import (
    bce_loss,
    bce_ranknet_loss,
    escm2_dr_loss,
    escm2_ips_loss,
    focal_bce_loss,
    jrc_loss,
    label_constraint_loss,
    ladder_loss,
    pwiser_loss,
)
from pwiser_jax.losses import positives
from tests.losses.data import FORMS

pytestmark = pytest.mark.usefixtures("four_devices")

DEVICES, LOCAL = 4, 12
SIZE = DEVICES * LOCAL


def batch():
    """Inputs, labels and row options; arrays with one entry a row."""
    rng = np.random.default_rng(0)
    device = np.arange(SIZE) // LOCAL
    rate = np.array([0.6, 0.0, 0.3, 0.1])[device]
    conversions = rng.random(SIZE) < rate
    counts = (device != 2) & (rng.random(SIZE) < 0.9)
    inputs = rng.normal(size=(SIZE, 3)).astype(np.float32)
    return {
        "inputs": np.where(device[:, None] == 2, np.float32(1e30), inputs),
        "clicks": conversions | (rng.random(SIZE) < 0.4),
        "conversions": conversions,
        "levels": rng.integers(0, 4, SIZE),
        "where": counts,
        "weights": rng.integers(1, 5, SIZE).astype(np.float32) / 2,
        "segments": rng.integers(0, 3, SIZE),
    }


def losses(parameters, rows, form, axis_name):
    """Each loss with its gradient by the parameters, before any collective on these.

    The losses that sum pairs in a form, or, without one, the others.
    """
    options = {"where": rows["where"], "axis_name": axis_name}
    weighted = {"weights": rows["weights"], **options}
    grouped = {"segments": rows["segments"], **weighted}

    def outputs(p):
        return rows["inputs"] @ p["w"] + p["b"][None]

    def logits(p):
        return outputs(p)[:, 0]

    def pwiser(p, **choice):
        return pwiser_loss(
            jax.nn.sigmoid(logits(p)),
            rows["clicks"],
            rows["conversions"],
            pairs=form,
            **choice,
        )

    def ladder(p, **choice):
        margins = {(3, 2): 0.5, (3, 0): 1.0, (2, 1): 0.5}
        return ladder_loss(logits(p), rows["levels"], margins, pairs=form, **choice)

    def of_clicks(loss, **choice):
        return lambda p: loss(logits(p), rows["clicks"], **choice)

    each = {
        "pwiser": partial(pwiser, **options),
        "pwiser of groups": partial(pwiser, normalize="negatives", **grouped),
        "ladder, sum": partial(ladder, normalize="none", **grouped),
    }
    others = {
        "bce": of_clicks(bce_loss, **options),
        "weighted bce": of_clicks(bce_loss, **weighted),
        "focal": of_clicks(focal_bce_loss, **weighted),
        "bce and ranknet": of_clicks(bce_ranknet_loss, **options),
        "bce and ranknet of groups": of_clicks(bce_ranknet_loss, **grouped),
        "jrc": lambda p: jrc_loss(outputs(p), rows["clicks"], **options),
        "jrc of groups": lambda p: jrc_loss(outputs(p), rows["clicks"], **grouped),
        "escm2 ips": lambda p: escm2_ips_loss(
            outputs(p), rows["clicks"], rows["conversions"], **weighted
        ),
        "escm2 dr": lambda p: escm2_dr_loss(
            jnp.concatenate([outputs(p), outputs(p)[:, :1]], axis=1),
            rows["clicks"],
            rows["conversions"],
            **weighted,
        ),
        "label constraint": lambda p: label_constraint_loss(
            jax.nn.sigmoid(outputs(p)), **weighted
        ),
    }
    return {
        name: jax.value_and_grad(loss)(parameters)
        for name, loss in (each if form else others).items()
    }


def local_losses(parameters, rows, form):
    """What each device does: gradients of its losses, then their mean."""
    return {
        name: (value, jax.lax.pmean(gradient, "devices"))
        for name, (value, gradient) in losses(parameters, rows, form, "devices").items()
    }


def with_pmap(form):
    def run(parameters, rows):
        shards = jax.tree.map(lambda x: x.reshape(DEVICES, LOCAL, *x.shape[1:]), rows)
        step = partial(local_losses, form=form)
        return jax.pmap(step, axis_name="devices", in_axes=(None, 0))(
            parameters, shards
        )

    return run


def with_shard_map(form, check_vma):
    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("devices",))
    rows, everywhere = PartitionSpec("devices"), PartitionSpec()

    def step(parameters, rows):
        # A device axis in the output shows each device's own result.
        results = local_losses(parameters, rows, form)
        return jax.tree.map(lambda x: x[None], results)

    return jax.jit(
        jax.shard_map(
            step,
            mesh=mesh,
            in_specs=(everywhere, rows),
            out_specs=rows,
            check_vma=check_vma,
        )
    )


MAPPED = {
    "pmap": with_pmap,
    "shard_map": partial(with_shard_map, check_vma=True),
    "shard_map without vma": partial(with_shard_map, check_vma=False),
}
PARAMETERS = {
    "w": np.array([[0.5, 0.1], [-1.0, 0.3], [0.25, -0.5]], np.float32),
    "b": np.array([0.1, -0.1], np.float32),
}


@cache
def on_one_device(form):
    return jax.jit(partial(losses, form=form, axis_name=None))(PARAMETERS, batch())


@pytest.mark.parametrize(
    ("form", "packs"), [*((form, {}) for form in (*FORMS, None)), ("sorted", {3: 0})]
)
@pytest.mark.parametrize("mapped", MAPPED.values(), ids=MAPPED.keys())
def test_four_devices_equal_one(mapped, form, packs, monkeypatch):
    """Also where devices exchange packs of four rows, which hold the positives of some
    of the ladder's levels and not those of others."""
    monkeypatch.setattr(positives, "PACKS", packs)
    rows = batch()
    run = mapped(form)
    results = run(PARAMETERS, rows)
    for name, (value, gradient) in on_one_device(form).items():
        values, gradients = results[name]
        np.testing.assert_allclose(values, np.full(DEVICES, value), rtol=2e-6)
        # A common shift changes no pair: the gradient of b may be rounding only.
        largest = max(np.abs(x).max() for x in gradient.values())
        for parameter, one in gradient.items():
            for device in range(DEVICES):
                np.testing.assert_allclose(
                    gradients[parameter][device],
                    one,
                    rtol=0,
                    atol=5e-6 * largest,
                    err_msg=f"{name} {parameter}",
                )
    # A bad row of one device that counts, then no row that counts on any.
    bad = dict(rows, inputs=rows["inputs"].copy())
    bad["inputs"][np.argmax(rows["where"])] = np.nan
    for value, _ in run(PARAMETERS, bad).values():
        assert np.isnan(value).all()
    nothing = dict(rows, where=np.zeros(SIZE, bool))
    for result in jax.tree.leaves(run(PARAMETERS, nothing)):
        np.testing.assert_array_equal(result, 0)


@pytest.mark.parametrize("check_vma", [True, False])
def test_gradient_of_a_mapped_loss(check_vma):
    """The gradient taken outside of the map, by the scores."""
    rows = batch()
    s = jax.nn.sigmoid(np.random.default_rng(1).normal(size=SIZE)).astype(jnp.float32)
    data = rows["clicks"], rows["conversions"], rows["where"]

    def loss(s, clicks, conversions, where, axis_name=None):
        return pwiser_loss(s, clicks, conversions, where=where, axis_name=axis_name)

    mapped = jax.shard_map(
        partial(loss, axis_name="devices"),
        mesh=Mesh(np.array(jax.devices()[:DEVICES]), ("devices",)),
        in_specs=PartitionSpec("devices"),
        out_specs=PartitionSpec(),
        check_vma=check_vma,
    )
    value, gradient = jax.jit(jax.value_and_grad(mapped))(s, *data)
    expected = jax.value_and_grad(loss)(s, *data)
    np.testing.assert_allclose(value, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], rtol=1e-5, atol=1e-9)


COLLECTIVES = r"= (.*?) (all-gather|reduce-scatter|all-reduce|all-to-all)(?:-start)?\("


def exchanged(text):
    """Bytes of the results of the collectives in some lines of a compiled program."""
    sizes = {"f32": 4, "s32": 4, "u32": 4, "pred": 1, "s8": 1}
    total = 0
    for results, _ in re.findall(COLLECTIVES, text):
        for dtype, shape in re.findall(r"(\w+)\[([\d,]*)\]", results):
            total += sizes[dtype] * math.prod(map(int, filter(None, shape.split(","))))
    return total


def test_devices_exchange_conversions_and_not_the_batch():
    """From the compiled program of a batch of 2^20 rows, 2^18 a device."""
    size = 2**20

    def step(s, clicks, conversions):
        return jax.value_and_grad(
            lambda s: pwiser_loss(s, clicks, conversions, axis_name="devices")
        )(s)

    rows, everywhere = PartitionSpec("devices"), PartitionSpec()
    mapped = jax.shard_map(
        step,
        mesh=Mesh(np.array(jax.devices()[:DEVICES]), ("devices",)),
        in_specs=rows,
        out_specs=(everywhere, rows),
    )
    scores = jax.ShapeDtypeStruct((size,), jnp.float32)
    labels = jax.ShapeDtypeStruct((size,), jnp.bool_)
    text = jax.jit(mapped).lower(scores, labels, labels).compile().as_text()
    blocks = {
        match[1]: block
        for block in re.split(r"\n\n+", text)
        if (match := re.match(r"(?:ENTRY )?%?([\w.\-]+)", block.strip()))
    }
    main = next(block for block in blocks.values() if "ENTRY" in block)
    # Outside of the choice of a pack: a count, numerators and denominators.
    assert 0 < exchanged(main) <= 64
    # Each branch of the choice, forward and backward: one for packs of a 64th of the
    # rows, one for an 8th, one for all rows.
    choices = re.findall(r"branch_computations=\{([^}]*)\}", main)
    assert len(choices) == 2
    branches = [choice.replace("%", "").split(", ") for choice in choices]
    for pack, *names in zip((size // 64, size // 8, size), *branches, strict=True):
        # Score and weight of each row of the pack; the gradient comes back in parts.
        actual = sum(exchanged(blocks[name]) for name in names)
        assert actual == 2 * 4 * pack + 4 * pack // DEVICES
