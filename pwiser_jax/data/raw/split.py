"""Splits rows into train, valid and test: by group or by time, never by row."""

import math
from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any

import numpy as np
import polars as pl

from pwiser_jax.data.raw.canonical import Kind, kinds_of, utc
from pwiser_jax.data.raw.columns import (
    Source,
    group_key,
    named,
    refuse_bad,
    require,
    time_stamp,
    written,
)
from pwiser_jax.data.raw.flat import SPLITS
from pwiser_jax.data.raw.hashing import group_fraction
from pwiser_jax.errors import UserError

Moment = int | date | datetime


def split_by_group(
    frame: pl.LazyFrame,
    group: str,
    *,
    fractions: Mapping[str, float],
    seed: int = 0,
    kind: Kind | None = None,
    source: Source = "the table",
) -> dict[str, pl.LazyFrame]:
    """The rows of each split, see `part_by_group`.

    Returns:
        "train" and one frame for each named fraction.
    """
    part = part_by_group(
        frame, group, fractions=fractions, seed=seed, kind=kind, source=source
    )
    names = ("train", *(name for name in ("valid", "test") if name in fractions))
    return {name: frame.filter(part == name) for name in names}


def part_by_group(
    frame: pl.LazyFrame,
    group: str,
    *,
    fractions: Mapping[str, float],
    seed: int = 0,
    kind: Kind | None = None,
    source: Source = "the table",
) -> pl.Expr:
    """Assigns whole groups to splits, by a fixed hash of the group's value.

    Args:
        frame: rows; their order is kept within a split.
        group: column of the search, session or user; without empty values.
        fractions: of "valid" and, if wanted, "test", the expected share of groups;
            "train" gets the rest.
        seed: another seed chooses other groups.
        kind: of the group's values, see `canonical`; None: the column's own.
        source: names the rows in errors.

    Returns:
        The name of each row's split.
    """
    check_fractions(fractions)
    dtype = require(frame, [group], source)[group]
    if kind is None:
        kind = kinds_of(frame, {group: pl.col(group)}).kinds.get(group)
    key = group_key(group, dtype, kind)
    refuse_bad(frame, [key], source)

    shares = [fractions.get(name, 0.0) for name in ("valid", "test")]
    ends = np.cumsum(shares)

    def part(values: pl.Series) -> pl.Series:
        at = np.searchsorted(ends, group_fraction(values, seed), side="right")
        names = np.array(["valid", "test", "train"])[at]
        return pl.Series(values.name, names, pl.String)

    return key.value.map_batches(part, return_dtype=pl.String, is_elementwise=True)


def check_fractions(fractions: Mapping[str, float]) -> None:
    """Raises a UserError for shares of groups that leave none for train."""
    for name, fraction in fractions.items():
        if name not in ("valid", "test"):
            raise UserError(f"a fraction is given for {name!r}; expected valid or test")
        if not (math.isfinite(fraction) and 0 <= fraction < 1):
            raise UserError(
                f"the fraction of {name} is {fraction}; expected 0 or more, below 1"
            )
    total = sum(fractions.values())
    if total >= 1:
        raise UserError(
            f"valid and test take {total:g} of the groups; train needs some"
        )


def split_by_time(
    frame: pl.LazyFrame,
    time: str,
    *,
    train_until: Moment,
    valid_until: Moment,
    source: Source = "the table",
) -> dict[str, pl.LazyFrame]:
    """The rows of each split, see `part_by_time`."""
    part = part_by_time(
        frame, time, train_until=train_until, valid_until=valid_until, source=source
    )
    return {name: frame.filter(part == name) for name in SPLITS}


def part_by_time(
    frame: pl.LazyFrame,
    time: str,
    *,
    train_until: Moment,
    valid_until: Moment,
    source: Source = "the table",
) -> pl.Expr:
    """Train up to a moment, valid up to a second one, test after it; both inclusive.

    A date includes its whole day, also where the column holds datetimes. Times with a
    zone are compared in UTC.

    Args:
        frame: rows; their order is kept within a split.
        time: column of integers, dates or datetimes; without empty values.
        train_until: the last moment of train: an integer, or a date or datetime.
        valid_until: the last moment of valid.
        source: names the rows in errors.

    Returns:
        The name of each row's split.
    """
    dtype = require(frame, [time], source)[time]
    moments = {"train_until": train_until, "valid_until": valid_until}
    for name, moment in moments.items():
        _check_moment(time, dtype, name, moment)
    train_until, valid_until = _in_utc(train_until), _in_utc(valid_until)
    if type(train_until) is not type(valid_until):
        raise UserError(
            f"train_until is {train_until} and valid_until is {valid_until}; expected "
            "two dates or two datetimes"
        )
    if not train_until < valid_until:  # pyright: ignore[reportOperatorIssue]
        raise UserError(
            f"train_until is {train_until} and valid_until is {valid_until}; "
            "expected a later valid_until"
        )
    refuse_bad(frame, [time_stamp(time, dtype)], source)
    at = pl.col(time)
    if isinstance(dtype, pl.Datetime):
        at = utc(at, dtype)
        if not isinstance(train_until, datetime):
            at = at.dt.date()
    train, valid, test = (pl.lit(name) for name in SPLITS)
    later = pl.when(at <= valid_until).then(valid).otherwise(test)
    return pl.when(at <= train_until).then(train).otherwise(later)


def _in_utc(moment: Moment) -> Moment:
    """A datetime with a zone as one without, in UTC."""
    if isinstance(moment, datetime) and moment.tzinfo is not None:
        return moment.astimezone(UTC).replace(tzinfo=None)
    return moment


def _check_moment(time: str, dtype: pl.DataType, name: str, moment: Any) -> None:
    if dtype.is_integer():
        fits, expected = isinstance(moment, int | np.integer), "an integer"
    elif dtype == pl.Date:
        fits = isinstance(moment, date) and not isinstance(moment, datetime)
        expected = "a date such as 2022-05-03"
    elif isinstance(dtype, pl.Datetime):
        fits, expected = isinstance(moment, date), "a date or a datetime"
    else:
        raise UserError(
            f"time column {time!r} holds {named(dtype)}; expected integers, dates or "
            "datetimes"
        )
    if not fits or isinstance(moment, bool):
        raise UserError(
            f"{name} is {written(moment)}; column {time!r} needs {expected}"
        )
