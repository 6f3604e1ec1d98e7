"""Planned runs: their names in tables, and their configurations."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pwiser_jax.errors import UserError

if TYPE_CHECKING:
    from pwiser_jax.config import Config

# The options of `loss` by the name of a loss, on top of PWISER. Paired runs share all
# other options: they have the same initial weights and see the same batches. BCE is
# PWiseR with lambda 0, so that one sweep trains both.
PWISER = {"ranking": "pwiser", "lambdas": 0.1}
LOSSES: Mapping[str, Mapping[str, Any]] = {
    "bce": {"lambdas": 0.0},
    "pwiser": {},
    "without_click_only": {"margins": {"conversion>click": None}},
    "without_no_click": {"margins": {"conversion>exposure": None}},
    "bce_on_conversions": {"bce_rows": "conversions"},
    "ctr_only": {"lambdas": {"ctr": 0.1}},
    "ctcvr_only": {"lambdas": {"ctcvr": 0.1}},
    "logit": {"scores": "logit"},
    "logistic": {"scores": "logit", "surrogate": "logistic"},
    "literal_gate": {"gate": "literal"},
    "per_negative": {"normalize": "negatives"},
    "plain_sums": {"lambdas": 1e-5, "normalize": "none"},
    "balanced": {"lambdas": 1.0, "normalize": "balanced"},
    "bank": {"bank": 64},
    "bce_conversion_aware": {"lambdas": 0.0},
    "conversion_aware": {},
}
# `data.min_conversions` of a loss. Its batches differ from those of the paired runs.
MIN_CONVERSIONS = {"bce_conversion_aware": 8, "conversion_aware": 8}

Tag = str | int | float
Configure = Callable[[], "Config"]


@dataclass(frozen=True)
class Run:
    """One training run.

    Args:
        model, loss, seed: its name in tables; no number depends on them.
        configure: makes its configuration. A report from tables never calls it: it
            would load jax.
        tags: further columns of its results, such as a rate of noise.
    """

    model: str
    loss: str
    seed: int
    configure: Configure
    tags: Mapping[str, Tag] = field(default_factory=dict)

    @cached_property
    def config(self) -> "Config":
        """Its configuration; `data.path` is replaced by that of the experiment."""
        return self.configure()

    @property
    def name(self) -> str:
        from pwiser_jax.training.run.folder import config_hash

        return f"{self.model}-{self.loss}-seed{self.seed}-{config_hash(self.config)}"

    def seeded(self, seed: int) -> "Run":
        """The same with another seed."""

        def configure() -> "Config":
            return replace(self.config, train=replace(self.config.train, seed=seed))

        return replace(self, seed=seed, configure=configure)


def fixed(config: "Config") -> Configure:
    """A configuration that is there already, as a `Run` takes it."""
    return lambda: config


def paired_runs(
    configs: Path,
    models: Sequence[str],
    losses: Sequence[str],
    seeds: Sequence[int],
    overrides: Sequence[str] = (),
    tags: Mapping[str, Tag] | None = None,
) -> list[Run]:
    """MODEL.yaml in `configs` for each model, times losses, times seeds.

    Ordered by seed, so that a killed experiment leaves complete pairs.
    """
    if not models or not losses or not seeds:
        raise UserError("nothing to run: name a model, a loss and a seed")
    from pwiser_jax.config import load_config

    base = {
        model: load_config(configs / f"{model}.yaml", tuple(overrides))
        for model in models
    }
    return [
        Run(model, loss, seed, fixed(_changed(base[model], loss, seed)), tags or {})
        for seed in seeds
        for model in models
        for loss in losses
    ]


def _changed(config: "Config", loss: str, seed: int) -> "Config":
    least = max(config.data.min_conversions, MIN_CONVERSIONS.get(loss, 0))
    return replace(
        config,
        loss=replace(config.loss, **{**PWISER, **LOSSES[loss]}),
        data=replace(config.data, min_conversions=least),
        train=replace(config.train, seed=seed),
    )
