"""Tasks: what each head predicts, on which rows, and how heads combine.

Labels form a ladder, lowest rung first: ("click", "conversion") here, and for other
shops ("click", "cart", "order") or longer. A row's *level* is the highest rung it
reached, 0 for an exposure without a click.

For the two-label ladder the names are the field's: CTR = P(click | exposure),
CTCVR = P(click and conversion | exposure), CVR = P(conversion | click).
"""

from dataclasses import dataclass
from typing import Literal

CvrSpace = Literal["ctcvr", "click", "product", "escm2_ips", "escm2_dr"]

# ESCM2: "product" with a loss of the CVR head of its own (`losses.escm2`).
ESCM2: tuple[CvrSpace, ...] = ("escm2_ips", "escm2_dr")
IMPUTATION = "escm2_imputation"  # the tower that "escm2_dr" has besides its heads

JOINT_NAMES = {"click": "ctr", "conversion": "ctcvr"}
CONDITIONAL_NAMES = {"conversion": "cvr"}


@dataclass(frozen=True)
class Task:
    """P(level >= rung | level >= given), measured on the rows with level >= given."""

    name: str
    rung: int
    given: int = 0


def joint_task(labels: tuple[str, ...], rung: int) -> Task:
    """P(level >= rung | exposure), on all rows: "ctr", "ctcvr", or the label's name."""
    label = labels[rung - 1]
    return Task(JOINT_NAMES.get(label, label), rung)


def conditional_task(labels: tuple[str, ...], rung: int) -> Task:
    """P(level >= rung | level >= rung - 1): "cvr", or "order_given_cart"."""
    label, before = labels[rung - 1], labels[rung - 2]
    default = f"{label}_given_{before}"
    name = CONDITIONAL_NAMES.get(label, default) if before == "click" else default
    return Task(name, rung, rung - 1)


def heads(labels: tuple[str, ...], space: CvrSpace) -> tuple[Task, ...]:
    """The towers of a model, one a label, in the ladder's order.

    In the space "ctcvr" each head predicts its label on all rows; in the others each
    head above the first predicts its label given the rung before.
    """
    first = joint_task(labels, 1)
    above = joint_task if space == "ctcvr" else conditional_task
    return (first, *(above(labels, k) for k in range(2, len(labels) + 1)))


def trained(labels: tuple[str, ...], space: CvrSpace) -> tuple[Task, ...]:
    """The tasks with a cross-entropy of their own, one a label.

    "ctcvr" and "click" train their heads, each on the rows where it is defined;
    "product" (ESMM) and ESCM2 train the joint probabilities, products of the heads, on
    all rows.
    """
    if space == "click":
        return heads(labels, space)
    return tuple(joint_task(labels, k) for k in range(1, len(labels) + 1))


def measured(labels: tuple[str, ...]) -> tuple[Task, ...]:
    """The tasks that are reported: every joint one, then every conditional one."""
    count = len(labels)
    return (
        *(joint_task(labels, k) for k in range(1, count + 1)),
        *(conditional_task(labels, k) for k in range(2, count + 1)),
    )


def title(task: Task, labels: tuple[str, ...]) -> str:
    """A task's name for people: "CTR", "CTCVR", or "CVR (purchase)" beside its own.

    On a ladder of two labels the tasks are CTR, CTCVR and CVR, whatever the labels'
    names; on a longer one, those of the field's names that apply.
    """
    if len(labels) != 2:
        known = {*JOINT_NAMES.values(), *CONDITIONAL_NAMES.values()}
        return task.name.upper() if task.name in known else task.name.replace("_", " ")
    usual = "CVR" if task.given else ("CTR", "CTCVR")[task.rung - 1]
    label = labels[task.rung - 1]
    plain = label == ("click", "conversion")[task.rung - 1]
    return usual if plain else f"{usual} ({label})"
