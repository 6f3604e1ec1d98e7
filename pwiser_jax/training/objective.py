"""The training objective of a batch, from the parts that a configuration names.

    loss = mean over tasks of (pointwise + lambda * ranking) + constraint

ESCM2 has a sum over CTR, CVR and CTCVR in place of the mean, with weights, and a loss
of its own for CVR (see `losses.escm2`). Learned task weights have a sum, too (see
`balancing`).

An `Objective` holds what is static: tasks, ranked heads, pairs of labels, and the names
of losses (see `pwiser_jax.parts`). `Weights` holds the numbers, which are traced:
changing one does not recompile.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import Array
from jax.typing import ArrayLike

from pwiser_jax.config import BceRows, LossConfig
from pwiser_jax.data.batches.batches import Batch
from pwiser_jax.errors import UserError, did_you_mean, listed
from pwiser_jax.losses import (
    ConversionBank,
    conversion_bank,
    escm2_dr_loss,
    escm2_ips_loss,
    update_bank,
)
from pwiser_jax.losses.counts import ladder_pairs
from pwiser_jax.models.heads import both_logits
from pwiser_jax.parts import (
    CONSTRAINTS,
    NONE,
    POINTWISE,
    RANKINGS,
    Numbers,
    PairForm,
    RankedHead,
    Term,
    pair_form,
    register_constraint,
    register_pointwise,
    register_ranking,
    scores,
)
from pwiser_jax.tasks import (
    ESCM2,
    IMPUTATION,
    CvrSpace,
    Task,
    heads,
    measured,
    trained,
)
from pwiser_jax.training.balancing import initial_task_weights, uncertainty_weighted

__all__ = [
    "CONSTRAINTS",
    "POINTWISE",
    "RANKINGS",
    "Banks",
    "Objective",
    "Weights",
    "build",
    "notes",
    "ramped",
    "register_constraint",
    "register_pointwise",
    "register_ranking",
    "union",
]

BASE_MARGIN = {"probability": 0.1, "logit": 0.5}

Banks = Mapping[str, ConversionBank]
Losses = dict[str, Array]


class Weights(NamedTuple):
    """The traced numbers of an objective. None: the part does not exist.

    Heads with lambda 0 and terms with weight 0 are computed and contribute 0.

    Attributes:
        lambdas: by head.
        margins: by pair of levels (higher, lower).
        terms: weight of a pair of levels.
        pointwise: keyword arguments of the pointwise loss.
        ranking: numbers of the ranking loss.
        conversion: weight of positive rows of tasks that predict the highest label.
        constraint: weight of the constraint.
        lambda_ramp: steps over which lambdas increase from 0.
        margin_ramp: steps over which margins increase from 0.
        escm2: "cvr" and "ctcvr", weights of these tasks, and "floor" of propensities.
    """

    lambdas: Mapping[str, ArrayLike]
    margins: Mapping[Term, ArrayLike]
    terms: Mapping[Term, ArrayLike]
    pointwise: Numbers
    ranking: Numbers
    conversion: ArrayLike | None = None
    constraint: ArrayLike | None = None
    lambda_ramp: ArrayLike | None = None
    margin_ramp: ArrayLike | None = None
    escm2: Numbers | None = None


class Terms(NamedTuple):
    """The terms whose sum is the loss.

    Attributes:
        tasks: of each task, its weight included.
        constraint: the rest; None if there is none.
    """

    tasks: dict[str, Array]
    constraint: Array | None

    def total(self) -> Array:
        rest = jnp.zeros(()) if self.constraint is None else self.constraint
        return sum(self.tasks.values(), jnp.zeros(())) + rest


@dataclass(frozen=True)
class Objective:
    """The static part of an objective.

    Attributes:
        tasks: tasks with a pointwise loss.
        heads: tasks whose heads can be ranked.
        rungs: names of the levels, from "exposure" on.
        pointwise: name of the pointwise loss.
        bce_rows: rows of the pointwise loss.
        constraint: name of the constraint.
        ranking: name of the ranking loss; "none" if no head is ranked.
        ranked: names of the ranked heads.
        terms: pairs of levels (higher, lower) that are ranked, if `ranking` has any.
        form: static choices of the ranking loss.
        balanced: whether lambda balances the gradients' norms.
        bank: earlier conversions that each ranked head keeps.
        segments: whether pairs are formed within groups.
        space: what the heads predict.
        uncertainty: whether the weights of tasks are learned.
        pcgrad: whether conflicting gradients of tasks are projected.
    """

    tasks: tuple[Task, ...]
    heads: tuple[Task, ...]
    rungs: tuple[str, ...]
    pointwise: str = "bce"
    bce_rows: BceRows = "all"
    constraint: str = NONE
    ranking: str = NONE
    ranked: tuple[str, ...] = ()
    terms: tuple[Term, ...] = ()
    form: PairForm = PairForm()  # noqa: RUF009  # frozen
    balanced: bool = False
    bank: int = 0
    segments: bool = False
    space: CvrSpace = "ctcvr"
    uncertainty: bool = False
    pcgrad: bool = False

    def __call__(
        self,
        logits: dict[str, Array],
        batch: Batch,
        weights: Weights,
        *,
        banks: Banks | None = None,
        axis_name: str | None = None,
        log_variances: Array | None = None,
    ) -> tuple[Array, tuple[Losses, Banks]]:
        """Computes the loss of a batch, its parts, and the banks for the next step.

        Args:
            logits: f[B] by name.
            batch: the device's batch; labels are nested, lowest first.
            weights: the traced numbers.
            banks: scores of earlier conversions by head; see `empty_banks`.
            axis_name: mapped axis that the batch is sharded over, if any.
            log_variances: f[tasks], s of `uncertainty_weighted`, if `uncertainty`.

        Returns:
            The scalar loss; its parts by "LOSS/HEAD", before lambda, "lambda/HEAD"
            where lambda changes from step to step, and "weight/HEAD" where weights are
            learned; the new banks.
        """
        terms, aux = self.terms_of(
            logits,
            batch,
            weights,
            banks=banks,
            axis_name=axis_name,
            log_variances=log_variances,
        )
        return terms.total(), aux

    def terms_of(
        self,
        logits: dict[str, Array],
        batch: Batch,
        weights: Weights,
        *,
        banks: Banks | None = None,
        axis_name: str | None = None,
        log_variances: Array | None = None,
    ) -> tuple[Terms, tuple[Losses, Banks]]:
        """As the loss, by task. A ranked head without a pointwise loss is a task."""
        level = _level(batch.labels)
        banks = banks or {}
        tasks = {task.name: task for task in self.tasks}

        def pointwise(name: str, z: Array) -> Array:
            return self._pointwise(tasks[name], z, level, batch, weights, axis_name)

        losses = {
            f"{self.pointwise}/{name}": pointwise(name, logits[name]) for name in tasks
        }
        by_task = {name: losses[f"{self.pointwise}/{name}"] for name in tasks}
        if weights.escm2 is not None:
            cvr, ctcvr, numbers = self.heads[1].name, self.tasks[1].name, weights.escm2
            value = self._escm2(logits, batch, numbers["floor"], axis_name)
            losses[f"{self.space}/{cvr}"] = value
            by_task[cvr] = value * numbers["cvr"]
            by_task[ctcvr] *= numbers["ctcvr"]
        new_banks: dict[str, ConversionBank] = {}
        for name in self.ranked:
            head = self._head(name, logits, batch, weights, banks, axis_name)
            z, lambda_ = logits[name], weights.lambdas[name]
            if self.balanced:
                ranking = partial(self._ranking, head)
                ratio = _gradient_ratio(partial(pointwise, name), ranking, z, axis_name)
                lambda_ = lambda_ * ratio
            if self.balanced or weights.lambda_ramp is not None:
                losses[f"lambda/{name}"] = jnp.asarray(lambda_)
            if name in banks:
                new_banks[name] = update_bank(
                    banks[name],
                    scores(z, self.form),
                    level == self._top,
                    where=head.where,
                    axis_name=axis_name,
                )
            value = losses[f"{self.ranking}/{name}"] = self._ranking(head, z)
            rest = by_task.get(name, jnp.zeros(()))
            by_task[name] = rest + jnp.asarray(lambda_ * value)
        if self.uncertainty:
            assert log_variances is not None
            for (name, loss), s in zip(by_task.items(), log_variances, strict=True):
                by_task[name] = uncertainty_weighted(loss, s)
                losses[f"weight/{name}"] = jnp.exp(-s)
        elif weights.escm2 is None:
            by_task = {name: loss / len(tasks) for name, loss in by_task.items()}
        weighted = None
        constraint = CONSTRAINTS[self.constraint]
        if constraint is not None:
            joint = [logits[name] for name in self._joint]
            penalty = constraint.loss(
                jax.nn.sigmoid(jnp.stack(joint, axis=1)),
                where=batch.mask,
                weights=batch.pair_weights,
                axis_name=axis_name,
            )
            losses[self.constraint] = penalty
            assert weights.constraint is not None
            weighted = penalty * jnp.asarray(weights.constraint)
        return Terms(by_task, weighted), (losses, new_banks)

    def initial_parameters(self) -> dict[str, Any]:
        """Parameters that are learned beside those of the model."""
        return initial_task_weights(len(self.tasks)) if self.uncertainty else {}

    def towers_of(self, task: str) -> set[str]:
        """The towers that the term of a task depends on."""
        names = [head.name for head in self.heads]
        if self.space == "ctcvr" or task == names[0]:
            return {task}
        joint = self._joint[1:]
        if task in joint:
            return set(names[: len(self.rungs) - 1][: joint.index(task) + 2])
        return {task, IMPUTATION} if self.space == "escm2_dr" else {task}

    def pair_counts(
        self,
        logits: dict[str, Array],
        batch: Batch,
        weights: Weights,
        *,
        banks: Banks | None = None,
        axis_name: str | None = None,
    ) -> dict[str, Array]:
        """Pairs and active pairs by term: "pairs/HEAD/HI>LO" and "active/HEAD/HI>LO".

        Within segments, "groups/conversions_paired" instead: the share of conversions
        that have a row with a lower label in their segment; NaN without conversions.
        Arguments are those of the loss.
        """
        counts: dict[str, Array] = {}
        if self.segments:
            share = _paired_share(batch, len(self.rungs) - 1, axis_name)
            return {"groups/conversions_paired": share}
        for name in self.ranked if self.terms else ():
            head = self._head(name, logits, batch, weights, banks or {}, axis_name)
            pairs_by_term = ladder_pairs(
                scores(head.logits, self.form),
                head.levels,
                head.margins,
                surrogate=self.form.surrogate,
                gate=self.form.gate,
                where=head.where,
                axis_name=axis_name,
                bank=head.bank,
            )
            for (hi, lo), (pairs, active) in pairs_by_term.items():
                term = f"{name}/{self.rungs[hi]}>{self.rungs[lo]}"
                counts |= {f"pairs/{term}": pairs, f"active/{term}": active}
        return counts

    def empty_banks(self) -> Banks:
        """An empty bank for each ranked head, if the configuration has banks."""
        names = self.ranked if self.bank else ()
        return {name: conversion_bank(self.bank) for name in names}

    @property
    def _top(self) -> int:
        """The highest level in any pair."""
        return max((hi for hi, _ in self.terms), default=0)

    @property
    def _joint(self) -> list[str]:
        """The joint task of each label, lowest label first."""
        return [t.name for t in self.heads if t.given == 0]

    def _pointwise(
        self,
        task: Task,
        logits: Array,
        level: Array,
        batch: Batch,
        weights: Weights,
        axis_name: str | None,
    ) -> Array:
        top = len(self.rungs) - 1
        where = batch.mask & (level >= task.given)
        if self.bce_rows == "conversions":
            where = where & (level == top)
        more = dict(weights.pointwise)
        if weights.conversion is not None and task.rung == top:
            more["positive_weight"] = weights.conversion
        return POINTWISE[self.pointwise].loss(
            logits,
            level >= task.rung,
            where=where,
            weights=batch.weights,
            axis_name=axis_name,
            **more,
        )

    def _escm2(
        self,
        logits: dict[str, Array],
        batch: Batch,
        floor: ArrayLike,
        axis_name: str | None,
    ) -> Array:
        """ESCM2's loss of the CVR head, on all rows."""
        names, loss = [task.name for task in self.heads[:2]], escm2_ips_loss
        if self.space == "escm2_dr":
            names, loss = [*names, IMPUTATION], escm2_dr_loss
        return loss(
            jnp.stack([logits[name] for name in names], axis=1),
            batch.labels[:, 0],
            batch.labels[:, 1],
            floor=floor,
            where=batch.mask,
            weights=batch.weights,
            axis_name=axis_name,
        )

    def _head(
        self,
        name: str,
        logits: dict[str, Array],
        batch: Batch,
        weights: Weights,
        banks: Banks,
        axis_name: str | None,
    ) -> RankedHead:
        level = _level(batch.labels)
        task = next(task for task in self.heads if task.name == name)
        where = batch.mask
        if self.terms:  # a level above all pairs has no margin
            where = where & (level <= self._top)
        return RankedHead(
            logits=logits[name],
            both=logits.get(both_logits(name)),
            labels=level >= task.rung,
            defined=batch.mask & (level >= task.given),
            levels=level,
            level_count=len(self.rungs),
            where=where,
            weights=batch.pair_weights,
            segments=batch.groups if self.segments else None,
            values=batch.values,
            margins=weights.margins,
            terms=weights.terms,
            numbers=weights.ranking,
            bank=banks.get(name),
            form=self.form,
            axis_name=axis_name,
        )

    def _ranking(self, head: RankedHead, logits: Array) -> Array:
        entry = RANKINGS[self.ranking]
        assert entry is not None
        return entry.loss(head._replace(logits=logits))


