"""Every model is traced with a symbolic number of rows."""

from functools import partial

import jax
import numpy as np
import pytest
from jax import export

from pwiser_jax.models import MODELS, build
from tests.models.data import (
    BRANDS,
    make_inputs,
    make_schema,
    make_variables,
    tiny,
)

SCHEMA = make_schema(sizes=(4, 2, 9), multi_valued=(BRANDS,))
VARIANTS = {
    "one logit": {},
    "two logits": {"two_logits": True},
    "plain": {"small_rows": 0},
}


@pytest.mark.parametrize(
    ("variant", "space"),
    [
        ("one logit", "ctcvr"),
        ("one logit", "click"),
        ("two logits", "product"),
        ("plain", "ctcvr"),
    ],
)
@pytest.mark.parametrize("name", MODELS)
def test_an_exported_model_takes_any_number_of_rows(name, variant, space):
    model = build(tiny(name, cvr_space=space, **VARIANTS[variant]), SCHEMA)
    variables = make_variables(model, make_inputs(SCHEMA, 2))
    apply = jax.jit(partial(model.apply, variables, train=False))
    (rows,) = export.symbolic_shape("b")
    shapes = {
        column: jax.ShapeDtypeStruct((rows, *x.shape[1:]), x.dtype)
        for column, x in make_inputs(SCHEMA, 2).items()
    }
    exported = export.export(apply)(shapes)
    for count in (1, 2, 7):
        inputs = make_inputs(SCHEMA, count, seed=count)
        actual, expected = exported.call(inputs), apply(inputs)
        assert actual.keys() == expected.keys()
        for task, values in expected.items():
            assert actual[task].shape == (count,)
            np.testing.assert_allclose(actual[task], values, rtol=1e-5, atol=1e-6)
