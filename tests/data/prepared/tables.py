"""A synthetic table with a ladder of three labels, as readers pass it to `write`."""

import dataclasses
from typing import Any

import numpy as np
import polars as pl

from pwiser_jax.data.raw.flat import FlatSpec, FlatTable

LABELS = {"click": "clicked", "cart": "in_cart", "buy": "bought"}
SPEC = FlatSpec(
    categorical=("user", "kind"),
    numerical=("x",),
    labels=LABELS,
    group="user",
    time="day",
    extra=("p",),
    sizes={"kind": 4},
    min_count=3,
)


def table(rows: int, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    level = rng.choice(4, size=rows, p=(0.7, 0.15, 0.1, 0.05))
    return pl.DataFrame(
        {
            "user": pl.Series(rng.zipf(1.5, rows) % 300).cast(pl.String),
            "kind": rng.integers(6, size=rows) - 1,
            "x": rng.normal(size=rows) ** 3,
            "day": pl.Series(19000 + rng.integers(30, size=rows)).cast(pl.Date),
            "p": rng.random(rows),
            "clicked": level > 0,
            "in_cart": level > 1,
            "bought": level > 2,
        }
    )


def flat(rows: int = 3000, **changes: Any) -> FlatTable:
    frame = table(rows)
    cuts = {"train": frame[: -rows // 3], "valid": frame[-rows // 3 : -rows // 6]}
    splits = {name: cut.lazy() for name, cut in cuts.items()}
    splits["test"] = frame[-rows // 6 :].lazy()
    return dataclasses.replace(FlatTable("own", SPEC, splits), **changes)
