"""The sizes of a model; the defaults are MTReclib's for AliExpress."""

from dataclasses import dataclass
from typing import Literal, get_args

from pwiser_jax.models.registry import check_name
from pwiser_jax.tasks import CvrSpace

Compute = Literal["float32", "bfloat16"]


@dataclass(frozen=True)
class ModelConfig:
    """Which model, and its sizes.

    Args:
        name: the model, a name in the table of models.
        cvr_space: "ctcvr": the second head predicts click and conversion on all rows;
            "click": it predicts conversion on clicked rows only; "product": ESMM, the
            product of both heads is trained on all rows; "escm2_ips" and "escm2_dr":
            ESCM2, which adds to it a loss of the second head on all rows, from clicked
            rows weighted by inverse propensity, or doubly robust with an imputation
            tower. See loss.cvr_weight.
        embedding_dim: width of an embedded field.
        small_rows: layers multiply the whole table of a categorical field of at most so
            many rows once a batch, instead of a vector for each row: the same function
            with less work. Unset: embedding_dim; 0: no field.
        bottom: hidden layers of the bottom of single_task, shared_bottom and aitm; may
            be empty, like tower, but not in aitm.
        expert: hidden layers of an expert of mmoe.
        experts: number of experts of mmoe.
        levels: of ple, the hidden layers of an expert of each level.
        shared_experts: of ple, shared experts in a level.
        task_experts: of ple, experts of each task in a level.
        tower: hidden layers of a task's tower; its output layer is extra.
        wide: adds a linear part: to each head's logit a weight for each id and for each
            numerical column, which start at 0. See optimizer.wide_l2.
        two_logits: whether each head has two logits f0 and f1 (of label 0 and of label
            1), as JRC needs them; the head's logit is then f1 - f0.
        dropout: rate of every dropout.
        compute: type of the factors of matrix products. "bfloat16" is faster on
            accelerators that support it and slower on most CPUs. Sums, batch
            statistics, losses, parameters and the optimizer stay in float32.

    Raises:
        ValueError: a size or a rate is out of its range; the message names the option.
    """

    name: str = "mmoe"
    cvr_space: CvrSpace = "ctcvr"
    embedding_dim: int = 128
    small_rows: int | None = None
    bottom: tuple[int, ...] = (512, 256)
    expert: tuple[int, ...] = (512, 256)
    experts: int = 8
    levels: tuple[tuple[int, ...], ...] = ((512,), (256,))
    shared_experts: int = 4
    task_experts: int = 4
    tower: tuple[int, ...] = (128, 64)
    wide: bool = False
    two_logits: bool = False
    dropout: float = 0.2
    compute: Compute = "float32"

    def __post_init__(self) -> None:
        check_name(self.name)
        for option in ("embedding_dim", "experts", "shared_experts", "task_experts"):
            _require_positive(f"model.{option}", getattr(self, option))
        layers = {"bottom": self.bottom, "expert": self.expert, "tower": self.tower}
        layers |= {f"levels[{i}]": hidden for i, hidden in enumerate(self.levels)}
        for option, hidden in layers.items():
            # An expert without a layer would be its input: nothing for a gate to mix.
            if not hidden and option not in ("bottom", "tower"):
                raise ValueError(f"model.{option} must name at least one hidden layer")
            for width in hidden:
                _require_positive(f"each width in model.{option}", width)
        if not self.levels:
            raise ValueError("model.levels must name at least one level")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"model.dropout must be in [0, 1), not {self.dropout}")
        if self.compute not in get_args(Compute):
            raise ValueError(
                f"model.compute must be float32 or bfloat16, not {self.compute!r}"
            )
        if self.cvr_space not in get_args(CvrSpace):
            raise ValueError(
                f"model.cvr_space must be one of {', '.join(get_args(CvrSpace))}, "
                f"not {self.cvr_space!r}"
            )


def _require_positive(option: str, size: int) -> None:
    if size < 1:
        raise ValueError(f"{option} must be at least 1, not {size}")
