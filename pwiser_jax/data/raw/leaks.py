"""Refuses features that are copies of labels. A copy of a label among the features
gives a meaningless AUC of 1.0. Names are checked, then values: a feature with one value
in each level, but not the same value in all, is a copy of a label, whatever the values
are (0 and 1, 1 and 0, "no" and "yes", or the level itself).
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from pwiser_jax.data.raw.flat import FlatSpec
from pwiser_jax.data.raw.labels import truth
from pwiser_jax.errors import UserError
from pwiser_jax.schema import GROUP, ROW_WEIGHT, TIME

SAMPLE = 10_000
"""Rows of train that are examined first: what varies within a level is no copy."""
RANGE = ("low", "high", "empty")
CHANCE_ROWS = 20
"""With fewer rows of either class, a feature of two values other than 0 and 1 may equal
a label by chance."""


def refuse_names(spec: FlatSpec) -> None:
    """Raises a UserError if a column has two meanings, or a reserved name."""
    features = spec.features
    if not features:
        raise UserError("no column is a feature: name at least one")
    kept = {
        "time column": [spec.time],
        "weight column": [spec.weight],
        "extra column": spec.extra,
    }
    for name in features:
        if name in spec.labels.values():
            raise UserError(f"column {name!r} is a label: it cannot be a feature")
        for role, columns in kept.items():
            if name in columns:
                raise UserError(f"column {name!r} is the {role}, never a feature")
        if features.count(name) > 1:
            raise UserError(f"column {name!r} is named twice among the features")
    for role in ("group", "time", "weight"):
        if (name := getattr(spec, role)) in spec.labels.values():
            raise UserError(
                f"column {name!r} is a label: it cannot be the {role} column; name "
                f"another one, or leave {role!r} out"
            )
    weight = (ROW_WEIGHT,) if spec.weight else ()
    reserved = (GROUP, TIME, *weight, *spec.labels)
    for name in (*features, *spec.extra):
        if name in reserved:
            raise UserError(
                f"column {name!r} has the name of a prepared column "
                f"({', '.join(reserved)}): rename it"
            )


def refuse_copies(
    train: pl.LazyFrame, spec: FlatSpec, features: Mapping[str, pl.Expr]
) -> None:
    """Raises a UserError for a feature that determines a label on every train row."""
    first = _ranges(train.head(SAMPLE), spec, features)
    constant = {n: features[n] for n, levels in first.items() if _constant(levels)}
    for name, levels in _ranges(train, spec, constant).items():
        label = _copied(levels, tuple(spec.labels)) if _constant(levels) else None
        if label:
            raise UserError(
                f"column {name!r} is a copy of the label {label!r} in train: "
                "it cannot be a feature"
            )


class _Range(NamedTuple):
    """A feature's range in a level, and how many of the level's rows lack a value."""

    level: int
    rows: int
    low: Any
    high: Any
    empty: int


def _ranges(
    rows: pl.LazyFrame, spec: FlatSpec, features: Mapping[str, pl.Expr]
) -> dict[str, list[_Range]]:
    """The ranges of each feature, by ascending level."""
    if not features:
        return {}
    dtypes = rows.collect_schema()
    level = pl.sum_horizontal(truth(c, dtypes[c]) for c in spec.labels.values())
    values = [value.alias(str(at)) for at, value in enumerate(features.values())]
    described: list[pl.Expr] = [pl.len().alias("rows")]
    for at in range(len(values)):
        value = pl.col(str(at))
        described += [
            value.min().alias(f"low{at}"),
            value.max().alias(f"high{at}"),
            value.null_count().alias(f"empty{at}"),
        ]
    levels = rows.select(level.alias("level"), *values).group_by("level")
    table = levels.agg(described).sort("level").collect(engine="streaming")
    return {
        name: [
            _Range(row["level"], row["rows"], *(row[f"{k}{at}"] for k in RANGE))
            for row in table.iter_rows(named=True)
        ]
        for at, name in enumerate(features)
    }


def _constant(levels: Sequence[_Range]) -> bool:
    """Whether a feature has one value in each level, or none."""
    return all(x.low == x.high and x.empty in (0, x.rows) for x in levels)


def _copied(levels: Sequence[_Range], labels: tuple[str, ...]) -> str | None:
    """The label that a feature gives away that is constant in each level."""
    values, counts = [x.low for x in levels], [x.rows for x in levels]
    binary = {str(value).removesuffix(".0") for value in values} == {"0", "1"}
    for k in range(1, len(values)):
        if values[k] != values[k - 1]:
            fewest = min(sum(counts[:k]), sum(counts[k:]))
            known = binary or fewest >= CHANCE_ROWS
            return labels[levels[k].level - 1] if known else None
    return None