def ramped(weights: Weights, step: ArrayLike) -> Weights:
    """The numbers at a step, from 0: lambdas and margins increase linearly."""

    def grown(numbers: Mapping, steps: ArrayLike | None) -> Mapping:
        if steps is None:
            return numbers
        share = optax.schedules.linear_schedule(0.0, 1.0, 1)(
            step / jnp.maximum(steps, 1)
        )
        return {key: value * share for key, value in numbers.items()}

    ranking = dict(weights.ranking)
    if "margin" in ranking:
        ranking |= grown({"margin": ranking["margin"]}, weights.margin_ramp)
    return weights._replace(
        lambdas=grown(weights.lambdas, weights.lambda_ramp),
        margins=grown(weights.margins, weights.margin_ramp),
        ranking=ranking,
    )


def _gradient_ratio(
    loss: Callable[[Array], Array],
    over: Callable[[Array], Array],
    logits: Array,
    axis_name: str | None,
) -> Array:
    """Ratio of gradient norms |d loss| / |d over| w.r.t. the logits of all devices.

    A constant to differentiation; 0 where `over` has no gradient.
    """

    def squares(function: Callable[[Array], Array]) -> Array:
        gradient = jax.grad(function)(jax.lax.stop_gradient(logits))
        total = jnp.sum(jnp.square(gradient))
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    above, below = squares(loss), squares(over)
    ratio = above / jnp.where(below > 0, below, 1)
    return jnp.sqrt(jnp.where(below > 0, ratio, 0))


