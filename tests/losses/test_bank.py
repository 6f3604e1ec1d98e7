"""The conversion bank: the newest conversions, constants, the same on all devices."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax import ladder_loss, pwiser_loss
from pwiser_jax.losses import conversion_bank, update_bank
from tests.losses.data import FORMS, labels, scores

SIZE = 24
CLICKS, CONVERSIONS = labels(SIZE)


def batches(count):
    rng = np.random.default_rng(0)
    for seed in range(count):
        conversions = rng.random(SIZE) < (0.0, 0.1, 0.6)[seed % 3]
        yield scores("random", SIZE, seed), conversions, rng.random(SIZE) < 0.8


@pytest.mark.parametrize("capacity", [1, 5, 40])
def test_keeps_the_newest_conversions(capacity):
    bank, remembered = conversion_bank(capacity), []
    update = jax.jit(update_bank)
    for s, conversions, where in batches(7):
        s[conversions & where] += np.where(np.arange(SIZE) % 7 == 3, np.nan, 0)[
            conversions & where
        ]
        bank = update(bank, s, conversions, where=where)
        new = s[conversions & where & np.isfinite(s)].tolist()
        remembered = (new + remembered)[:capacity]
        count = len(remembered)
        np.testing.assert_array_equal(bank.weights, np.arange(capacity) < count)
        np.testing.assert_array_equal(bank.scores[:count], np.float32(remembered))
        np.testing.assert_array_equal(bank.scores[count:], 0)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("conversions", [CONVERSIONS, np.zeros(SIZE, int)])
def test_is_further_conversions_without_a_gradient(form, conversions):
    s, past = scores("random", SIZE), np.float32([0.2, 0.7, 0.4])
    bank = update_bank(conversion_bank(5), past, np.ones(3))
    value, gradient = jax.value_and_grad(
        lambda s: pwiser_loss(s, CLICKS, conversions, bank=bank, pairs=form)
    )(s)

    def joined(s):
        both = jnp.concatenate([s, past])
        ones = np.ones(3, int)
        return pwiser_loss(
            both, np.append(CLICKS, ones), np.append(conversions, ones), pairs=form
        )

    expected, slopes = jax.value_and_grad(joined)(s)
    assert expected > 0
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, slopes, rtol=1e-5, atol=1e-8)
    into_the_past = jax.grad(
        lambda past: pwiser_loss(
            s, CLICKS, conversions, bank=bank._replace(scores=past), pairs=form
        )
    )(bank.scores)
    np.testing.assert_array_equal(into_the_past, 0)


def test_belongs_to_the_highest_level_alone():
    s, levels = scores("random", SIZE), np.random.default_rng(0).integers(0, 4, SIZE)
    bank = update_bank(conversion_bank(2), np.float32([0.1, 0.2]), np.ones(2))
    loss = partial(ladder_loss, s, levels, bank=bank)
    lower, upper = {(2, 1): 0.1}, {(3, 0): 0.3}
    alone = ladder_loss(s, levels, lower, where=levels <= 2)
    np.testing.assert_allclose(
        loss({**lower, **upper}) - loss(upper), alone, rtol=0, atol=1e-6
    )


@pytest.mark.usefixtures("four_devices")
def test_is_that_of_the_whole_batch_on_every_device():
    bank = update_bank(conversion_bank(9), np.float32([0.5]), np.ones(1))
    rows = next(b for k, b in enumerate(batches(3)) if k == 2)
    expected = update_bank(bank, rows[0], rows[1], where=rows[2])
    shards = [row.reshape(4, -1) for row in rows]

    def step(bank, s, conversions, where):
        return update_bank(bank, s, conversions, where=where, axis_name="devices")

    actual = jax.pmap(step, axis_name="devices", in_axes=(None, 0, 0, 0))(bank, *shards)
    for name, array in expected._asdict().items():
        for device in range(4):
            np.testing.assert_array_equal(getattr(actual, name)[device], array)


def test_wrong_arguments_are_named():
    bank = conversion_bank(3)
    with pytest.raises(ValueError, match="capacity"):
        conversion_bank(0)
    with pytest.raises(ValueError, match="bank"):
        pwiser_loss(
            scores("random", SIZE), CLICKS, CONVERSIONS, bank=bank, segments=CLICKS
        )
    with pytest.raises(AssertionError, match="conversions"):
        update_bank(bank, scores("random", SIZE), CONVERSIONS[:3])
