"""Tables of the losses that a training objective is made of.

    loss = mean over tasks of (pointwise + lambda * ranking) + constraint

`loss.pointwise`, `loss.ranking` and `loss.constraint` of a configuration name an entry
of a table each. To add a loss, register it here or from your own module:

    register_pointwise("squared", squared_loss)

Checks, help, metrics and tests read the names from the tables.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeVar

import jax
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.errors import did_you_mean, listed
from pwiser_jax.losses import (
    ConversionBank,
    bce_loss,
    focal_bce_loss,
    jrc_ranking_loss,
    label_constraint_loss,
    ladder_loss,
    ranknet_loss,
)
from pwiser_jax.losses.pairs import Pairs
from pwiser_jax.losses.pairs.options import Gate, Normalize, Surrogate

if TYPE_CHECKING:
    from pwiser_jax.config import LossConfig

Entry = TypeVar("Entry")
Numbers = Mapping[str, Any]
Term = tuple[int, int]

NONE = "none"


def no_numbers(loss: "LossConfig") -> Numbers:
    """No traced numbers."""
    del loss
    return {}


@dataclass(frozen=True)
class PairForm:
    """Static choices of a ranking loss; see `LossConfig`."""

    surrogate: Surrogate = "squared_hinge"
    gate: Gate = "margin"
    normalize: Normalize = "pairs"
    pairs: Pairs = "auto"
    scores: Literal["probability", "logit"] = "probability"
    labels: Literal["task", "levels"] = "task"


class RankedHead(NamedTuple):
    """The input of a ranking loss: one head, B rows of a device.

    Attributes:
        logits: f[B].
        both: f[B, 2], logits of labels 0 and 1, if the loss has `two_logits`.
        labels: bool[B], the head's label.
        defined: bool[B], valid rows that have that label.
        levels: int[B], the highest label reached, 0 .. `level_count` - 1; 0 for none.
        where: bool[B], valid rows whose level is in a pair of `margins`.
        weights: f[B], row weights, or None for 1.
        segments: int[B], or None; pairs are formed within a segment.
        values: f[B], or None; a pair is weighted by its higher row's value.
        margins: margin by (higher, lower) level.
        terms: weight by (higher, lower) level.
        numbers: traced numbers of the loss.
        bank: scores of earlier conversions, or None.
        form: static choices.
        axis_name: mapped axis that the batch is sharded over, or None.
    """

    logits: Array
    both: Array | None
    labels: Array
    defined: Array
    levels: Array
    level_count: int
    where: Array
    weights: Array | None
    segments: Array | None
    values: Array | None
    margins: Mapping[Term, ArrayLike]
    terms: Mapping[Term, ArrayLike]
    numbers: Numbers
    bank: ConversionBank | None
    form: PairForm
    axis_name: str | None


@dataclass(frozen=True)
class Pointwise:
    """A loss of one task's rows.

    Attributes:
        loss: (logits f[B], labels bool[B], *, where, weights, axis_name, **numbers) ->
            f[], like `bce_loss`. With loss.conversion_weight it also gets
            `positive_weight`.
        numbers: traced keyword arguments, from the configuration.
        options: options of `LossConfig` that only this loss reads.
    """

    loss: Callable[..., Array]
    numbers: Callable[["LossConfig"], Numbers] = no_numbers
    options: frozenset[str] = frozenset()


# What every ranking loss reads.
RANKED = frozenset({"lambdas", "lambda_ramp_steps", "segments"})


@dataclass(frozen=True)
class Ranking:
    """A loss that ranks the rows of a batch by one head.

    Attributes:
        loss: `RankedHead` -> f[].
        numbers: traced numbers, from the configuration.
        options: options of `LossConfig` that it reads, besides the common ones.
        excluded: values of these options that it does not support.
        surrogate: the default of loss.surrogate.
        by_levels: whether pairs are those of loss.margins.
        two_logits: whether heads have two logits; the head's logit is their difference.
    """

    loss: Callable[[RankedHead], Array]
    numbers: Callable[["LossConfig"], Numbers] = no_numbers
    options: frozenset[str] = frozenset()
    excluded: Mapping[str, str] = field(default_factory=dict)
    surrogate: Surrogate = "squared_hinge"
    by_levels: bool = False
    two_logits: bool = False


@dataclass(frozen=True)
class Constraint:
    """A penalty on a row's probabilities of all labels, lowest label first.

    Attributes:
        loss: (probabilities f[B, K], *, where, weights, axis_name) -> f[].
    """

    loss: Callable[..., Array]


POINTWISE: dict[str, Pointwise] = {}
RANKINGS: dict[str, Ranking | None] = {NONE: None}
CONSTRAINTS: dict[str, Constraint | None] = {NONE: None}


def register_pointwise(
    name: str,
    loss: Callable[..., Array],
    numbers: Callable[["LossConfig"], Numbers] = no_numbers,
    options: Collection[str] = (),
) -> None:
    """Adds a loss for `loss.pointwise`; see `Pointwise`.

    Raises:
        ValueError: the name is taken.
    """
    _register(POINTWISE, name, Pointwise(loss, numbers, frozenset(options)))


def register_ranking(
    name: str,
    loss: Callable[[RankedHead], Array],
    numbers: Callable[["LossConfig"], Numbers] = no_numbers,
    options: Collection[str] = (),
    excluded: Mapping[str, str] | None = None,
    surrogate: Surrogate = "squared_hinge",
    by_levels: bool = False,
    two_logits: bool = False,
) -> None:
    """Adds a loss for `loss.ranking`; see `Ranking`.

    Raises:
        ValueError: the name is taken.
    """
    reads = RANKED | frozenset(options)
    entry = Ranking(
        loss, numbers, reads, excluded or {}, surrogate, by_levels, two_logits
    )
    _register(RANKINGS, name, entry)


def register_constraint(name: str, loss: Callable[..., Array]) -> None:
    """Adds a loss for `loss.constraint`; see `Constraint`.

    Raises:
        ValueError: the name is taken.
    """
    _register(CONSTRAINTS, name, Constraint(loss))


def _register(table: dict[str, Entry], name: str, entry: Entry) -> None:
    if table.setdefault(name, entry) != entry:
        raise ValueError(f"a loss named {name!r} is registered already")


def entry_of(option: str, name: str, table: Mapping[str, Entry]) -> Entry:
    """The entry of a name.

    Raises:
        ValueError: the table has no such name; the message names the option.
    """
    if name not in table:
        raise ValueError(
            f"{option} must be one of {listed(table)}, not {name!r}"
            + did_you_mean(name, table)
        )
    return table[name]


def check(loss: "LossConfig") -> None:
    """Raises ValueError if an option has no effect or contradicts another."""
    pointwise = entry_of("loss.pointwise", loss.pointwise, POINTWISE)
    ranking = entry_of("loss.ranking", loss.ranking, RANKINGS)
    constraint = entry_of("loss.constraint", loss.constraint, CONSTRAINTS)
    lambdas = loss.resolved_lambdas
    numbers = lambdas.values() if isinstance(lambdas, dict) else [lambdas]
    if ranking is None and any(number > 0 for number in numbers):
        raise ValueError(
            "loss.lambdas above 0 needs a ranking loss, such as --loss.ranking pwiser"
        )
    changed = loss.changed() - ({"lambdas"} if ranking is None else set())
    for kind, table, chosen in (
        ("pointwise", POINTWISE, pointwise.options),
        ("ranking", RANKINGS, ranking.options if ranking else frozenset()),
    ):
        readers = {
            option: [name for name, e in table.items() if e and option in e.options]
            for option in sorted(changed - chosen)
        }
        for option, names in readers.items():
            if names:
                raise ValueError(
                    f"loss.{option} has no effect with loss.{kind} "
                    f"{getattr(loss, kind)}; it is an option of {', '.join(names)}"
                )
    for option, value in ranking.excluded.items() if ranking else ():
        if getattr(loss, option) == value:
            raise ValueError(f"loss.ranking {loss.ranking} has no {option} {value}")
    if constraint is None and "constraint_weight" in changed:
        raise ValueError("loss.constraint_weight needs loss.constraint aitm")
    form = pair_form(loss)
    if form.gate == "literal" and form.surrogate != "squared_hinge":
        raise ValueError("loss.gate literal needs loss.surrogate squared_hinge")
    if form.pairs == "sorted" and form.surrogate == "logistic":
        raise ValueError(
            "loss.pairs sorted is for hinges; loss.surrogate logistic needs auto, "
            "blocked or broadcast"
        )
    if loss.ranking == "ranknet" and form.surrogate == "logistic":
        for option in ("margin_ramp_steps", "ranknet_margin"):
            if option in changed:
                raise ValueError(
                    f"loss.{option} has no effect with loss.surrogate logistic; "
                    "ranknet has a margin with hinges only"
                )
    for option in ("segments", "pair_value"):
        if loss.bank and option in changed:
            raise ValueError(
                f"loss.bank cannot be used with loss.{option}: the scores in the bank "
                "have none"
            )


def pair_form(loss: "LossConfig") -> PairForm:
    """The static choices of a configuration, defaults resolved."""
    ranking = RANKINGS[loss.ranking]
    default = ranking.surrogate if ranking else PairForm.surrogate
    return PairForm(
        surrogate=loss.surrogate or default,
        gate=loss.gate,
        normalize="pairs" if loss.normalize == "balanced" else loss.normalize,
        pairs=loss.pairs,
        scores=loss.scores or "probability",
        labels=loss.ranknet_labels,
    )


def scores(logits: Array, form: PairForm) -> Array:
    """The scores that pairs compare: probabilities or logits."""
    return jax.nn.sigmoid(logits) if form.scores == "probability" else logits


def _pwiser(head: RankedHead) -> Array:
    form = head.form
    return ladder_loss(
        scores(head.logits, form),
        head.levels,
        head.margins,
        surrogate=form.surrogate,
        gate=form.gate,
        normalize=form.normalize,
        pairs=form.pairs,
        term_weights=head.terms,
        where=head.where,
        weights=head.weights,
        segments=head.segments,
        pair_values=head.values,
        axis_name=head.axis_name,
        bank=head.bank,
    )


def _ranknet(head: RankedHead) -> Array:
    form, by_level = head.form, head.form.labels == "levels"
    assert form.normalize != "negatives"  # see `excluded`
    return ranknet_loss(
        head.logits,
        head.levels if by_level else head.labels,
        surrogate=form.surrogate,
        margin=head.numbers["margin"],
        normalize=form.normalize,
        pairs=form.pairs,
        levels=head.level_count if by_level else None,
        where=head.where if by_level else head.defined,
        weights=head.weights,
        segments=head.segments,
        pair_values=head.values,
        axis_name=head.axis_name,
    )


def _jrc(head: RankedHead) -> Array:
    assert head.both is not None
    return jrc_ranking_loss(
        head.both,
        head.labels,
        where=head.defined,
        weights=head.weights,
        segments=head.segments,
        axis_name=head.axis_name,
    )


register_pointwise("bce", bce_loss)
register_pointwise(
    "focal",
    focal_bce_loss,
    numbers=lambda loss: {"gamma": loss.focal_gamma, "alpha": loss.focal_alpha},
    options=("focal_gamma", "focal_alpha"),
)
PAIRS = ("surrogate", "normalize", "pairs", "pair_value", "margin_ramp_steps")
register_ranking(
    "pwiser",
    _pwiser,
    options=(*PAIRS, "scores", "margins", "gate", "bank"),
    by_levels=True,
)
register_ranking(
    "ranknet",
    _ranknet,
    numbers=lambda loss: {"margin": loss.ranknet_margin},
    options=(*PAIRS, "ranknet_labels", "ranknet_margin"),
    excluded={"normalize": "negatives"},
    surrogate="logistic",
)
register_ranking("jrc", _jrc, two_logits=True)
register_constraint("aitm", label_constraint_loss)