def _paired_share(batch: Batch, top: int, axis_name: str | None) -> Array:
    """Share of rows of level `top` with a row of a lower level in their segment."""
    level = _level(batch.labels)
    last = jnp.iinfo(jnp.int32).max
    lower = jnp.where(batch.mask & (level < top), batch.groups, last)
    if axis_name is not None:
        lower = jax.lax.all_gather(lower, axis_name, tiled=True)
    lower = jnp.sort(lower)
    at = jnp.searchsorted(lower, batch.groups)
    paired = jnp.take(lower, at, mode="clip") == batch.groups
    top_rows = batch.mask & (level == top)
    sums = jnp.stack([jnp.sum(top_rows & paired), jnp.sum(top_rows)])
    if axis_name is not None:
        sums = jax.lax.psum(sums, axis_name)
    return sums[0] / sums[1]


def _level(labels: Array) -> Array:
    return jnp.sum(labels.astype(jnp.int32), axis=-1)


def build(
    config: LossConfig, labels: tuple[str, ...], space: CvrSpace
) -> tuple[Objective, Weights]:
    """The objective of a configuration, for data with these labels.

    If all lambdas are 0, the objective is that of ranking "none".

    Raises:
        UserError: a head or a pair of labels that does not exist; options that do not
            fit the model or the data.
    """
    tasks = trained(labels, space)
    # In all spaces but "ctcvr" joint tasks have logits, too.
    known = {t.name: t for t in (*heads(labels, space), *tasks)}
    if space != "ctcvr":
        known |= {t.name: t for t in measured(labels) if t.given == 0}
    _check_space(config, labels, space)
    entry = RANKINGS[config.ranking]
    lambdas = config.resolved_lambdas
    if not isinstance(lambdas, dict):
        lambdas = {task.name: lambdas for task in tasks}
    for name in lambdas:
        if name not in known:
            raise UserError(
                f"loss.lambdas names the head {name!r}; this model and data have "
                f"{listed(known, 'and')}{did_you_mean(name, known)}"
            )
    ranked = tuple(name for name in known if lambdas.get(name, 0.0) > 0)
    objective = Objective(
        tasks=tasks,
        heads=tuple(known.values()),
        rungs=_levels(labels),
        pointwise=config.pointwise,
        bce_rows=config.bce_rows,
        constraint=config.constraint,
        space=space,
        uncertainty=config.task_weights == "uncertainty",
        pcgrad=config.gradients == "pcgrad",
    )
    escm2 = {
        "cvr": config.cvr_weight,
        "ctcvr": config.ctcvr_weight,
        "floor": config.propensity_floor,
    }
    weights = Weights(
        lambdas={},
        margins={},
        terms={},
        pointwise=POINTWISE[config.pointwise].numbers(config),
        ranking={},
        conversion=None if config.conversion_weight == 1 else config.conversion_weight,
        constraint=None if config.constraint == NONE else config.constraint_weight,
        escm2=escm2 if space in ESCM2 else None,
    )
    margins = _margins(config, labels) if entry and entry.by_levels else {}
    if entry is None or not ranked:
        return objective, weights
    if entry.by_levels and not margins:
        raise UserError(
            "loss.margins is null for every pair of labels, so there is nothing to "
            "rank; give one a number, or choose --loss.ranking none"
        )
    pairs = set(ranked) - {task.name for task in tasks}
    if config.normalize == "balanced" and pairs:
        raise UserError(
            f"loss.normalize is balanced, and the head {min(pairs)!r} has no "
            "pointwise loss to be balanced with"
        )
    if config.task_weights == "uncertainty" and pairs:
        raise UserError(
            f"loss.task_weights is uncertainty, and the head {min(pairs)!r} has no "
            "pointwise loss to be weighted with; leave it out of loss.lambdas"
        )
    one_logit = set(ranked) - {task.name for task in heads(labels, space)}
    if entry.two_logits and one_logit:
        raise UserError(
            f"loss.ranking {config.ranking} needs two logits, and {min(one_logit)!r} "
            f"is a product of heads under model.cvr_space {space}; name other heads in "
            "loss.lambdas"
        )
    objective = replace(
        objective,
        ranking=config.ranking,
        ranked=ranked,
        terms=tuple(margins),
        form=pair_form(config),
        balanced=config.normalize == "balanced",
        bank=config.bank,
        segments=config.segments == "group",
    )
    return objective, weights._replace(
        lambdas={name: lambdas[name] for name in ranked},
        margins=margins,
        terms=dict.fromkeys(margins, 1.0),
        ranking=entry.numbers(config),
        lambda_ramp=config.lambda_ramp_steps or None,
        margin_ramp=config.margin_ramp_steps or None,
    )


