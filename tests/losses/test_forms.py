"""Every form of summing pairs against the broadcast one, compiled."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax import pwiser_loss
from pwiser_jax.losses.pairs import FORMS, Others, PairOptions, Positives, dense
from tests.losses.data import FORM_SURROGATES, SCORES, SHAPES, row_options, scores

POSITIVES, OTHERS = 29, 37
OTHER_FORMS = [form for form in FORMS if form != "broadcast"]
FORM_SHAPES = [
    (form, surrogate, gate)
    for form in OTHER_FORMS
    for surrogate, gate in SHAPES
    if (form, surrogate) in FORM_SURROGATES
]


@pytest.fixture(autouse=True)
def several_tiles(monkeypatch):
    """29 positives are four tiles, the last one padded."""
    monkeypatch.setattr(dense, "TILE", 8)


def sides(kind, segments):
    """Both sides of the pairs; some rows have weight 0 and score 0."""
    rng = np.random.default_rng(3)
    margin = rng.choice(np.float32([0.125, 0.25, 0.1, -0.5]), OTHERS)
    both = []
    for size, seed in ((POSITIVES, 4), (OTHERS, 5)):
        options = row_options(size, seed)
        weights = jnp.asarray(options["weights"])
        both.append(
            {
                "scores": jnp.where(weights == 0, 0, scores(kind, size, seed)),
                "weights": weights,
                "segments": jnp.asarray(options["segments"]) if segments else None,
            }
        )
    return Positives(**both[0]), Others(**both[1], margins=jnp.asarray(margin))


def sums_and_gradients(form, surrogate, gate):
    """The form's sums, pulled back by given factors of the rows."""

    @jax.jit
    def run(positives, others, factors):
        def row_sums(positive_scores, other_scores, margins):
            return FORMS[form](
                positives._replace(scores=positive_scores),
                others._replace(scores=other_scores, margins=margins),
                PairOptions(surrogate, gate),
            )

        values, pull = jax.vjp(
            row_sums, positives.scores, others.scores, others.margins
        )
        return values, pull((factors, jnp.zeros_like(factors)))

    return run


@pytest.mark.parametrize(("form", "surrogate", "gate"), FORM_SHAPES)
@pytest.mark.parametrize("segments", [False, True])
def test_forms_agree(form, surrogate, gate, segments):
    run = sums_and_gradients(form, surrogate, gate)
    definition = sums_and_gradients("broadcast", surrogate, gate)
    factors = jnp.asarray(np.random.default_rng(6).normal(size=OTHERS), jnp.float32)
    for kind in SCORES:
        both = sides(kind, segments)
        expected, actual = definition(*both, factors), run(*both, factors)
        np.testing.assert_array_equal(actual[0][1], expected[0][1])
        for a, b in zip(
            jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True
        ):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6 * np.abs(b).max())


@pytest.mark.parametrize("segments", [False, True])
def test_the_search_of_a_gpu_finds_the_same(monkeypatch, segments):
    both = sides("tenths", segments)
    factors = jnp.ones(OTHERS)

    def results():
        run = sums_and_gradients("sorted", "squared_hinge", "margin")
        return jax.tree.leaves(run(*both, factors)), run.trace(*both, factors)

    expected, traced = results()
    lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "stablehlo.while" not in lowered
    assert "stablehlo.while" in traced.lower(lowering_platforms=("cpu",)).as_text()

    def of_gpu(n, *, cuda, **_):
        return cuda(n)

    monkeypatch.setattr(jax.lax, "platform_dependent", of_gpu)
    for a, b in zip(results()[0], expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("form", OTHER_FORMS)
def test_forms_agree_without_positives(form):
    positives, others = sides("random", True)
    positives = positives._replace(weights=jnp.zeros(POSITIVES))
    run = sums_and_gradients(form, "hinge", "margin")
    for result in jax.tree.leaves(run(positives, others, jnp.ones(OTHERS))):
        np.testing.assert_array_equal(result, 0)


def memory(size, form):
    rows = jax.ShapeDtypeStruct((size,), jnp.float32)
    labels = jax.ShapeDtypeStruct((size,), jnp.int8)
    gradient = jax.value_and_grad(
        lambda s, c, v: pwiser_loss(s, c, v, surrogate="logistic", pairs=form)
    )
    compiled = jax.jit(gradient).lower(rows, labels, labels).compile()
    return compiled.memory_analysis().temp_size_in_bytes


def test_blocked_needs_memory_in_proportion_to_the_rows():
    small, large = memory(1024, "blocked"), memory(4096, "blocked")
    assert 3 < large / small < 6
    assert memory(4096, "broadcast") > 10 * large


def test_blocked_handles_batches_of_any_size():
    for size in (0, 1, 9):
        s = scores("random", size)
        clicks, conversions = np.arange(size) % 2 == 0, np.arange(size) % 3 == 0
        blocked_value, broadcast_value = (
            pwiser_loss(s, clicks, conversions, pairs=form)
            for form in ("blocked", "broadcast")
        )
        np.testing.assert_allclose(blocked_value, broadcast_value, rtol=1e-6)
