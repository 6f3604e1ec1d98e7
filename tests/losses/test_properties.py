"""Laws of every loss, on batches that Hypothesis generates.

A law's name says what it states. `pytest --hypothesis-profile=explore` looks for new
counterexamples; by default the examples are always the same.
"""

from functools import cache

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import Mesh, PartitionSpec

from pwiser_jax.losses import ladder_terms, positives
from pwiser_jax.losses.pairs import dense
from tests.losses.data import FORMS
from tests.losses.registry import LADDER, LEVELS, LOSSES, PROGRAMS

# Two sizes only, so that a loss compiles twice: all rows, and those that are kept.
SIZE, KEPT, DEVICES = 24, 16, 4
GARBAGE = np.float32([np.nan, np.inf, -np.inf, 3e38, -3e38])


@pytest.fixture(scope="module", autouse=True)
def several_tiles():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dense, "TILE", 8)
        yield


@st.composite
def batches(draw, size=SIZE, units=(0.125, 0.1, 1e-6, 1.0, 1e3)):
    """(scores, levels, where, weights, segments); few values, so that many are tied."""

    def integers(low, high, shape=size):
        return draw(arrays(np.int32, shape, elements=st.integers(low, high)))

    scores = integers(-8, 8, (size, 2)) * np.float32(draw(st.sampled_from(units)))
    top = draw(st.integers(0, LEVELS - 1))
    return (
        scores,
        integers(0, top),
        integers(0, 3) > 0,
        integers(0, 4).astype(np.float32) / 2,
        integers(0, draw(st.integers(0, 3))),
    )


orders = st.permutations(range(SIZE)).map(np.array)


def every_loss(fits=lambda loss: True):
    """Parametrises a law; pytest then takes a loss's laws together (scope)."""
    names = [name for name, loss in LOSSES.items() if fits(loss)]
    return pytest.mark.parametrize("name", names, scope="module")


def assert_equal(actual, expected):
    """To float rounding, which for large scores is relative to these."""
    for a, b in zip(actual, expected, strict=True):
        scale = max(1.0, np.abs(b).max())
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=2e-6 * scale)


def take_rows(batch, rows):
    return tuple(array[rows] for array in batch)


@every_loss()
@given(batch=batches(), order=orders)
def test_order_of_rows_changes_nothing(name, batch, order):
    value, gradient = PROGRAMS[name](*batch)
    assert_equal(PROGRAMS[name](*take_rows(batch, order)), (value, gradient[order]))


@every_loss()
@given(batch=batches(), order=orders, by_weight=st.booleans())
def test_masking_rows_is_dropping_them(name, batch, order, by_weight):
    """Whatever the masked rows hold."""
    keep = np.isin(np.arange(SIZE), order[:KEPT])
    scores, levels, where, weights, segments = batch
    masked = (
        np.where(keep[:, None], scores, np.resize(GARBAGE, scores.shape)),
        np.where(keep, levels, 99),
        where if by_weight else where & keep,
        np.where(keep, weights, np.float32(0 if by_weight else np.nan)),
        segments,
    )
    value, gradient = PROGRAMS[name](*masked)
    dropped = PROGRAMS[name](*take_rows(batch, keep))
    assert_equal((value, gradient[keep]), dropped)
    np.testing.assert_array_equal(gradient[~keep], 0)


@every_loss()
@given(batch=batches(), garbage=st.sampled_from(GARBAGE))
def test_no_row_gives_zero(name, batch, garbage):
    _, levels, where, weights, segments = batch
    weights = np.where(where, np.float32(0), weights)
    scores = np.full((SIZE, 2), garbage)
    value, gradient = PROGRAMS[name](scores, levels, ~where, weights * 0, segments)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


@every_loss()
@given(batch=batches(units=(0.125, 1e-6, 1e3, 1e4)), ordered=st.booleans())
def test_gradients_are_finite_and_zero_in_rows_without_an_active_pair(
    name, batch, ordered
):
    scores, levels, where, weights, segments = batch
    if ordered:  # as they should be, by more than all margins
        scores = np.stack([levels * 4, levels * 4 - 1], axis=1).astype(np.float32)
    value, gradient = PROGRAMS[name](scores, *batch[1:])
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    options = {"where": where, "weights": weights, "segments": segments}
    busy = LOSSES[name].busy(scores, levels, **options)
    np.testing.assert_array_equal(gradient[~busy], 0)
    assert busy.any() or value == 0