def _check_space(config: LossConfig, labels: tuple[str, ...], space: CvrSpace) -> None:
    """Raises UserError where a loss does not fit the model's space or the labels."""
    ranking = RANKINGS[config.ranking]
    two_logits = ranking is not None and ranking.two_logits
    if two_logits and space in ("product", *ESCM2):
        raise UserError(
            f"loss.ranking {config.ranking} needs two logits of each trained task; "
            f"model.cvr_space {space} trains products of heads, which have one"
        )
    if config.constraint != NONE and (space != "ctcvr" or len(labels) < 2):
        raise UserError(
            f"loss.constraint {config.constraint} needs two labels or more and "
            "model.cvr_space ctcvr; in the other spaces a later label is never more "
            "probable than an earlier one"
        )
    changed = config.changed()
    if space not in ESCM2:
        for option in ("cvr_weight", "ctcvr_weight", "propensity_floor"):
            if option in changed:
                raise UserError(
                    f"loss.{option} has no effect with model.cvr_space {space}; it is "
                    f"an option of {listed(ESCM2, 'and')}"
                )
        return
    if len(labels) != 2:
        raise UserError(
            f"model.cvr_space {space} needs two labels, a click and a conversion; the "
            f"data have {len(labels)}: {', '.join(labels)}"
        )
    if config.task_weights == "uncertainty":
        raise UserError(
            f"model.cvr_space {space} has loss.cvr_weight and loss.ctcvr_weight; leave "
            "loss.task_weights uncertainty out"
        )
    for option in ("pointwise", "conversion_weight", "bce_rows"):
        if option in changed:
            raise UserError(
                f"model.cvr_space {space} is defined by plain cross-entropies; leave "
                f"loss.{option} out"
            )


