"""Which rows a run learns from, and which rows choose its epoch.

default    learns from train; the epoch is the one with the best mean AUC on valid. The
           test split is never opened in training.
mtreclib   as MTReclib makes its published tables: no rows are held out, so it learns
           from train and valid, and the epoch is the one with the best mean AUC on
           test, patience 2. Its test AUCs are optimistic; compare them with tables
           made in the same way and with nothing else.

MTReclib's sizes, optimizer (Adam with coupled L2) and patience are the defaults of a
configuration; what differs from them is told.

Reference: https://github.com/easezyc/Multitask-Recommendation-Library, main.py
"""

from dataclasses import asdict
from typing import Any

from pwiser_jax.config import Config, Protocol
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.data.prepared.folder import Prepared

LEARNED: dict[Protocol, tuple[str, ...]] = {
    "default": ("train",),
    "mtreclib": ("train", "valid"),
}
CHOSEN: dict[Protocol, str] = {"default": "valid", "mtreclib": "test"}
NAMES = {"valid": "validation", "test": "test"}

OPTIMISTIC = "protocol mtreclib, optimistic: the epoch was chosen on the test split"
TRAINED_ON = "protocol mtreclib: these rows were trained on"


def rows_of(protocol: Protocol, prepared: Prepared) -> tuple[Rows, Rows]:
    """The rows to learn from, and those to choose the epoch by.

    Raises:
        UserError: a split has no rows, or is damaged.
    """
    return prepared.load(*LEARNED[protocol]), prepared.load(CHOSEN[protocol])


def note(protocol: Protocol, split: str) -> str | None:
    """What has to stand beside every figure of a split; None: nothing."""
    if protocol == "default":
        return None
    return TRAINED_ON if split in LEARNED[protocol] else OPTIMISTIC


def label(config: Config) -> dict[str, Any]:
    """What result.json says of the protocol; nothing of the default."""
    if config.protocol == "default":
        return {}
    return {"protocol": config.protocol, "note": OPTIMISTIC, "other": other(config)}


def lines(config: Config) -> list[str]:
    """What a run says of its protocol when it starts."""
    found = label(config)
    return [found["note"], *found["other"]] if found else []


def other(config: Config) -> list[str]:
    """Options that differ from MTReclib's, as "model.experts is 3, theirs 8"."""
    ours, theirs = asdict(config), asdict(Config())
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