@every_loss()
@given(batch=batches(KEPT), order=st.permutations(range(KEPT)))
def test_weight_two_is_the_row_twice(name, batch, order):
    scores, levels, where, weights, segments = batch
    copies = 1 + np.isin(np.arange(KEPT), order[: SIZE - KEPT])
    doubled = (weights * copies).astype(np.float32)
    value, gradient = PROGRAMS[name](scores, levels, where, doubled, segments)
    twice = np.repeat(np.arange(KEPT), copies)
    expected, by_copy = PROGRAMS[name](*take_rows(batch, twice))
    sums = np.zeros_like(gradient)
    np.add.at(sums, twice, by_copy)
    assert_equal((value, gradient), (expected, sums))


@every_loss(lambda loss: loss.shifts)
@given(batch=batches(units=(0.125,)), shift=st.integers(-64, 64))
def test_a_common_shift_changes_nothing(name, batch, shift):
    """The shifted scores are exact."""
    scores, *rest = batch
    value, gradient = PROGRAMS[name](*batch)
    assert_equal(PROGRAMS[name](scores + shift, *rest), (value, gradient))
    largest = max(1.0, np.abs(gradient).max())
    np.testing.assert_allclose(gradient.sum(), 0, atol=5e-6 * largest)


def groups(batch):
    """The batch with the rows of one segment, for each; segments are left out."""
    scores, levels, where, weights, segments = batch
    for segment in np.unique(segments):
        members = where & (segments == segment)
        yield scores, levels, members, weights, np.zeros_like(segments)


def denominator(loss, batch):
    _, levels, where, weights, segments = batch
    return loss.denominator(levels, where=where, weights=weights, segments=segments)


@every_loss(lambda loss: loss.denominator)
@given(batch=batches())
def test_segments_add_up(name, batch):
    """Numerators and denominators are those of the groups, added up."""
    loss = LOSSES[name]
    numerator = sum(
        PROGRAMS[name](*group)[0] * denominator(loss, group) for group in groups(batch)
    )
    expected = numerator / (denominator(loss, batch) or 1)
    np.testing.assert_allclose(
        PROGRAMS[name](*batch)[0], expected, rtol=1e-5, atol=1e-6
    )


@cache
def terms_program(form, normalize):
    @jax.jit
    def terms(scores, levels, where, weights, segments):
        return ladder_terms(
            scores[:, 0],
            levels,
            LADDER,
            normalize=normalize,
            pairs=form,
            where=where,
            weights=weights,
            segments=segments,
        )

    return terms


@pytest.mark.parametrize(
    ("form", "normalize"),
    [*[(form, "pairs") for form in FORMS], ("broadcast", "negatives")],
)
@given(batch=batches(units=(0.125, 1.0)))
def test_terms_of_segments_add_up(form, normalize, batch):
    terms = terms_program(form, normalize)
    parts = [terms(*group) for group in groups(batch)]
    for term, (numerator, denominator) in terms(*batch).items():
        sums = np.sum([part[term] for part in parts], axis=0)
        np.testing.assert_allclose(numerator, sums[0], rtol=1e-5, atol=1e-6)
        assert denominator == sums[1]


@cache
def on_devices(name):
    """The loss of four devices' rows, packed, differentiated from outside."""
    rows = PartitionSpec("devices")

    def value(scores, levels, where, weights, segments):
        options = {"where": where, "weights": weights, "segments": segments}
        return LOSSES[name].call(scores, levels, **options, axis_name="devices")

    mesh = Mesh(np.array(jax.devices()[:DEVICES]), ("devices",))
    mapped = jax.shard_map(value, mesh=mesh, in_specs=rows, out_specs=PartitionSpec())
    shapes = [
        jax.ShapeDtypeStruct((SIZE, *more), dtype)
        for *more, dtype in [(2, "f4"), ("i4",), ("?",), ("f4",), ("i4",)]
    ]
    with pytest.MonkeyPatch.context() as patch:
        # Packs of two of a device's six rows where they hold all positives.
        patch.setattr(positives, "PACKS", {3: 0})
        return jax.jit(jax.value_and_grad(mapped)).lower(*shapes).compile()


@pytest.mark.usefixtures("four_devices")
@every_loss(lambda loss: loss.on_devices)
@given(batch=batches())
def test_four_devices_equal_one(name, batch):
    assert_equal(on_devices(name)(*batch), PROGRAMS[name](*batch))
