"""Every loss with one signature, and the properties of each."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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
from tests.losses import reference
from tests.losses.data import FORM_SURROGATES, FORMS, NORMALIZATIONS, SHAPES

LEVELS = 4
# All exact in binary, as the scores of the laws are: differences may equal them.
PWISER = (0.25, 0.5)
LADDER = {(3, 2): 0.25, (3, 0): 1.0, (2, 1): 0.5}


class Loss(NamedTuple):
    """A loss of scores f[B, 2] and levels int[B].

    Attributes:
        call: (scores, levels, *, where, weights, segments, axis_name) -> loss.
        busy: (scores, levels, **row options) -> which rows may have a gradient.
        shifts: whether a common shift of all scores changes nothing.
        denominator: (levels, **row options) -> what the loss divides by, where the
            loss knows segments and has one denominator.
        on_devices: whether to map it over devices; the ladder of a form stands for
            the form's other losses, which meet devices in the same lines.
    """

    call: Callable
    busy: Callable
    shifts: bool = False
    denominator: Callable | None = None
    on_devices: bool = True


def ungrouped(call):
    """A loss that takes no segments."""

    def without(scores, levels, *, segments=None, **options):
        return call(scores, levels, **options)

    return without


def pwiser_labels(levels):
    """A conversion for levels 2 and 3, the former without a click."""
    return levels % 2 == 1, levels >= 2


def counting(scores, levels, *, where, weights, segments):
    """Rows that count."""
    return where & (weights != 0)


def rising(scores, levels, *, where, weights, segments):
    return where & (weights != 0) & (scores[:, 1] > scores[:, 0])


def constraint(scores, levels, **options):
    """Of probabilities that differ as the scores do, in exact steps of 2^-18."""
    unit = np.float32(2**-18)
    return label_constraint_loss(0.5 + unit * scores, **options) / unit


def escm2(loss, columns):
    """Of logits u, v and, doubly robust, m; rows of level 2 and above are clicked."""

    def call(scores, levels, **options):
        logits = jnp.stack([scores[:, k % 2] for k in range(columns)], axis=1)
        return loss(logits, levels >= 2, levels == 3, **options)

    return call


def clicked(scores, levels, *, where, weights, segments):
    return where & (weights != 0) & (levels >= 2)


def ladder_busy(margins, levels_of, **shape):
    """Rows of an active pair."""

    def busy(scores, levels, **options):
        pairs = reference.pair_list(
            scores[:, 0], levels_of(levels), margins, **shape, **options
        )
        rows = np.zeros(len(levels), bool)
        for _, i, j, _, x in pairs:
            rows[[i, j]] |= x is not None
        return rows

    return busy


def ranknet_busy(scores, levels, *, where, weights, segments):
    """Rows of a pair."""
    counts = where & (weights != 0)
    pairs = (levels[:, None] != levels) & (segments[:, None] == segments)
    pairs &= counts[:, None] & counts
    return pairs.any(axis=1)


def sum_of_weights(levels, **options):
    del options["segments"]
    return reference.row_weights(len(levels), **options).sum()


def sum_of_pair_weights(levels, **options):
    return reference.ranknet_terms(np.zeros(len(levels)), levels, **options)[1]


def pwiser(form, surrogate, gate, normalize):
    shape = {"surrogate": surrogate, "gate": gate}

    def call(scores, levels, **options):
        return pwiser_loss(
            scores[:, 0],
            *pwiser_labels(levels),
            margins=PWISER,
            normalize=normalize,
            pairs=form,
            **shape,
            **options,
        )

    def levels_of(levels):
        return reference.pwiser_levels(*pwiser_labels(levels))

    margins = reference.pwiser_margins(PWISER)
    busy = ladder_busy(margins, levels_of, **shape)
    return Loss(call, busy, shifts=True, on_devices=False)


def ladder(form):
    def call(scores, levels, **options):
        return ladder_loss(scores[:, 0], levels, LADDER, pairs=form, **options)

    return Loss(call, ladder_busy(LADDER, lambda levels: levels), shifts=True)


def losses_of_form(form):
    """Each shape of a pair's cost that the form sums; a ladder for the usual one."""
    each = {
        f"{surrogate}-{gate}-{form}": pwiser(form, surrogate, gate, normalize)
        for (surrogate, gate), normalize in zip(SHAPES[1:], NORMALIZATIONS, strict=True)
        if (form, surrogate) in FORM_SURROGATES
    }
    return {f"ladder-{form}": ladder(form), **each}


LOSSES = {
    "bce": Loss(ungrouped(lambda s, y, **o: bce_loss(s[:, 0], y / 3, **o)), counting),
    "focal": Loss(
        ungrouped(lambda s, y, **o: focal_bce_loss(s[:, 0], y / 3, alpha=0.25, **o)),
        counting,
    ),
    "constraint": Loss(ungrouped(constraint), rising, shifts=True),
    "escm2_ips": Loss(ungrouped(escm2(escm2_ips_loss, 2)), clicked),
    "escm2_dr": Loss(ungrouped(escm2(escm2_dr_loss, 3)), counting),
    "ranknet": Loss(
        lambda s, y, **o: ranknet_loss(s[:, 0], y, **o),
        ranknet_busy,
        shifts=True,
        denominator=sum_of_pair_weights,
    ),
    "bce_ranknet": Loss(
        lambda s, y, **o: bce_ranknet_loss(s[:, 0], y / 3, **o), counting
    ),
    "jrc": Loss(
        lambda s, y, **o: jrc_loss(s, y / 3, **o),
        counting,
        shifts=True,
        denominator=sum_of_weights,
    ),
}
for name in FORMS:
    LOSSES |= losses_of_form(name)


def program(loss, **options):
    """Value and gradient by the scores, compiled once for each batch size."""

    def value(scores, levels, where, weights, segments):
        rows = {"where": where, "weights": weights, "segments": segments}
        return loss.call(scores, levels, **rows, **options)

    return jax.jit(jax.value_and_grad(value))


PROGRAMS = {name: program(loss) for name, loss in LOSSES.items()}
