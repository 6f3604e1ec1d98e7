"""The training objective: mean over tasks of (BCE + lambda * PWiseR).

An `Objective` holds what is compiled in (which tasks, heads and terms exist, and the
forms); `Weights` holds the numbers, which are traced: changing one compiles nothing.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from pwiser_jax.config import Balance, BceRows, LossConfig, Scores
from pwiser_jax.errors import UserError
from pwiser_jax.losses import (
    ConversionBank,
    bce_loss,
    conversion_bank,
    ladder_loss,
    update_bank,
)
from pwiser_jax.losses.counts import ladder_pairs
from pwiser_jax.losses.pairs import Pairs
from pwiser_jax.losses.pairs.options import Gate, Surrogate
from pwiser_jax.tasks import CvrSpace, Task, heads, trained

BASE_MARGIN = {"probability": 0.1, "logit": 0.5}

Term = tuple[int, int]
Banks = Mapping[str, ConversionBank]


class Weights(NamedTuple):
    """The traced numbers of an objective: lambda by head, margin and weight by term.

    A head of lambda 0 and a term of weight 0 are computed and count for nothing.
    """

    lambdas: Mapping[str, jax.Array | float]
    margins: Mapping[Term, jax.Array | float]
    terms: Mapping[Term, jax.Array | float]


@dataclass(frozen=True)
class Objective:
    """What is compiled in: tasks with a cross-entropy, ranked heads, terms, forms.

    `rungs` are the names of the levels, from "exposure" on.
    """

    tasks: tuple[Task, ...]
    ranked: tuple[str, ...]
    terms: tuple[Term, ...]
    scores: Scores
    surrogate: Surrogate
    gate: Gate
    normalize: Balance
    pairs: Pairs
    bce_rows: BceRows
    bank: int
    rungs: tuple[str, ...]

    def __call__(
        self,
        logits: dict[str, jax.Array],
        labels: jax.Array,
        mask: jax.Array,
        weights: Weights,
        *,
        banks: Banks | None = None,
        row_weights: jax.Array | None = None,
        axis_name: str | None = None,
    ) -> tuple[jax.Array, tuple[dict[str, jax.Array], Banks]]:
        """The loss of a batch and its parts.

        Args:
            logits: f[B] by name.
            labels: int[B, L], nested, lowest rung first.
            mask: bool[B], False for padding.
            weights: lambdas, margins and weights of terms.
            banks: conversions of the steps before, by head: see `empty_banks`.
            row_weights: f[B], what each row weighs in the cross-entropies; a term of
                the pair loss stays the mean over its pairs.
            axis_name: the mapped axis that the batch is spread over, if any.
        Returns:
            The scalar loss; its parts "bce/NAME" and "pwiser/NAME" (before lambda),
            and "lambda/NAME" where it is balanced; the banks for the next step.
        """
        level = _level(labels)
        rows = mask
        if self.bce_rows == "conversions":
            rows = rows & (level == labels.shape[-1])
        top, ranked_rows = self._ranked_rows(level, mask)
        banks = banks or {}
        tasks = {task.name: task for task in self.tasks}

        def bce(name: str, logits: jax.Array) -> jax.Array:
            return bce_loss(
                logits,
                level >= tasks[name].rung,
                where=rows & (level >= tasks[name].given),
                weights=row_weights,
                axis_name=axis_name,
            )

        def pwiser(name: str, logits: jax.Array) -> jax.Array:
            return ladder_loss(
                self._scores(logits),
                level,
                weights.margins,
                surrogate=self.surrogate,
                gate=self.gate,
                normalize=self.normalize if self.normalize != "balanced" else "pairs",
                pairs=self.pairs,
                term_weights=weights.terms,
                where=ranked_rows,
                axis_name=axis_name,
                bank=banks.get(name),
            )

        parts = {f"bce/{name}": bce(name, logits[name]) for name in tasks}
        total = sum(parts.values(), jnp.zeros(()))
        renewed: dict[str, ConversionBank] = {}
        for name in self.ranked:
            own, lambda_ = logits[name], weights.lambdas[name]
            if self.normalize == "balanced":
                losses = partial(bce, name), partial(pwiser, name)
                lambda_ *= _pull(*losses, own, axis_name)
                parts[f"lambda/{name}"] = lambda_
            if name in banks:
                renewed[name] = update_bank(
                    banks[name],
                    self._scores(own),
                    level == top,
                    where=ranked_rows,
                    axis_name=axis_name,
                )
            rank = parts[f"pwiser/{name}"] = pwiser(name, own)
            total += lambda_ * rank
        return total / len(self.tasks), (parts, renewed)

    def pair_counts(
        self,
        logits: dict[str, jax.Array],
        labels: jax.Array,
        mask: jax.Array,
        weights: Weights,
        *,
        banks: Banks,
        axis_name: str | None,
    ) -> dict[str, jax.Array]:
        """Pairs and active pairs of the loss, "pairs/HEAD/HI>LO" and "active/...".

        Arguments are those of the loss, the banks those that it was given.
        """
        level = _level(labels)
        _, rows = self._ranked_rows(level, mask)
        counts: dict[str, jax.Array] = {}
        for name in self.ranked:
            found = ladder_pairs(
                self._scores(logits[name]),
                level,
                weights.margins,
                surrogate=self.surrogate,
                gate=self.gate,
                where=rows,
                axis_name=axis_name,
                bank=banks.get(name),
            )
            for (hi, lo), (pairs, active) in found.items():
                term = f"{name}/{self.rungs[hi]}>{self.rungs[lo]}"
                counts |= {f"pairs/{term}": pairs, f"active/{term}": active}
        return counts

    def _ranked_rows(self, level: jax.Array, mask: jax.Array) -> tuple[int, jax.Array]:
        """The highest level of all terms, and the rows up to it: no other ranks."""
        top = max((hi for hi, _ in self.terms), default=0)
        return top, mask & (level <= top)

    def _scores(self, logits: jax.Array) -> jax.Array:
        return jax.nn.sigmoid(logits) if self.scores == "probability" else logits

    def empty_banks(self) -> Banks:
        """A bank for each ranked head, to begin with, where the config has any."""
        names = self.ranked if self.bank else ()
        return {name: conversion_bank(self.bank) for name in names}


def _pull(
    loss: Callable[[jax.Array], jax.Array],
    over: Callable[[jax.Array], jax.Array],
    logits: jax.Array,
    axis_name: str | None,
) -> jax.Array:
    """|gradient of `loss`| / |gradient of `over`| at the logits of all devices.

    A number that nothing is differentiated through; 0 where `over` has no gradient.
    """

    def squares(function: Callable[[jax.Array], jax.Array]) -> jax.Array:
        gradient = jax.grad(function)(jax.lax.stop_gradient(logits))
        total = jnp.sum(jnp.square(gradient))
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    above, below = squares(loss), squares(over)
    ratio = above / jnp.where(below > 0, below, 1)
    return jnp.sqrt(jnp.where(below > 0, ratio, 0))


def _level(labels: jax.Array) -> jax.Array:
    return jnp.sum(labels.astype(jnp.int32), axis=-1)


def build(
    config: LossConfig, labels: tuple[str, ...], space: CvrSpace
) -> tuple[Objective, Weights]:
    """Resolves names and defaults of `config` against the data's labels.

    Raises:
        UserError: a head or a pair of labels that does not exist, or nothing to train.
    """
    tasks = trained(labels, space)
    known = {task.name: None for task in (*heads(labels, space), *tasks)}
    if (
        space == "click"
    ):  # the joint products exist as logits, without a BCE of their own
        known |= {task.name: None for task in trained(labels, "product")}
    lambdas = config.lambdas
    if not isinstance(lambdas, dict):
        lambdas = {task.name: lambdas for task in tasks}
    for name in lambdas:
        if name not in known:
            raise UserError(
                f"loss.lambdas names the head {name!r}; this model and data have "
                f"{', '.join(known)}"
            )
    ranked = tuple(name for name in known if lambdas.get(name, 0.0) > 0)
    margins = _margins(config, labels) if ranked else {}
    if not margins:
        ranked = ()
    objective = Objective(
        tasks=tasks,
        ranked=ranked,
        terms=tuple(margins),
        scores=config.scores,
        surrogate=config.surrogate,
        gate=config.gate,
        normalize=config.normalize,
        pairs=config.pairs,
        bce_rows=config.bce_rows,
        bank=config.bank,
        rungs=_rungs(labels),
    )
    by_head = {name: lambdas[name] for name in ranked}
    alone = set(ranked) - {task.name for task in tasks}
    if config.normalize == "balanced" and alone:
        raise UserError(
            f"loss.normalize is balanced, and the head {min(alone)!r} has no "
            "cross-entropy of its own to be balanced with"
        )
    return objective, Weights(by_head, margins, dict.fromkeys(margins, 1.0))


def union(
    built: Sequence[tuple[Objective, Weights]],
) -> tuple[Objective, list[Weights]]:
    """One objective that is each of several, and the weights that make it so.

    It has the heads and terms of all; those that one of them lacks get lambda 0 or
    weight 0 there.

    Raises:
        ValueError: they differ in more than heads, terms and numbers, or have banks and
            other top levels: a bank holds the rows of the highest level.
    """
    objectives = [objective for objective, _ in built]
    ranked = dict.fromkeys(name for o in objectives for name in o.ranked)
    terms = sorted({term for o in objectives for term in o.terms})
    whole = replace(objectives[0], ranked=tuple(ranked), terms=tuple(terms))
    tops = {max(o.terms)[0] for o in objectives if o.terms}
    for objective in objectives:
        same = replace(objective, ranked=whole.ranked, terms=whole.terms) == whole
        if not same or (whole.bank and len(tops) > 1):
            raise ValueError(f"no union of {whole} and {objective}")
    return whole, [
        Weights(
            lambdas={name: weights.lambdas.get(name, 0.0) for name in ranked},
            margins={term: weights.margins.get(term, 0.0) for term in terms},
            terms={term: weights.terms.get(term, 0.0) for term in terms},
        )
        for _, weights in built
    ]


def _margins(config: LossConfig, labels: tuple[str, ...]) -> dict[Term, float]:
    """Margins by (hi, lo) level; the default is a step a rung, top over all lower."""
    rungs = {name: level for level, name in enumerate(_rungs(labels))}
    top, step = len(labels), BASE_MARGIN[config.scores]
    margins: dict[Term, float] = {(top, low): step * (top - low) for low in range(top)}
    for pair, margin in (config.margins or {}).items():
        hi, _, lo = pair.partition(">")
        if hi not in rungs or lo not in rungs or rungs[hi] <= rungs[lo]:
            raise UserError(
                f"loss.margins names {pair!r}; expected higher>lower out of "
                f"{', '.join(reversed(rungs))}"
            )
        term = rungs[hi], rungs[lo]
        margins.pop(term, None)
        if margin is not None:
            margins[term] = margin
    return dict(sorted(margins.items()))


def _rungs(labels: tuple[str, ...]) -> tuple[str, ...]:
    return ("exposure", *labels)
