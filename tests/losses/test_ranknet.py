"""RankNet's surrogates and forms: hinges by level, tiles, and labels of any kind."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax import ranknet_loss
from tests.losses import reference
from tests.losses.data import FORMS, row_options, scores

SIZE = 45
LEVELS = np.random.default_rng(4).integers(0, 4, SIZE)
OPTIONS = row_options(SIZE)
HINGES = ("hinge", "squared_hinge")


def assert_equal_to_definition(results, s, y, **options):
    """Value and gradient of a hinge, whose slope is the sum over its active pairs."""
    value, gradient = results
    definition = partial(reference.ranknet_loss, labels=y, **options)
    np.testing.assert_allclose(value, definition(s), rtol=2e-6)
    # No pair of scores in these steps is at the kink.
    slopes = reference.gradient(definition, s.astype(np.float64))
    np.testing.assert_allclose(
        gradient, slopes, rtol=0, atol=2e-6 * np.abs(slopes).max()
    )


def compiled(**static):
    return jax.jit(jax.value_and_grad(partial(ranknet_loss, **static)))


@pytest.mark.parametrize("surrogate", HINGES)
@pytest.mark.parametrize("pairs", ["auto", *FORMS])
def test_hinges_of_levels(surrogate, pairs):
    """Also with traced labels, whose number of levels is given."""
    s = scores("logits", SIZE)
    run = compiled(surrogate=surrogate, pairs=pairs, levels=4)
    for margin in (1.0, 0.3):
        results = run(s, LEVELS, margin=margin, **OPTIONS)
        choice = {"surrogate": surrogate, "margin": margin, **OPTIONS}
        assert_equal_to_definition(results, s, LEVELS, **choice)


@pytest.mark.parametrize("surrogate", HINGES)
@pytest.mark.parametrize("normalize", ["pairs", "none"])
def test_hinges_of_other_labels(surrogate, normalize):
    """Of two values, of concrete integers, and of real numbers in tiles."""
    s = scores("logits", SIZE)
    real = np.random.default_rng(5).random(SIZE).round(1).astype(np.float32)
    choice = {"surrogate": surrogate, "normalize": normalize}
    loss = partial(ranknet_loss, **choice)
    for y in (LEVELS > 1, LEVELS, real):
        results = jax.value_and_grad(lambda s, y=y: loss(s, y))(s)
        assert_equal_to_definition(results, s, y, **choice)


@pytest.mark.parametrize("pairs", ["broadcast", "blocked"])
def test_forms_of_the_logistic_surrogate(pairs):
    s = scores("logits", SIZE)
    value = ranknet_loss(s, LEVELS, pairs=pairs, **OPTIONS)
    expected = reference.ranknet_loss(s, LEVELS, **OPTIONS)
    np.testing.assert_allclose(value, expected, rtol=2e-6)


def test_gradient_by_the_margin():
    s = scores("logits", SIZE)

    def loss(margin, pairs):
        return ranknet_loss(s, LEVELS, surrogate="hinge", margin=margin, pairs=pairs)

    by_form = [jax.grad(loss)(0.5, pairs) for pairs in FORMS]
    assert by_form[0] > 0
    np.testing.assert_allclose(by_form, by_form[0], rtol=1e-6)


def test_hinges_of_levels_take_memory_in_proportion_to_the_rows():
    def memory(size):
        rows = jax.ShapeDtypeStruct((size,), jnp.float32)
        labels = jax.ShapeDtypeStruct((size,), jnp.int8)
        run = compiled(surrogate="hinge", levels=3)
        return run.lower(rows, labels).compile().memory_analysis().temp_size_in_bytes

    assert memory(8192) < 3 * memory(4096)


@pytest.mark.usefixtures("four_devices")
@pytest.mark.parametrize("surrogate", HINGES)
def test_four_devices_equal_one(surrogate):
    size = 48
    s, y = scores("logits", size), np.random.default_rng(4).integers(0, 3, size)
    rows = row_options(size)
    loss = partial(ranknet_loss, surrogate=surrogate, levels=3)
    expected = jax.value_and_grad(partial(loss, **rows))(s, y)

    def step(s, y, rows):
        return jax.value_and_grad(partial(loss, axis_name="devices", **rows))(s, y)

    shards = jax.tree.map(lambda x: x.reshape(4, -1), (s, y, rows))
    values, gradients = jax.pmap(step, axis_name="devices")(*shards)
    np.testing.assert_allclose(values, np.full(4, expected[0]), rtol=2e-6)
    largest = np.abs(expected[1]).max()
    np.testing.assert_allclose(
        gradients.reshape(-1) / 4, expected[1], rtol=0, atol=2e-6 * largest
    )


def test_wrong_levels_and_forms_are_named():
    s = scores("logits", 4)
    y = np.array([0, 1, 2, 3])
    loss = partial(ranknet_loss, surrogate="hinge")
    with pytest.raises(ValueError, match=r"^labels: .*row 3"):
        loss(s, y, levels=3)
    assert np.isnan(jax.jit(partial(loss, levels=3))(s, y))
    with pytest.raises(ValueError, match=r"^levels: "):
        loss(s, y.astype(np.float32), levels=3)
    with pytest.raises(ValueError, match=r"^pairs: "):
        jax.jit(partial(loss, pairs="sorted"))(s, y)
    with pytest.raises(ValueError, match=r"^pairs: "):
        ranknet_loss(s, y > 1, pairs="sorted")
    with pytest.raises(ValueError, match=r"^surrogate: "):
        ranknet_loss(s, y, surrogate="huber")
    assert np.isnan(loss(s, y, margin=np.nan))
