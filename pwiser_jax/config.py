"""A run's configuration: nested frozen dataclasses, read from YAML by jsonargparse.

A YAML file shows only what differs from the defaults here. Every option can be given on
the command line too, as `--loss.lambdas 0.3`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, Namespace

from pwiser_jax import parts
from pwiser_jax.errors import UserError
from pwiser_jax.losses.pairs import Pairs
from pwiser_jax.losses.pairs.options import Gate, Normalize, Surrogate
from pwiser_jax.models.config import ModelConfig
from pwiser_jax.options import Parser
from pwiser_jax.typed import build, read_yaml

Margins = dict[str, float | None]
Scores = Literal["probability", "logit"]
BceRows = Literal["all", "conversions"]
Balance = Literal[Normalize, "balanced"]
RanknetLabels = Literal["task", "levels"]
Segments = Literal["none", "group"]
Schedule = Literal["constant", "warmup", "cosine"]
EmbeddingOptimizer = Literal["adam", "lazy_adam", "rowwise_adagrad"]
Protocol = Literal["default", "mtreclib"]

DEFAULT_LAMBDA = 0.1
# Devices hold numbers in 32 bits.
MOST, MOST_FLOAT = 2**31 - 1, 3.4e38
MOST_BY_OPTION = {
    "data.batch_size": 2**24,
    "data.eval_batch_size": 2**24,
    "loss.bank": 2**24,
}


@dataclass(frozen=True)
class DataConfig:
    """Training data and batches.

    Args:
        path: the prepared folder, written by `pwiser prepare`.
        batch_size: rows in a training batch, over all devices.
        eval_batch_size: rows in an evaluation batch, over all devices.
        min_conversions: minimum number of conversions (rows with the highest label) in
            each training batch. Extra conversions are down-weighted in the
            cross-entropy, so that each row counts once. 0: no minimum.
        order: order of the training rows. rows: shuffled by row. groups: shuffled by
            group, so that batches hold whole groups; see loss.segments.
        rows_from: where batches are gathered. files: on the host, from memory-mapped
            files. device: on the devices, each of which holds the whole split. auto:
            device on accelerators with four times the split's size free, else files.
            Results are the same.
    """

    path: str = ""
    batch_size: int = 2048
    eval_batch_size: int = 8192
    min_conversions: int = 0
    order: Literal["rows", "groups"] = "rows"
    rows_from: Literal["auto", "device", "files"] = "auto"


@dataclass(frozen=True)
class LossConfig:
    """The objective: mean over tasks of (pointwise + lambda * ranking) + constraint.

    Args:
        pointwise: loss of each task: bce (binary cross-entropy) or focal.
        focal_gamma: gamma of the focal loss; 0 is bce.
        focal_alpha: weight of label 1 in the focal loss, 1 - alpha for label 0. Unset:
            no weights.
        conversion_weight: multiplies the costs of positive rows in the pointwise loss
            of tasks that predict the highest label.
        bce_rows: rows of the pointwise loss: all, or conversions only (an ablation).
        ranking: pairwise or listwise loss of each head: none, pwiser, ranknet, or jrc
            (the ranking term of JRC).
        lambdas: weight of the ranking loss, a number, or one number per head. Unset:
            0.1. Heads that are not named have 0.
        lambda_ramp_steps: number of steps over which lambda increases linearly from 0.
            0: constant.
        scores: scores that pwiser compares: probability or logit. Unset: probability.
            ranknet compares logits.
        margins: margins of pwiser by pair of labels, such as "conversion>click: 0.1";
            the lowest label is "exposure"; null removes a pair. Unset: the highest
            label over each lower one, 0.1 a rung on probabilities, 0.5 on logits.
        margin_ramp_steps: number of steps over which margins increase linearly from 0.
            0: constant.
        surrogate: cost of a pair. Unset: squared_hinge for pwiser, logistic for
            ranknet.
        gate: pairs that are active. margin: below the margin. literal: as the paper was
            reported.
        normalize: divisor of a ranking loss: its pairs, its negatives, or none.
            balanced: pairs, and lambda is multiplied at each step by the ratio of the
            gradients' norms, pointwise over ranking, with respect to the head's logits.
        pairs: algorithm that sums over pairs. Results agree to rounding.
        bank: number of recent conversions whose scores each head keeps as additional
            positives. 0: none.
        ranknet_labels: labels of ranknet. task: the task's label. levels: the highest
            label reached.
        ranknet_margin: margin of ranknet with a hinge surrogate.
        segments: pairs of the ranking loss. none: all rows of a batch. group: rows of
            one group only; use it with data.order groups.
        pair_value: name of a column. Each pair is weighted by its higher row's value.
        constraint: penalty between heads: none, or aitm (a later label must not be more
            probable than an earlier one).
        constraint_weight: weight of the constraint.
        task_weights: weights of the tasks' losses L_t = pointwise + lambda * ranking.
            equal: their mean. uncertainty: the sum of e^-s_t L_t + s_t / 2 with s_t
            learned, without L2.
        gradients: of shared parameters. sum: of all tasks. pcgrad: the same after each
            task's gradient has lost its parts against those of other tasks. It takes
            one backward pass a task.
        cvr_weight: of model.cvr_space escm2_ips and escm2_dr, whose loss is BCE(CTR) +
            cvr_weight * (loss of CVR on all rows) + ctcvr_weight * BCE(CTCVR).
        ctcvr_weight: see cvr_weight.
        propensity_floor: of the same, the smallest predicted CTR that the loss of CVR
            is divided by.
    """

    pointwise: str = "bce"
    focal_gamma: float = 2.0
    focal_alpha: float | None = None
    conversion_weight: float = 1.0
    bce_rows: BceRows = "all"
    ranking: str = "none"
    lambdas: float | dict[str, float] | None = None
    lambda_ramp_steps: int = 0
    scores: Scores | None = None
    margins: Margins | None = None
    margin_ramp_steps: int = 0
    surrogate: Surrogate | None = None
    gate: Gate = "margin"
    normalize: Balance = "pairs"
    pairs: Pairs = "auto"
    bank: int = 0
    ranknet_labels: RanknetLabels = "task"
    ranknet_margin: float = 1.0
    segments: Segments = "none"
    pair_value: str | None = None
    constraint: str = "none"
    constraint_weight: float = 1.0
    task_weights: Literal["equal", "uncertainty"] = "equal"
    gradients: Literal["sum", "pcgrad"] = "sum"
    cvr_weight: float = 1.0
    ctcvr_weight: float = 1.0
    propensity_floor: float = 0.01

    def __post_init__(self) -> None:
        lambdas = self.resolved_lambdas
        by_head = lambdas if isinstance(lambdas, dict) else {"": lambdas}
        _check_numbers(
            {"loss.propensity_floor": self.propensity_floor},
            {
                "loss.cvr_weight": self.cvr_weight,
                "loss.ctcvr_weight": self.ctcvr_weight,
                "loss.focal_gamma": self.focal_gamma,
                "loss.conversion_weight": self.conversion_weight,
                "loss.constraint_weight": self.constraint_weight,
                "loss.lambda_ramp_steps": self.lambda_ramp_steps,
                "loss.margin_ramp_steps": self.margin_ramp_steps,
                "loss.bank": self.bank,
                **{f"loss.lambdas.{k}".rstrip("."): v for k, v in by_head.items()},
            },
        )
        if self.focal_alpha is not None and not 0 <= self.focal_alpha <= 1:
            raise ValueError(
                f"loss.focal_alpha must be between 0 and 1, got {self.focal_alpha}"
            )
        if self.propensity_floor > 1:
            raise ValueError(
                "loss.propensity_floor must be at most 1, a probability, got "
                f"{self.propensity_floor}"
            )
        margins = {f"loss.margins.{k}": v for k, v in (self.margins or {}).items()}
        for name, value in (
            *margins.items(),
            ("loss.ranknet_margin", self.ranknet_margin),
        ):
            if value is not None and not abs(value) <= MOST_FLOAT:
                raise ValueError(f"{name} must be a finite number, got {value}")
        if self.pair_value == "":
            raise ValueError("loss.pair_value must name a column")
        parts.check(self)

    @property
    def resolved_lambdas(self) -> float | dict[str, float]:
        """`lambdas`, or the default where it is unset."""
        if self.lambdas is not None:
            return self.lambdas
        return 0.0 if self.ranking == "none" else DEFAULT_LAMBDA

    def changed(self) -> frozenset[str]:
        """The names of the options that differ from their defaults."""
        return frozenset(
            f.name for f in fields(self) if getattr(self, f.name) != f.default
        )


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam.

    Args:
        learning_rate: the step size, or its peak under a schedule.
        schedule: learning rate over time. constant; warmup: linear from 0 over
            warmup_steps, then constant; cosine: the same warmup, then cosine decay to 0
            over the steps of train.epochs.
        warmup_steps: steps of linear warmup.
        clip_norm: rescale gradients whose global norm is larger. Unset: no clipping.
        l2: weight decay added to the gradient, as in PyTorch's Adam (not decoupled).
        wide_l2: the same for the wide part of model.wide. Unset: l2.
        embedding: optimizer of embedding tables, small fields excepted. adam: the same
            Adam, which updates every row of a table at each step. lazy_adam and
            rowwise_adagrad: update only the rows in the batch, in a time that does not
            depend on the size of the table. Results differ from adam.
        shard_tables: shard these tables and their optimizer state over devices by rows;
            not for adam. Results agree to rounding.
    """

    learning_rate: float = 1e-3
    schedule: Schedule = "constant"
    warmup_steps: int = 0
    clip_norm: float | None = None
    l2: float = 1e-6
    wide_l2: float | None = None
    embedding: EmbeddingOptimizer = "adam"
    shard_tables: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """Length of training, logging and checkpoints.

    Args:
        seed: seed of the initial weights, the order of rows, and dropout.
        epochs: maximum number of passes over the training rows.
        patience: number of evaluations without a better validation AUC before training
            stops.
        log_every: steps between lines of metrics.jsonl.
        checkpoint_every: steps between checkpoints. They are written in the background;
            one that is due while another is being written is skipped. A checkpoint also
            follows each epoch.
        max_steps_without_checkpoint: upper bound on the steps lost by a kill; training
            waits for the checkpoint rather than exceed it. Checkpoints are at most half
            of it apart. Unset: twice checkpoint_every.
        steps_per_call: steps per call of the compiled program. 0: about two seconds'
            worth, at most 8 (always 8 with several processes). Results are the same.
    """

    seed: int = 0
    epochs: int = 50
    patience: int = 2
    log_every: int = 50
    checkpoint_every: int = 1000
    max_steps_without_checkpoint: int | None = None
    steps_per_call: int = 0

    @property
    def most_steps_lost(self) -> int:
        """`max_steps_without_checkpoint`, resolved."""
        most = self.max_steps_without_checkpoint
        return 2 * self.checkpoint_every if most is None else most

    @property
    def checkpoint_interval(self) -> int:
        """`checkpoint_every`, or half of `most_steps_lost` if that is less."""
        return min(self.checkpoint_every, max(1, self.most_steps_lost // 2))


@dataclass(frozen=True)
class Config:
    """Configuration of a run.

    Args:
        protocol: default: choose the epoch on the validation split, never look at test.
            mtreclib: train on all rows but test and choose the epoch on test, as
            MTReclib's published tables do; results are optimistic and labelled so.
        warm_start: the folder of a run of the same model, from whose best checkpoint
            this one starts; prepare data.path with --extend RUN. Unset: from the seed.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    protocol: Protocol = "default"
    warm_start: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """The options as nested dicts; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, tree: Mapping[str, Any]) -> "Config":
        """A configuration from nested dicts; missing options have their defaults.

        Raises:
            UserError: an unknown option, or a value that does not fit.
        """
        return build(cls, tree)

    @classmethod
    def from_yaml(cls, path: str | Path, overrides: Sequence[str] = ()) -> "Config":
        """As `load_config`."""
        return load_config(Path(path), overrides)

    def __post_init__(self) -> None:
        data, train, optimizer = self.data, self.train, self.optimizer
        above_zero = {
            "data.batch_size": data.batch_size,
            "data.eval_batch_size": data.eval_batch_size,
            "optimizer.learning_rate": optimizer.learning_rate,
            "train.epochs": train.epochs,
            "train.patience": train.patience,
            "train.log_every": train.log_every,
            "train.checkpoint_every": train.checkpoint_every,
            "train.max_steps_without_checkpoint": train.most_steps_lost,
        }
        if optimizer.clip_norm is not None:
            above_zero["optimizer.clip_norm"] = optimizer.clip_norm
        of_wide = {}
        if optimizer.wide_l2 is not None:
            of_wide = {"optimizer.wide_l2": optimizer.wide_l2}
            if not self.model.wide:
                raise ValueError("optimizer.wide_l2 needs model.wide true")
        not_negative = {
            "optimizer.l2": optimizer.l2,
            **of_wide,
            "optimizer.warmup_steps": optimizer.warmup_steps,
            "train.seed": train.seed,
            "train.steps_per_call": train.steps_per_call,
            "data.min_conversions": data.min_conversions,
        }
        _check_numbers(above_zero, not_negative)
        if data.min_conversions >= data.batch_size:
            raise ValueError(
                f"data.min_conversions must be below data.batch_size "
                f"({data.batch_size}), got {data.min_conversions}"
            )
        if optimizer.warmup_steps and optimizer.schedule == "constant":
            raise ValueError(
                "optimizer.warmup_steps needs optimizer.schedule warmup or cosine"
            )
        if optimizer.schedule == "warmup" and not optimizer.warmup_steps:
            raise ValueError(
                "optimizer.schedule warmup needs optimizer.warmup_steps above 0"
            )
        if optimizer.shard_tables and optimizer.embedding == "adam":
            raise ValueError(
                "optimizer.shard_tables needs optimizer.embedding lazy_adam or "
                "rowwise_adagrad"
            )
        ranking = parts.RANKINGS[self.loss.ranking]
        two_logits = ranking is not None and ranking.two_logits
        if two_logits != self.model.two_logits:
            model = replace(self.model, two_logits=two_logits)
            object.__setattr__(self, "model", model)


def _check_numbers(
    above_zero: Mapping[str, float], not_negative: Mapping[str, float]
) -> None:
    """Raises ValueError if a number is out of range, NaN or infinite."""
    for name, value in (*above_zero.items(), *not_negative.items()):
        positive = name in above_zero
        if not (value > 0 if positive else value >= 0):
            least = "above 0" if positive else "0 or more"
            raise ValueError(f"{name} must be {least}, got {value}")
        most = MOST_BY_OPTION.get(name, MOST if isinstance(value, int) else MOST_FLOAT)
        if value > most:
            raise ValueError(f"{name} must be at most {most:g}, got {value}")


def load_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file; `overrides` are command-line options such as "--train.seed=3".

    Raises:
        UserError: the file is missing or holds an option or a value that does not fit.
    """
    if not overrides:
        tree = read_yaml(path, what="a YAML file of options")
        try:
            return build(Config, tree)
        except UserError as error:
            raise UserError(f"{path}: {error}") from None
    try:
        return config_of(
            _parser().parse([f"--config={path}", *overrides], defaults=False)
        )
    except ArgumentError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None


@cache
def _parser() -> Parser:
    parser = Parser(exit_on_error=False)
    add_options(parser)
    return parser


def add_options(parser: Parser) -> None:
    """Adds `--config` and every option of a `Config`."""
    parser.add_argument("--config", type=Path, help="a YAML file of the options below")
    parser.add_class_arguments(Config, as_group=False)


def config_of(options: Namespace) -> Config:
    """The configuration of a command line: a YAML file, and single options over it.

    Args:
        options: the given options, without defaults; options of others are ignored.

    Raises:
        UserError: an unknown option, or a value that does not fit.
    """
    given = options.as_dict()
    path = given.get("config")
    tree = {} if path is None else read_yaml(path, what="a YAML file of options")
    over = {k: v for k, v in given.items() if k in Config.__dataclass_fields__}
    return build(Config, _merged(tree, over) if isinstance(tree, dict) else tree)


def _merged(tree: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`tree` with the values of `over`, section by section."""
    merged = dict(tree)
    for section, value in over.items():
        old = merged.get(section)
        if isinstance(old, dict) and isinstance(value, dict):
            value = old | value
        merged[section] = value
    return merged
