"""Labels: 0 or 1 in every row, and no label without the one below it on the ladder."""

from collections.abc import Mapping
from itertools import pairwise

import polars as pl

from pwiser_jax.data.raw.canonical import is_text
from pwiser_jax.data.raw.columns import (
    Reading,
    Source,
    first_rows,
    named,
    place,
    refuse_bad,
    require,
)
from pwiser_jax.data.raw.flat import BadLabel
from pwiser_jax.errors import UserError

TEXTS = {"0": 0, "1": 1, "0.0": 0, "1.0": 1, "false": 0, "true": 1}
FIXES = {"drop": "dropped", "nest": "nested", "fill": "filled"}


def truth(column: str, dtype: pl.DataType) -> pl.Expr:
    """A label as int8 0 or 1, null where it is anything else."""
    raw = pl.col(column)
    if dtype == pl.Boolean:
        return raw.cast(pl.Int8)
    if dtype.is_numeric():
        zero, one = pl.lit(0, pl.Int8), pl.lit(1, pl.Int8)
        return pl.when(raw == 0).then(zero).when(raw == 1).then(one)
    if is_text(dtype):
        text = raw.cast(pl.String).str.strip_chars().str.to_lowercase()
        return text.replace_strict(TEXTS, default=None, return_dtype=pl.Int8)
    raise UserError(f"label column {column!r} holds {named(dtype)}; expected 0 or 1")


def check_labels(
    frame: pl.LazyFrame,
    labels: Mapping[str, str],
    on_bad_label: BadLabel,
    source: Source,
) -> tuple[pl.LazyFrame, dict[str, int]]:
    """Checks labels and makes them nested int8 columns.

    Args:
        frame: rows with the label columns as integers, booleans, floats or text.
        labels: label name -> column, lowest rung of the ladder first.
        on_bad_label: for a label without the one below it, such as a conversion without
            a click: "error" refuses, "drop" leaves the row out, "nest" sets the label
            and all above it to 0, "fill" sets all below it to 1.
        source: the table's name, or a function from a 1-based row to its place.

    Returns:
        The frame, and the number of rows changed by reason, such as
        {"conversion_without_click_dropped": 3}. A row with several faults counts once,
        for the lowest one.

    Raises:
        UserError: a label that is not 0 or 1, null included; with "error", a label
            without the one below it. The sentence names place, column and value.
    """
    schema = require(frame, labels.values(), source)
    truths = {name: truth(column, schema[column]) for name, column in labels.items()}
    faults: dict[tuple[str, str], pl.Expr] = {}
    sound = pl.lit(True)
    for lower, higher in pairwise(labels):
        fault = (truths[higher] == 1) & (truths[lower] == 0)
        faults[lower, higher] = fault & sound
        sound = sound & ~fault

    readings = [
        Reading(column, truths[name], truths[name].is_null(), "0 or 1")
        for name, column in labels.items()
    ]
    refuse_bad(frame, readings, source)
    counts = frame.select(
        fault.sum().alias(f"{higher}_without_{lower}")
        for (lower, higher), fault in faults.items()
    )
    faulty = counts.collect(engine="streaming").row(0, named=True) if faults else {}
    faulty = {name: count for name, count in faulty.items() if count}
    if faulty and on_bad_label == "error":
        _refuse_fault(frame, labels, faults, source)

    if faulty and on_bad_label == "drop":
        frame = frame.filter(sound)
    # A label of a nested ladder is 1 where all labels up to it are; filled, where any
    # label from it on is.
    values = [value.alias(labels[name]) for name, value in truths.items()]
    if on_bad_label == "fill":
        nested = [
            pl.max_horizontal(values[at:]).alias(column)
            for at, column in enumerate(labels.values())
        ]
    else:
        nested = [
            pl.min_horizontal(values[: at + 1]).alias(column)
            for at, column in enumerate(labels.values())
        ]
    fixed = {f"{name}_{FIXES[on_bad_label]}": count for name, count in faulty.items()}
    return frame.with_columns(nested), fixed


def _refuse_fault(
    frame: pl.LazyFrame,
    labels: Mapping[str, str],
    faults: Mapping[tuple[str, str], pl.Expr],
    source: Source,
) -> None:
    first = first_rows(frame, list(faults.values()))
    at = min(first, key=lambda key: first[key])
    lower, higher = list(faults)[at]
    raise UserError(
        f"{place(source, first[at] + 1)}: {labels[higher]!r} is 1 but "
        f"{labels[lower]!r} is 0, a {higher} without a {lower}; choose "
        f"--on-bad-label drop (the row), nest (no {higher}) or fill (a {lower} too)"
    )
