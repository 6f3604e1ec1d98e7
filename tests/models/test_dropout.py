"""Dropout by hash: right rate, independent, and the same on any device."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from pwiser_jax.models.context import Context
from pwiser_jax.models.dropout import Dropout, keep_mask

ROWS = np.arange(1024, dtype=np.uint32)
SHAPE = (3, 1024, 40)


def seeds(*numbers):
    return np.array(numbers, np.uint32)


def mask_of(seed, rate=0.2, rows=ROWS, shape=SHAPE):
    return np.asarray(keep_mask(seed, rows, shape, rate))


def assert_independent(a, b, rate):
    """The share of places where two masks agree is that of independent ones."""
    agree = (1 - rate) ** 2 + rate**2
    deviation = math.sqrt(agree * (1 - agree) / a.size)
    assert abs((a == b).mean() - agree) < 5 * deviation


@pytest.mark.parametrize("seed", [seeds(0, 0), seeds(1, 0), seeds(0x9E3779B9, 77)])
@pytest.mark.parametrize("rate", [0.05, 0.2, 0.5])
def test_share_kept(rate, seed):
    keep = mask_of(seed, rate)
    assert keep.shape == SHAPE
    variance = rate * (1 - rate)
    assert abs(keep.mean() - (1 - rate)) < 5 * math.sqrt(variance / keep.size)
    # Neither rows nor units are kept more evenly, or less, than coins would fall.
    for axis, others in (((0, 2), 3 * 40), (1, 1024)):
        spread = keep.mean(axis=axis).var() / (variance / others)
        count = keep.size / others
        assert abs(spread - 1) < 5 * math.sqrt(2 / count)


@pytest.mark.parametrize("rate", [0.2, 0.5])
def test_rows_units_experts_and_seeds_are_independent(rate):
    keep = mask_of(seeds(3, 4), rate)
    for step in (1, 2, 3, 64):
        assert_independent(keep[:, step:], keep[:, :-step], rate)
    for step in (1, 2, 3, 32):
        assert_independent(keep[..., step:], keep[..., :-step], rate)
    assert_independent(keep[0], keep[1], rate)
    for other in (seeds(4, 4), seeds(3, 5), seeds(4, 3), seeds(3 + 2**31, 4)):
        assert_independent(keep, mask_of(other, rate), rate)


def test_mask_belongs_to_the_row():
    some = np.random.default_rng(0).permutation(ROWS)[:100]
    part = mask_of(seeds(5, 6), rows=some, shape=(3, 100, 40))
    np.testing.assert_array_equal(part, mask_of(seeds(5, 6))[:, some])


def test_mask_is_the_same_under_vmap():
    many = np.array([[1, 2], [3, 4]], np.uint32)
    stacked = jax.vmap(lambda seed: keep_mask(seed, ROWS, SHAPE, 0.2))(many)
    np.testing.assert_array_equal(stacked, [mask_of(seed) for seed in many])


class TwoLayers(nn.Module):
    """The values that each of two dropout layers makes of the same input."""

    rate: float

    @nn.compact
    def __call__(self, x, context):
        return Dropout(self.rate)(x, context), Dropout(self.rate)(x, context)


def drop(key, rate=0.25, rows=ROWS, train=True, axis_name=None):
    x = jnp.full((len(rows), 40), 3.0)
    rngs = None if key is None else {"dropout": jax.random.key(key)}
    context = Context(train, None, rows, axis_name)
    return jax.tree.map(np.asarray, TwoLayers(rate).apply({}, x, context, rngs=rngs))


def test_values_are_dropped_or_scaled():
    values, _ = drop(0)
    assert set(np.unique(values)) == {0, 4}


def test_layers_and_steps_have_masks_of_their_own():
    first, second = (x > 0 for x in drop(0))
    next_first, _ = (x > 0 for x in drop(1))
    assert_independent(first, second, 0.25)
    assert_independent(first, next_first, 0.25)


def test_nothing_is_dropped_at_rate_zero_or_in_evaluation():
    for values in (*drop(None, rate=0.0), *drop(None, train=False)):
        assert (values == 3).all()


def test_rows_are_counted_from_zero_if_not_given():
    context = Context(train=True)
    x = jnp.full((len(ROWS), 40), 3.0)
    rngs = {"dropout": jax.random.key(0)}
    values = TwoLayers(0.25).apply({}, x, context, rngs=rngs)
    np.testing.assert_array_equal(values, drop(0))


def test_rows_must_be_given_where_devices_share_a_batch():
    context = Context(train=True, axis_name="devices")
    with pytest.raises(ValueError, match="rows"):
        Dropout(0.5).apply({}, jnp.ones((2, 2)), context)
