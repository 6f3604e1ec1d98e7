"""The alternative losses, against float64 definitions: value and gradient."""

from functools import partial

import jax
import numpy as np
import pytest

from pwiser_jax import (
    bce_loss,
    bce_ranknet_loss,
    focal_bce_loss,
    jrc_loss,
    label_constraint_loss,
    ranknet_loss,
)
from pwiser_jax.losses.pairs import dense
from tests.losses import reference
from tests.losses.data import SCORES, row_options, scores

SIZE = 19
RNG = np.random.default_rng(8)
BINARY = RNG.integers(0, 2, SIZE)
LABELS = {
    "binary": BINARY,
    "bool": BINARY.astype(bool),
    "graded": RNG.integers(-3, 4, SIZE),
    "real": RNG.normal(size=SIZE).round(1).astype(np.float32),
    "soft": RNG.random(SIZE).astype(np.float32),
    "equal": np.ones(SIZE, int),
}
OPTIONS = row_options(SIZE)
UNGROUPED = {name: OPTIONS[name] for name in ("where", "weights")}
either = pytest.mark.parametrize("rows", [False, True], ids=["plain", "rows"])


@pytest.fixture(scope="module", autouse=True)
def several_tiles():
    """19 rows are three tiles, the last one padded."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "TILE", 8)
        yield


def compiled(loss, **static):
    """Value and gradient by the first argument, in one program for all options."""
    return jax.jit(jax.value_and_grad(partial(loss, **static)))


def assert_equal_to(definition, results, x, scale=1e-30):
    """Within 2e-6, of the largest entry for a gradient."""
    value, gradient = results
    np.testing.assert_allclose(value, definition(x), rtol=2e-6, atol=1e-30)
    slopes = reference.gradient(definition, x)
    largest = max(np.abs(slopes).max(), scale)
    np.testing.assert_allclose(gradient, slopes, rtol=0, atol=2e-6 * largest)


def columns(kind, count):
    return np.stack([scores(kind, SIZE, seed) for seed in range(count)], axis=1)


RANKNET = compiled(ranknet_loss)


@pytest.mark.parametrize("labels", LABELS)
def test_ranknet(labels):
    y = LABELS[labels]
    for kind in SCORES:
        s = scores(kind, SIZE)
        definition = partial(reference.ranknet_loss, labels=y, **OPTIONS)
        assert_equal_to(definition, RANKNET(s, y, **OPTIONS), s)


def test_ranknet_without_options():
    s, y = scores("logits", SIZE), LABELS["graded"]
    definition = partial(reference.ranknet_loss, labels=y, normalize="none")
    assert_equal_to(definition, compiled(ranknet_loss, normalize="none")(s, y), s)


BCE_RANKNET = compiled(bce_ranknet_loss)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_bce_ranknet_is_the_sum_of_the_two(alpha):
    s, y = scores("logits", SIZE), LABELS["soft"]
    value, gradient = BCE_RANKNET(s, y, alpha=alpha, **OPTIONS)
    pointwise = jax.value_and_grad(bce_loss)(s, y, **UNGROUPED)
    pairwise = RANKNET(s, y, **OPTIONS)
    for actual, bce, ranknet in zip(
        (value, gradient), pointwise, pairwise, strict=True
    ):
        expected = alpha * bce + (1 - alpha) * ranknet
        np.testing.assert_allclose(actual, expected, rtol=1e-6)


JRC = compiled(jrc_loss)


@either
@pytest.mark.parametrize("labels", ["binary", "soft"])
@pytest.mark.parametrize("alpha", [0.0, 0.75])
def test_jrc(labels, alpha, rows):
    options = {"alpha": alpha, **(OPTIONS if rows else {})}
    for kind in SCORES:
        f, y = columns(kind, 2), LABELS[labels]
        # Where all logits are equal, what is left of a gradient is rounding.
        assert_equal_to(
            partial(reference.jrc_loss, labels=y, **options),
            JRC(f, y, **options),
            f,
            scale=0.01,
        )


FOCAL = compiled(focal_bce_loss)


@either
@pytest.mark.parametrize("labels", ["binary", "soft"])
@pytest.mark.parametrize(("gamma", "alpha"), [(0.0, None), (2.0, 0.25), (0.5, 0.75)])
def test_focal(labels, gamma, alpha, rows):
    options = {"gamma": gamma, "alpha": alpha, **(UNGROUPED if rows else {})}
    for scale in (1, 30, 1e4):
        z, y = scale * scores("logits", SIZE), LABELS[labels]
        definition = partial(reference.focal_bce_loss, labels=y, **options)
        assert_equal_to(definition, FOCAL(z, y, **options), z)


def test_focal_of_gamma_zero_is_bce():
    z, y = scores("logits", SIZE), LABELS["soft"]
    np.testing.assert_allclose(
        focal_bce_loss(z, y, gamma=0, **UNGROUPED), bce_loss(z, y, **UNGROUPED)
    )


@either
@pytest.mark.parametrize("steps", [2, 4])
def test_label_constraint(steps, rows):
    options, p = UNGROUPED if rows else {}, columns("random", steps)
    definition = partial(reference.label_constraint_loss, **options)
    assert_equal_to(definition, compiled(label_constraint_loss)(p, **options), p)


def test_label_constraint_leaves_a_right_order_alone():
    p = np.array([[0.5, 0.5, 0.25], [1.0, 0.0, 0.0]], np.float32)
    value, gradient = jax.value_and_grad(label_constraint_loss)(p)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("size", [1e3, 1e6, 1e30])
def test_far_scores(size):
    """No overflow, and nothing that is not a number."""
    s, y = np.array([size, -size], np.float32), np.array([1, 0])
    right, wrong = np.stack([-s, s], axis=1), np.stack([s, -s], axis=1)
    for loss, good, bad in (
        (RANKNET, s, -s),
        (BCE_RANKNET, s, -s),
        (FOCAL, s, -s),
        (JRC, right, wrong),
    ):
        value, gradient = loss(good, y)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)
        value, gradient = loss(bad, y)
        assert size <= value <= 2 * size * (1 + 1e-6)
        assert np.isfinite(gradient).all()


def test_jrc_of_close_logits_far_from_zero():
    """Their difference is not rounded to their size."""
    f, y = np.float32([[0, 1e4 + 0.5], [0, 1e4]]), np.array([1, 1])
    definition = partial(reference.jrc_loss, labels=y, alpha=0)
    np.testing.assert_allclose(jrc_loss(f, y, alpha=0), definition(f), rtol=1e-6)


def memory(size):
    rows = jax.ShapeDtypeStruct((size,), np.float32)
    compiled = jax.jit(jax.value_and_grad(ranknet_loss)).lower(rows, rows).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_ranknet_needs_memory_in_proportion_to_the_rows():
    assert 3 < memory(4096) / memory(1024) < 5


@pytest.mark.parametrize("size", [0, 1])
def test_tiny_batches(size):
    """Without a pair, and without a row."""
    s, y = np.ones(size, np.float32), np.ones(size, int)
    both = np.stack([s, s], axis=1)
    assert ranknet_loss(s, y) == 0
    np.testing.assert_allclose(jrc_loss(both, y, segments=y), size * 0.5 * np.log(2))
    assert label_constraint_loss(both) == 0
    assert np.isfinite(bce_ranknet_loss(s, y))
    assert np.isfinite(focal_bce_loss(s, y))
