"""Multi-valued fields: sums and means of vectors, unaffected by padding."""

import jax
import numpy as np
import pytest

from pwiser_jax.models import build
from pwiser_jax.models.context import Context
from pwiser_jax.models.embedding import Embedding
from pwiser_jax.models.layout import layout
from tests.models.data import (
    BRANDS,
    SHOPS,
    make_inputs,
    make_schema,
    make_variables,
    tiny,
)

SCHEMA = make_schema(sizes=(4,), numerical=0, multi_valued=(BRANDS, SHOPS))
TABLE = np.random.default_rng(0).normal(size=(7 + 8 + 7, 2)).astype(np.float32)
LAYOUT = layout(tiny("mmoe"), SCHEMA)
E = Embedding(LAYOUT, 2)


def embed(table, ids, weights, mask=None):
    inputs = {
        "categorical": np.zeros((len(ids), 1), np.int32),
        "multi_ids": np.asarray(ids, np.int32),
        "multi_weights": np.asarray(weights, np.float32),
    }
    context = Context(train=True, mask=mask)
    z = E.apply({"params": {"large": table}}, inputs, context)
    return z.concatenated()[:, 2:]


def test_a_sum_and_a_mean_by_hand():
    brands, shops = TABLE[7:15], TABLE[15:22]
    assert LAYOUT.places == {"c0": 0, "brands": 7, "shops": 15}
    out = embed(TABLE, [[2, 6, 2, 3, 0]], [[0.5, 2, 1, 3, 1]])
    expected = [
        *(0.5 * brands[2] + 2 * brands[6] + 1 * brands[2]),
        *((3 * shops[3] + 1 * shops[0]) / 4),
    ]
    np.testing.assert_allclose(out[0], expected, rtol=1e-5)


def test_empty_lists_and_weights_of_zero_give_zeros():
    out = embed(TABLE, [[0] * 5, [1, 2, 3, 1, 2]], np.zeros((2, 5)))
    np.testing.assert_array_equal(out, np.zeros((2, 4)))


def test_padding_of_a_list_is_as_if_it_was_not_there():
    ids, weights = [[4, 1, 0, 2, 0]], [[2, 1, 0, 5, 0]]
    other = embed(TABLE, [[4, 1, 7, 2, 6]], weights)
    np.testing.assert_array_equal(embed(TABLE, ids, weights), other)


@pytest.mark.parametrize("real", [True, False])
def test_gradients_are_the_weights_and_reach_nothing_else(real):
    ids = [[2, 6, 2, 3, 0], [0, 0, 0, 1, 1]]
    weights = np.array([[0.5, 2, 1, 3, 1], [0, 0, 0, 0, 0]], np.float32)
    if not real:
        weights[1] = np.nan
    mask = np.array([True, real])

    def total(table):
        return jax.numpy.where(mask[:, None], embed(table, ids, weights, mask), 0).sum()

    value, actual = jax.value_and_grad(total)(TABLE)
    expected = np.zeros_like(TABLE)
    expected[0] = 0
    expected[7 + 2], expected[7 + 6] = 1.5, 2
    expected[15 + 3], expected[15 + 0] = 3 / 4, 1 / 4
    np.testing.assert_allclose(actual, expected, rtol=1e-6)
    assert np.isfinite(value)


@pytest.mark.parametrize(
    ("name", "message"),
    [("multi_ids", "multi_ids"), ("multi_weights", "multi_weights")],
)
@pytest.mark.parametrize("fault", ["shape", "type"])
def test_inputs_that_do_not_fit_are_named(name, message, fault):
    inputs = make_inputs(SCHEMA, 4)
    wrong = inputs[name]
    wrong = wrong[:, :-1] if fault == "shape" else wrong.astype(bool)
    model = build(tiny("shared_bottom"), SCHEMA)
    with pytest.raises(AssertionError, match=message):
        make_variables(model, inputs | {name: wrong})