def notes(config: LossConfig, objective: Objective) -> list[str]:
    """Lines for the user at the start of a run."""
    if config.ranking != NONE and not objective.ranked:
        return [
            f"loss.ranking {config.ranking} has lambda 0 for every head: training "
            f"{config.pointwise} alone"
        ]
    return []


def union(
    built: Sequence[tuple[Objective, Weights]],
) -> tuple[Objective, list[Weights]]:
    """One objective that computes each of several, and the numbers for each. It has the
    heads and terms of all objectives. Where an objective lacks a head or a term, its
    lambda or weight is 0.

    Raises:
        ValueError: they differ in more than heads, terms and numbers, or have banks and
            different highest levels: a bank holds the rows of the highest level.
    """
    ranking = [each for each in built if each[0].ranked] or built[:1]
    (first, numbers), objectives = ranking[0], [objective for objective, _ in built]
    ranked = dict.fromkeys(name for o in objectives for name in o.ranked)
    terms = sorted({term for o in objectives for term in o.terms})
    whole = replace(first, ranked=tuple(ranked), terms=tuple(terms))
    tops = {max(o.terms)[0] for o in objectives if o.terms}
    for objective in objectives:
        same = replace(objective, ranked=whole.ranked, terms=whole.terms)
        if not objective.ranked:  # lambda 0: fits any ranking
            same = replace(
                same,
                ranking=whole.ranking,
                form=whole.form,
                balanced=whole.balanced,
                bank=whole.bank,
                segments=whole.segments,
            )
        if same != whole or (whole.bank and len(tops) > 1):
            raise ValueError(f"no union of {whole} and {objective}")
    return whole, [
        weights._replace(
            lambdas={name: weights.lambdas.get(name, 0.0) for name in ranked},
            margins={term: weights.margins.get(term, 0.0) for term in terms},
            terms={term: weights.terms.get(term, 0.0) for term in terms},
            ranking=weights.ranking or numbers.ranking,
            lambda_ramp=weights.lambda_ramp or numbers.lambda_ramp,
            margin_ramp=weights.margin_ramp or numbers.margin_ramp,
        )
        for _, weights in built
    ]


def _margins(config: LossConfig, labels: tuple[str, ...]) -> dict[Term, float]:
    """Margins by (higher, lower) level; by default of the top label over each other."""
    levels = {name: level for level, name in enumerate(_levels(labels))}
    top, step = len(labels), BASE_MARGIN[pair_form(config).scores]
    margins: dict[Term, float] = {(top, low): step * (top - low) for low in range(top)}
    for pair, margin in (config.margins or {}).items():
        hi, _, lo = pair.partition(">")
        if hi not in levels or lo not in levels or levels[hi] <= levels[lo]:
            raise UserError(
                f"loss.margins names {pair!r}; expected higher>lower out of "
                f"{', '.join(reversed(levels))}"
            )
        term = levels[hi], levels[lo]
        margins.pop(term, None)
        if margin is not None:
            margins[term] = margin
    return dict(sorted(margins.items()))


def _levels(labels: tuple[str, ...]) -> tuple[str, ...]:
    return ("exposure", *labels)
