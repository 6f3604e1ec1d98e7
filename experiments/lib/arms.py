"""The rivals of the comparison: title, options, space of settings, source."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.lib.search import Space, check_space
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.errors import UserError

if TYPE_CHECKING:
    from pwiser_jax.config import Config

COMMON: Space = {"learning_rate": (1e-3, 3e-2), "l2": (1e-4, 3e-2)}
LAMBDA: Space = {"lambda": (0.01, 10.0)}
MARGINS: Space = {"m1": (0.02, 0.8), "m2": (0.02, 0.8)}
GROUPS = ("--data.order=groups",)
WITHIN = (*GROUPS, "--loss.segments=group")


@dataclass(frozen=True)
class Arm:
    """A way to train, with the settings that are searched.

    Args:
        name: in result tables and on the command line.
        title: in reports.
        source: the paper that it is of.
        options: on top of the configuration of a dataset's model.
        space: its own settings; learning rate and L2 are added.
        baseline: the arm that it is compared with.
    """

    name: str
    title: str
    source: str
    options: tuple[str, ...] = ()
    space: Space = field(default_factory=dict)
    baseline: str = "bce"

    @property
    def whole_space(self) -> Space:
        space = {**COMMON, **self.space}
        check_space(self.name, space)
        return space


PWISER = "--loss.ranking=pwiser"
HERE = "PWiseR, arXiv 2406.02163"
JRC = "Sheng et al., KDD 2023"
AITM = "Xi et al., KDD 2021"
ESCM2 = "Wang et al., SIGIR 2022"
UNCERTAINTY = "Kendall et al., CVPR 2018"
PCGRAD = "Yu et al., NeurIPS 2020"
RANKNET = "Burges et al., ICML 2005; with BCE: Lin et al., KDD 2024"
# In the order in which arms are run; where time is short the last are left out first.
ARMS: Mapping[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("bce", "BCE", "cross-entropy alone"),
        Arm(
            "pwiser ctcvr",
            "PWiseR on CTCVR",
            f"{HERE}, on the CTCVR head alone",
            (PWISER, "--loss.lambdas={ctcvr: 0.1}"),
            {**LAMBDA, **MARGINS},
        ),
        Arm(
            "pwiser",
            "PWiseR on both heads",
            f"{HERE}, on both heads",
            (PWISER,),
            {**LAMBDA, **MARGINS},
        ),
        Arm("ranknet", "RankNet", RANKNET, ("--loss.ranking=ranknet",), LAMBDA),
        Arm("jrc", "JRC", JRC, ("--loss.ranking=jrc",), LAMBDA),
        Arm("esmm", "ESMM", "Ma et al., SIGIR 2018", ("--model.cvr_space=product",)),
        Arm(
            "conversion weight",
            "conversion weighting",
            "cross-entropy with weighted conversions",
            ("--loss.conversion_weight=2",),
            {"conversion_weight": (1.1, 30.0)},
        ),
        Arm(
            "focal",
            "focal loss",
            "Lin et al., ICCV 2017",
            ("--loss.pointwise=focal",),
            {"focal_gamma": (0.1, 5.0)},
        ),
        Arm(
            "ranknet levels",
            "RankNet on levels",
            f"{RANKNET}, on the highest label reached",
            ("--loss.ranking=ranknet", "--loss.ranknet_labels=levels"),
            LAMBDA,
        ),
        Arm(
            "pwiser balanced",
            "balanced PWiseR",
            f"{HERE}, lambda relative to the gradients' norms",
            (PWISER, "--loss.normalize=balanced"),
            {**LAMBDA, **MARGINS},
        ),
        Arm(
            "pwiser ramp",
            "ramped PWiseR",
            f"{HERE}, lambda grows from 0",
            (PWISER, "--loss.lambda_ramp_steps=100"),
            {**LAMBDA, "lambda_ramp_steps": (20.0, 2000.0)},
        ),
        Arm(
            "aitm",
            "AITM",
            f"{AITM}, model and constraint",
            ("--model.name=aitm", "--model.bottom=[32]", "--loss.constraint=aitm"),
            {"constraint_weight": (0.01, 10.0)},
        ),
        Arm(
            "bce, groups",
            "BCE on batches of groups",
            "cross-entropy on batches of whole groups",
            GROUPS,
        ),
        Arm(
            "pwiser, groups",
            "PWiseR within groups",
            f"{HERE}, pairs within groups",
            (PWISER, *WITHIN),
            {**LAMBDA, **MARGINS},
            "bce, groups",
        ),
        Arm(
            "jrc, groups",
            "JRC within groups",
            f"{JRC}, within groups",
            ("--loss.ranking=jrc", *WITHIN),
            LAMBDA,
            "bce, groups",
        ),
        *(
            Arm(
                f"escm2 {form}",
                f"ESCM2-{form.upper()}",
                ESCM2,
                (f"--model.cvr_space=escm2_{form}",),
                {
                    "cvr_weight": (0.05, 5.0),
                    "ctcvr_weight": (0.05, 5.0),
                    "propensity_floor": (0.005, 0.5),
                },
            )
            for form in ("ips", "dr")
        ),
        Arm(
            "uncertainty",
            "uncertainty weighting",
            f"{UNCERTAINTY}, weights of the tasks' cross-entropies",
            ("--loss.task_weights=uncertainty",),
        ),
        Arm(
            "pcgrad",
            "PCGrad",
            f"{PCGRAD}, gradients of the tasks' cross-entropies",
            ("--loss.gradients=pcgrad",),
        ),
    )
}

VALUE = "order_value"
AWARE = "--data.min_conversions=8"
# Of experiments that carry the settings of the arms above over.
VARIANTS: Mapping[str, Arm] = {
    name: replace(
        ARMS[arm],
        name=name,
        title=title,
        options=(*ARMS[arm].options, *options),
        baseline=baseline,
    )
    for name, title, arm, options, baseline in (
        (
            "pwiser ctcvr, bank",
            "PWiseR on CTCVR with a bank",
            "pwiser ctcvr",
            ("--loss.bank=256",),
            "bce",
        ),
        # Other batches than those of the other arms need a BCE of their own.
        (
            "bce, 8 conversions",
            "BCE with 8 conversions a batch",
            "bce",
            (AWARE,),
            "bce",
        ),
        (
            "pwiser ctcvr, 8 conversions",
            "PWiseR on CTCVR with 8 conversions a batch",
            "pwiser ctcvr",
            (AWARE,),
            "bce, 8 conversions",
        ),
        (
            "pwiser ctcvr, value",
            "PWiseR on CTCVR with pairs by value",
            "pwiser ctcvr",
            (f"--loss.pair_value={VALUE}",),
            "bce",
        ),
        ("bce, sessions", "BCE on batches of sessions", "bce, groups", (), "bce"),
        ("jrc, sessions", "JRC within sessions", "jrc, groups", (), "bce, sessions"),
    )
}
TITLES = {name: arm.title for name, arm in (*ARMS.items(), *VARIANTS.items())}


def arm_title(name: str) -> str:
    """The title of an arm, or of "ARM minus ARM"; other names are their own."""
    return " minus ".join(TITLES.get(part, part) for part in name.split(" minus "))


def arm_titles(names: Iterable[str]) -> dict[str, str]:
    """Titles by name, for plots."""
    return {name: arm_title(name) for name in names}


def chosen_arms(names: list[str]) -> list[Arm]:
    """Arms by name, with the arms that they are compared with first.

    Raises:
        UserError: no such arm.
    """
    for name in names:
        if name not in ARMS:
            raise UserError(f"--arms: no arm {name!r}; there are {', '.join(ARMS)}")
    wanted = {*names, "bce", *(ARMS[name].baseline for name in names)}
    return [arm for arm in ARMS.values() if arm.name in wanted]


def check_arm(arm: Arm, config: "Config", folder: Path) -> None:
    """Raises UserError, naming the arm, where it cannot run on the data."""
    from pwiser_jax.training import objective  # loads jax

    prepared = Prepared(folder)
    try:
        objective.build(config.loss, prepared.schema.labels, config.model.cvr_space)
        if config.data.order == "groups" or config.loss.segments == "group":
            groups = prepared.load("train").group
            if len(set(groups.tolist())) == len(groups):
                raise UserError("no two train rows share a group")
        if config.loss.pair_value:
            prepared.load("train").with_pair_columns(
                groups=False, pair_value=config.loss.pair_value
            )
    except UserError as error:
        raise UserError(
            f"{arm.name} cannot run on {folder.name}: {error}; name the other arms "
            "with --arms"
        ) from None
