"""Invalid labels, weights and probabilities: concrete, traced, and unchecked."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

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
    ranknet_loss,
)
from pwiser_jax.losses import (
    ConversionBank,
    conversion_bank,
    jrc_ranking_loss,
    ladder_terms,
    update_bank,
)
from pwiser_jax.losses.counts import ladder_pairs

SCORES = np.float32([0.9, 0.4, 0.5, 0.1])
COLUMNS = np.stack([SCORES, SCORES[::-1]], axis=1)
THREE = np.stack([SCORES, SCORES[::-1], SCORES], axis=1)
CLICKS = np.array([1, 1, 1, 0])
CONVERSIONS = np.array([1, 0, 0, 0])
MARGINS = {(1, 0): 0.1}

# Each loss with its arguments; all take `where` and `weights`.
CALLS = {
    "pwiser": (
        pwiser_loss,
        {"scores": SCORES, "clicks": CLICKS, "conversions": CONVERSIONS},
    ),
    "ladder": (
        partial(ladder_loss, margins=MARGINS),
        {"scores": SCORES, "levels": CLICKS},
    ),
    "bce": (bce_loss, {"logits": SCORES, "labels": CLICKS}),
    "focal": (focal_bce_loss, {"logits": SCORES, "labels": CLICKS}),
    "ranknet": (ranknet_loss, {"scores": SCORES, "labels": CLICKS}),
    "both": (bce_ranknet_loss, {"logits": SCORES, "labels": CLICKS}),
    "jrc": (jrc_loss, {"logits": COLUMNS, "labels": CLICKS}),
    "jrc_ranking": (jrc_ranking_loss, {"logits": COLUMNS, "labels": CLICKS}),
    "constraint": (label_constraint_loss, {"probabilities": COLUMNS}),
    "escm2_ips": (
        escm2_ips_loss,
        {"logits": COLUMNS, "clicks": CLICKS, "conversions": CONVERSIONS},
    ),
    "escm2_dr": (
        escm2_dr_loss,
        {"logits": THREE, "clicks": CLICKS, "conversions": CONVERSIONS},
    ),
}

CLICK_LABELS = [
    (name, argument)
    for name in ("pwiser", "escm2_ips", "escm2_dr")
    for argument in ("clicks", "conversions")
]
SOFT_LABELS = [(n, "labels") for n in ("bce", "focal", "both", "jrc", "jrc_ranking")]
# (loss, argument, value of row 2): what no row may hold.
INVALID = [
    *((*of, value) for of in CLICK_LABELS for value in (-1, 2, 100, 0.5)),
    *((*of, value) for of in SOFT_LABELS for value in (-1, 100, -0.25, 1.5)),
    *(("constraint", "probabilities", value) for value in (-0.1, 1.1, 40)),
    *((name, "weights", -1.0) for name in CALLS),
    *((name, "pair_values", -1.0) for name in ("pwiser", "ladder", "ranknet")),
    ("ladder", "levels", 2),
    ("ladder", "levels", -1),
]


def changed(name, argument, value, row=2):
    """The arguments with one value, in every column of a row, replaced."""
    arguments = dict(CALLS[name][1])
    array = np.array(arguments.get(argument, np.ones(4, np.float32)))
    whole = isinstance(value, int) and argument not in ("weights", "probabilities")
    array = array if whole else array.astype(np.float32)
    array[row] = value
    return arguments | {argument: array}


@pytest.mark.parametrize(("name", "argument", "value"), INVALID)
def test_a_concrete_value_is_an_error_and_a_traced_one_gives_nan(name, argument, value):
    loss = CALLS[name][0]
    # The rows whose pair value is read are those of a higher level.
    row = 0 if argument == "pair_values" else 2
    arguments = changed(name, argument, value, row)
    with pytest.raises(ValueError, match=rf"^{argument}: .*row {row}"):
        loss(**arguments)
    assert np.isnan(jax.jit(loss)(**arguments))
    # A masked row may hold anything.
    rows = {"where": np.arange(4) != row}
    assert loss(**arguments, **rows) == loss(**CALLS[name][1], **rows)


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("focal", "gamma", -0.5),
        ("focal", "gamma", np.inf),
        ("focal", "alpha", 1.5),
        ("focal", "positive_weight", -1.0),
        ("bce", "positive_weight", -1.0),
        ("both", "alpha", -0.1),
        ("jrc", "alpha", 1.1),
        ("escm2_ips", "floor", 0.0),
        ("escm2_dr", "floor", 1.5),
    ],
)
def test_numbers_out_of_range(name, argument, value):
    loss, arguments = CALLS[name]
    with pytest.raises(ValueError, match=rf"^{argument}: "):
        loss(**arguments, **{argument: value})
    traced = jax.jit(lambda x: loss(**arguments, **{argument: x}))
    assert np.isnan(traced(value))
    assert np.isfinite(traced(0.5))


def test_conversions_without_a_click_are_conversions():
    clicks, conversions = np.array([0, 1, 1, 0]), np.array([1, 0, 0, 0])
    assert pwiser_loss(SCORES, clicks, conversions) == 0  # all pairs are in order
    # Row 0 has no pair as a row without a click.
    low = SCORES.copy()
    low[0] = 0.0
    of_clicks = np.mean((0.1 + low[1:3]) ** 2)
    np.testing.assert_allclose(
        pwiser_loss(low, clicks, conversions), of_clicks + (0.2 + 0.1) ** 2, rtol=1e-6
    )


def test_clicks_and_conversions_swapped():
    with pytest.raises(ValueError, match="conversions: 3 conversions and 1 clicks"):
        pwiser_loss(SCORES, CONVERSIONS, CLICKS)
    # Masked rows do not count, and traced labels cannot be counted.
    where = np.array([True, False, False, True])
    assert pwiser_loss(SCORES, CONVERSIONS, CLICKS, where=where) == 0
    assert np.isfinite(jax.jit(pwiser_loss)(SCORES, CONVERSIONS, CLICKS))


def test_a_bank_of_bad_scores_gives_nan():
    for bank in (
        ConversionBank(np.float32([0.3, np.nan]), np.float32([1, 1])),
        ConversionBank(np.float32([0.3, np.inf]), np.float32([1, 1])),
        ConversionBank(np.float32([0.3, 0.4]), np.float32([1, -1])),
    ):
        assert np.isnan(pwiser_loss(SCORES, CLICKS, CONVERSIONS, bank=bank))
    empty = ConversionBank(np.float32([0.3, np.nan]), np.float32([1, 0]))
    assert np.isfinite(pwiser_loss(SCORES, CLICKS, CONVERSIONS, bank=empty))


def test_a_bank_remembers_conversions_alone():
    bank = conversion_bank(3)
    with pytest.raises(ValueError, match=r"^conversions: .*row 2"):
        update_bank(bank, SCORES, np.array([1, 0, 2, 0]))
    traced = jax.jit(update_bank)(bank, SCORES, np.array([1, 0, 2, -1]))
    np.testing.assert_array_equal(traced.weights, [1, 0, 0])


def test_values_are_read_of_higher_rows_alone():
    """A row without an order has no order value."""
    values = np.float32([2.0, np.nan, -1.0, np.nan])
    loss = pwiser_loss(SCORES, CLICKS, CONVERSIONS, pair_values=values)
    assert np.isfinite(loss)
    values[0] = np.nan
    assert np.isnan(pwiser_loss(SCORES, CLICKS, CONVERSIONS, pair_values=values))


@pytest.fixture
def without_asserts():
    """As any library in the process may do."""
    chex.disable_asserts()
    yield
    chex.enable_asserts()


def column(array):
    return array[:, None]


def narrow(array):
    return array[:-1]


def words(array):
    return np.full(array.shape, 1j)


@pytest.mark.usefixtures("without_asserts")
@pytest.mark.parametrize("change", [column, narrow, words])
@pytest.mark.parametrize(
    ("name", "argument"),
    [(name, argument) for name, (_, given) in CALLS.items() for argument in given],
)
def test_shapes_and_types_are_checked_without_chex(name, argument, change):
    if change is narrow and argument in ("scores", "logits", "probabilities"):
        change = column  # these set the number of rows
    loss, arguments = CALLS[name]
    wrong = arguments | {argument: change(arguments[argument])}
    for run in (loss, jax.jit(loss)):
        with pytest.raises(ValueError, match=rf"^{argument}: expected "):
            run(**wrong)


@pytest.mark.usefixtures("without_asserts")
@pytest.mark.parametrize("name", CALLS)
def test_row_options_are_checked_without_chex(name):
    loss, arguments = CALLS[name]
    for argument, wrong in {
        "where": CLICKS,
        "weights": SCORES[:, None],
        "segments": SCORES,
        "pair_values": SCORES[:2],
    }.items():
        ungrouped = ("bce", "focal", "constraint", "escm2_ips", "escm2_dr")
        if argument == "segments" and name in ungrouped:
            continue
        if argument == "pair_values" and name not in ("pwiser", "ladder", "ranknet"):
            continue
        with pytest.raises(ValueError, match=rf"^{argument}: expected "):
            loss(**arguments, **{argument: wrong})


@pytest.mark.usefixtures("without_asserts")
def test_numbers_and_banks_are_checked_without_chex():
    two = np.ones(2, np.float32)
    bank = ConversionBank(two, two[:1])
    wrong = {
        "margins": [
            lambda: pwiser_loss(SCORES, CLICKS, CONVERSIONS, margins=(two, two)),
            lambda: ladder_terms(SCORES, CLICKS, {(1, 0): two}),
            lambda: ladder_pairs(SCORES, CLICKS, {(1, 0): two}),
        ],
        "term_weights": [
            lambda: ladder_loss(SCORES, CLICKS, MARGINS, term_weights={(1, 0): two})
        ],
        "gamma": [lambda: focal_bce_loss(SCORES, CLICKS, gamma=two)],
        "alpha": [lambda: jrc_loss(COLUMNS, CLICKS, alpha=two)],
        "positive_weight": [lambda: bce_loss(SCORES, CLICKS, positive_weight=two)],
        "margin": [lambda: ranknet_loss(SCORES, CLICKS, surrogate="hinge", margin=two)],
        "probabilities": [lambda: label_constraint_loss(COLUMNS[:, :1])],
        "bank": [
            lambda: pwiser_loss(SCORES, CLICKS, CONVERSIONS, bank=bank),
            lambda: update_bank(bank, SCORES, CLICKS),
        ],
    }
    for argument, calls in wrong.items():
        for call in calls:
            with pytest.raises(ValueError, match=rf"^{argument}: expected "):
                call()


@pytest.mark.usefixtures("without_asserts")
def test_nothing_else_changes_without_chex():
    for loss, arguments in CALLS.values():
        value = loss(**arguments)
        chex.enable_asserts()
        assert loss(**arguments) == value
        chex.disable_asserts()
    assert jnp.isfinite(pwiser_loss(SCORES, CLICKS, CONVERSIONS))
