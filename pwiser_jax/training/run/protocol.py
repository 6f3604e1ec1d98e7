"""Protocols: the rows that a run trains on, and those that choose its epoch.

default    trains on train; the epoch is the one with the best mean AUC on valid. The
           test split is never opened in training.
mtreclib   the protocol of MTReclib's published tables: it trains on train and valid,
           and the epoch is the one with the best mean AUC on test, patience 2. Its test
           AUCs are optimistic: compare them only with tables of the same protocol.

MTReclib's sizes, optimizer (Adam with coupled L2) and patience are the defaults of a
configuration; a run prints what differs from them.

Reference: https://github.com/easezyc/Multitask-Recommendation-Library, main.py
"""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.data.prepared.folder import Prepared

if TYPE_CHECKING:  # it loads jax, and reports from tables need only the notes here
    from pwiser_jax.config import Config, Protocol

LEARNED: dict["Protocol", tuple[str, ...]] = {
    "default": ("train",),
    "mtreclib": ("train", "valid"),
}
CHOSEN: dict["Protocol", str] = {"default": "valid", "mtreclib": "test"}
NAMES = {"valid": "validation", "test": "test"}

OPTIMISTIC = "protocol mtreclib, optimistic: the epoch was chosen on the test split"
TRAINED_ON = "protocol mtreclib: these rows were trained on"


def rows_of(protocol: "Protocol", prepared: Prepared) -> tuple[Rows, Rows]:
    """The rows to train on, and the rows that choose the epoch.

    Raises:
        UserError: a split has no rows, or is damaged.
    """
    return prepared.load(*LEARNED[protocol]), prepared.load(CHOSEN[protocol])


def note(protocol: "Protocol", split: str) -> str | None:
    """The caution that must accompany each figure of a split; None for no caution."""
    if protocol == "default":
        return None
    return TRAINED_ON if split in LEARNED[protocol] else OPTIMISTIC


def label(config: "Config") -> dict[str, Any]:
    """The entries of result.json about the protocol; none for the default one."""
    if config.protocol == "default":
        return {}
    return {"protocol": config.protocol, "note": OPTIMISTIC, "other": other(config)}


def lines(config: "Config") -> list[str]:
    """Lines about the protocol, printed at the start of a run."""
    entries = label(config)
    return [entries["note"], *entries["other"]] if entries else []


def other(config: "Config") -> list[str]:
    """Options that differ from MTReclib's, such as "model.experts is 3, theirs 8"."""
    ours, theirs = asdict(config), asdict(type(config)())
    sections = {
        "data": ("batch_size", "min_conversions"),
        "model": tuple(theirs["model"].keys() - {"name"}),
        "optimizer": tuple(theirs["optimizer"]),
        "train": ("epochs", "patience"),
    }
    return [
        f"{section}.{name} is {ours[section][name]}, theirs {theirs[section][name]}"
        for section, names in sections.items()
        for name in sorted(names)
        if ours[section][name] != theirs[section][name]
    ]
