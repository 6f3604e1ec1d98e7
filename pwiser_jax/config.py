"""A run's configuration: nested frozen dataclasses, read from YAML by jsonargparse.

A YAML file shows only what differs from the defaults here. Every option can be given on
the command line too, as `--loss.lambdas 0.3`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from jsonargparse import ArgumentError, Namespace

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
EmbeddingOptimizer = Literal["adam", "lazy_adam", "rowwise_adagrad"]
Protocol = Literal["default", "mtreclib"]


@dataclass(frozen=True)
class DataConfig:
    """Which rows, and how many at once.

    Args:
        path: a folder written by `prepare`.
        batch_size: rows of a training step, over all devices.
        eval_batch_size: rows of an evaluation step, over all devices.
        min_conversions: at least so many conversions (rows with the highest label) in
            each training batch; the cross-entropy weighs them down to what they are in
            the data. 0: as many as the order of the rows brings.
        rows_from: where training rows are gathered: by the processor out of mapped
            files, or by the devices, each of which then holds the whole split. auto:
            the devices, where accelerators have four times its size free. The numbers
            do not depend on it.
    """

    path: str = ""
    batch_size: int = 2048
    eval_batch_size: int = 8192
    min_conversions: int = 0
    rows_from: Literal["auto", "device", "files"] = "auto"


@dataclass(frozen=True)
class LossConfig:
    """loss = mean over tasks of (BCE + lambda * PWiseR).

    Args:
        lambdas: lambda for every trained task, or by the name of a head; 0: BCE alone.
        scores: what PWiseR compares, probabilities or logits.
        margins: "conversion>click: 0.1" by pair of labels, the lowest is "exposure";
            null leaves a term out. Unset: 0.1 a rung on probabilities, 0.5 on logits,
            of the highest label over every lower one.
        surrogate: the function of a pair.
        gate: which pairs are active.
        normalize: what a term is divided by. "balanced": as "pairs", and lambda is
            multiplied with |gradient of the BCE| / |gradient of PWiseR|, both by the
            logits of a head's batch, anew at each step: at lambda 1 both pull equally
            hard, whatever their scales.
        pairs: how pairs are summed.
        bce_rows: rows of the cross-entropy: all, or conversions only (an ablation).
        bank: scores of so many recent conversions (rows of the highest ranked label)
            are remembered for each head, and rank above a batch's rows as its own
            conversions do; 0: none.
    """

    lambdas: float | dict[str, float] = 0.0
    scores: Scores = "probability"
    margins: Margins | None = None
    surrogate: Surrogate = "squared_hinge"
    gate: Gate = "margin"
    normalize: Balance = "pairs"
    pairs: Pairs = "auto"
    bce_rows: BceRows = "all"
    bank: int = 0


@dataclass(frozen=True)
class OptimizerConfig:
    """Adam.

    Args:
        learning_rate: the step size.
        l2: weight decay added to the gradient (coupled, as PyTorch's Adam does).
        embedding: what trains the vectors of ids, those of small fields aside. "adam":
            as all else, so that every row of the table moves at every step.
            "lazy_adam" and "rowwise_adagrad" move only the rows in the batch, in a time
            that does not depend on the number of ids; l2 decays those rows alone. They
            are other functions than "adam", and their numbers differ from it.
        shard_tables: each device holds a share of the rows of that table and of their
            optimizer's state, in place of all of them; not for "adam". The numbers do
            not depend on it, but for rounding.
    """

    learning_rate: float = 1e-3
    l2: float = 1e-6
    embedding: EmbeddingOptimizer = "adam"
    shard_tables: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """How long, and how carefully.

    Args:
        seed: of the initial weights, the order of the rows and dropout.
        epochs: passes over the training rows, at most.
        patience: stop after this many evaluations without a better validation AUC.
        log_every: steps between two lines of metrics.jsonl.
        checkpoint_every: steps between two checkpoints, which are written while
            training goes on (one that is due while another is being written is left
            out); one follows each epoch as well.
        max_steps_without_checkpoint: a kill loses at most the work of so many steps:
            the loop waits for the checkpoint that is being written rather than go
            further. Half as many between two checkpoints, where checkpoint_every is
            more than that. Unset: twice checkpoint_every.
        steps_per_call: steps in one call of the compiled program; 0: as many as take
            about two seconds, 8 at most (with several processes always 8). The
            numbers do not depend on it.
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
        """`checkpoint_every`, or half of `most_steps_lost` where that is less."""
        return min(self.checkpoint_every, max(1, self.most_steps_lost // 2))


@dataclass(frozen=True)
class Config:
    """Everything that a run's numbers depend on, beside the data and the versions.

    Args:
        protocol: "default": the epoch is chosen on validation, test is never seen;
            "mtreclib": as the published tables of MTReclib, which train on all but the
            test rows and choose the epoch on those: optimistic, and labelled as such.
    """

    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    protocol: Protocol = "default"

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
        positive = {
            "data.batch_size": self.data.batch_size,
            "data.eval_batch_size": self.data.eval_batch_size,
            "optimizer.learning_rate": self.optimizer.learning_rate,
            "train.epochs": self.train.epochs,
            "train.patience": self.train.patience,
            "train.log_every": self.train.log_every,
            "train.checkpoint_every": self.train.checkpoint_every,
            "train.max_steps_without_checkpoint": self.train.most_steps_lost,
        }
        for name, value in positive.items():
            if not value > 0:
                raise ValueError(f"{name} must be above 0, got {value}")
        lambdas = self.loss.lambdas
        values = lambdas.values() if isinstance(lambdas, dict) else (lambdas,)
        not_negative = {
            "loss.lambdas": min(values, default=0.0),
            "optimizer.l2": self.optimizer.l2,
            "train.seed": self.train.seed,
            "train.steps_per_call": self.train.steps_per_call,
            "data.min_conversions": self.data.min_conversions,
            "loss.bank": self.loss.bank,
        }
        for name, value in not_negative.items():
            if not value >= 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if self.data.min_conversions >= self.data.batch_size:
            raise ValueError(
                f"data.min_conversions must be below data.batch_size "
                f"({self.data.batch_size}), got {self.data.min_conversions}"
            )
        if self.optimizer.shard_tables and self.optimizer.embedding == "adam":
            raise ValueError(
                "optimizer.shard_tables needs optimizer.embedding lazy_adam or "
                "rowwise_adagrad"
            )
        if self.loss.gate == "literal" and self.loss.surrogate != "squared_hinge":
            raise ValueError("loss.gate literal needs loss.surrogate squared_hinge")
        if self.loss.pairs == "sorted" and self.loss.surrogate == "logistic":
            raise ValueError(
                "loss.pairs sorted is for hinges; loss.surrogate logistic needs auto, "
                "blocked or broadcast"
            )


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
    parser = Parser(exit_on_error=False)
    add_options(parser)
    try:
        return config_of(parser.parse([f"--config={path}", *overrides], defaults=False))
    except ArgumentError as error:
        raise UserError(f"{path}: {' '.join(str(error).split())}") from None


def add_options(parser: Parser) -> None:
    """Adds `--config` and every option of a `Config`."""
    parser.add_argument("--config", type=Path, help="a YAML file of the options below")
    parser.add_class_arguments(Config, as_group=False)


def config_of(options: Namespace) -> Config:
    """The configuration of a command line: a YAML file, and single options over it.

    Args:
        options: what was given, without defaults; other options in it are left out.

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
        both = isinstance(old, dict) and isinstance(value, dict)
        merged[section] = old | value if both else value  # pyright: ignore
    return merged
