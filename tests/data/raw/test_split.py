"""Splits keep groups whole or times in order, and every row lands in one of them."""

from datetime import UTC, date, datetime, timedelta

import numpy as np
import polars as pl
import pytest

from pwiser_jax.data.raw.hashing import group_fraction
from pwiser_jax.data.raw.labels import check_labels
from pwiser_jax.data.raw.split import split_by_group, split_by_time
from pwiser_jax.errors import UserError


@pytest.fixture(scope="module")
def rows() -> pl.LazyFrame:
    rng = np.random.default_rng(0)
    users = rng.zipf(1.3, 20_000) % 5_000
    return pl.LazyFrame({"user": users, "row": np.arange(20_000)})


@pytest.mark.parametrize("kind", [pl.Int64, pl.String, pl.Float64, pl.Categorical])
def test_groups_are_whole_and_rows_keep_their_order(
    rows: pl.LazyFrame, kind: type[pl.DataType]
):
    typed = rows.with_columns(pl.col("user").cast(pl.String).cast(kind))
    splits = split_by_group(typed, "user", fractions={"valid": 0.2, "test": 0.1})
    found = {name: split.collect() for name, split in splits.items()}
    assert set(found) == {"train", "valid", "test"}
    together = pl.concat(split["row"] for split in found.values()).sort()
    assert together.to_list() == list(range(20_000))
    users = [set(split["user"]) for split in found.values()]
    assert sum(map(len, users)) == len(set.union(*users))
    for split in found.values():
        assert split["row"].is_sorted()
    share = len(set(found["valid"]["user"])) / len(set.union(*users))
    assert share == pytest.approx(0.2, abs=0.03)


def test_the_cut_is_the_hash_alone(rows: pl.LazyFrame):
    at = group_fraction(rows.collect()["user"], seed=5)
    splits = split_by_group(rows, "user", fractions={"valid": 0.25}, seed=5)
    assert set(splits) == {"train", "valid"}
    valid = splits["valid"].collect()["row"].to_numpy()
    np.testing.assert_array_equal(valid, np.flatnonzero(at < 0.25))
    # Other rows and their order change nothing for a group.
    other = rows.reverse().head(3_000)
    part = split_by_group(other, "user", fractions={"valid": 0.25}, seed=5)["valid"]
    assert set(part.collect()["row"]) <= set(valid)


@pytest.mark.parametrize(
    ("fractions", "match"),
    [
        ({"valid": 0.6, "test": 0.4}, "train needs some"),
        ({"valid": -0.1}, "fraction of valid is -0.1"),
        ({"valid": float("nan")}, "fraction of valid is nan"),
        ({"dev": 0.1}, "'dev'; expected valid or test"),
    ],
)
def test_bad_fractions(rows: pl.LazyFrame, fractions: dict[str, float], match: str):
    with pytest.raises(UserError, match=match):
        split_by_group(rows, "user", fractions=fractions)


def test_an_empty_group_is_named():
    rows = pl.LazyFrame({"user": ["a", None]})
    with pytest.raises(UserError, match="log, row 2: column 'user' is empty"):
        split_by_group(rows, "user", fractions={"valid": 0.5}, source="log")


DAY = date(2022, 5, 1)
NOON = datetime(2022, 5, 1, 12)


@pytest.mark.parametrize(
    ("times", "until"),
    [
        (range(10), (3, 6)),
        ([DAY + timedelta(k) for k in range(10)], (date(2022, 5, 4), date(2022, 5, 7))),
        # A date includes its whole day; a datetime is that moment.
        (
            [NOON + timedelta(k) for k in range(10)],
            (date(2022, 5, 4), date(2022, 5, 7)),
        ),
        (
            [NOON + timedelta(k) for k in range(10)],
            (datetime(2022, 5, 4, 12), datetime(2022, 5, 8, 11, 59)),
        ),
    ],
)
def test_time_is_cut_at_both_ends_inclusively(times: list, until: tuple):
    rows = pl.LazyFrame({"t": list(times), "row": range(10)}).reverse()
    train_until, valid_until = until
    splits = split_by_time(rows, "t", train_until=train_until, valid_until=valid_until)
    found = {name: split.collect()["row"].to_list() for name, split in splits.items()}
    assert found == {"train": [3, 2, 1, 0], "valid": [6, 5, 4], "test": [9, 8, 7]}


@pytest.mark.parametrize(
    ("until", "match"),
    [
        ((3, 3), "expected a later valid_until"),
        ((DAY, date(2022, 6, 1)), "train_until is .*needs an integer"),
        ((3, True), "valid_until is true"),
    ],
)
def test_bad_moments(until: tuple, match: str):
    with pytest.raises(UserError, match=match):
        split_by_time(
            pl.LazyFrame({"t": [1]}), "t", train_until=until[0], valid_until=until[1]
        )


def test_times_with_a_zone_are_cut_in_utc():
    times = [datetime(2022, 5, 1, 23), datetime(2022, 5, 2, 1), datetime(2022, 5, 3)]
    rows = pl.LazyFrame({"t": pl.Series(times).dt.replace_time_zone("Europe/Berlin")})
    day, next_day = date(2022, 5, 1), date(2022, 5, 2)
    splits = split_by_time(rows, "t", train_until=day, valid_until=next_day)
    # 01:00 in Berlin is 23:00 of the day before.
    assert [split.collect().height for split in splits.values()] == [2, 1, 0]
    moments = {"train_until": times[0], "valid_until": times[1].replace(tzinfo=UTC)}
    splits = split_by_time(rows, "t", **moments)
    assert [split.collect().height for split in splits.values()] == [2, 0, 1]


def test_messages_write_dates_as_dates():
    rows = pl.LazyFrame({"t": [1]})
    with pytest.raises(UserError, match=r"^train_until is 2022-05-01; column"):
        split_by_time(rows, "t", train_until=DAY, valid_until=date(2022, 6, 1))
    labels = pl.LazyFrame({"click": [DAY], "conversion": [0]})
    with pytest.raises(UserError, match="label column 'click' holds Date; expected"):
        check_labels(
            labels, {"click": "click", "conversion": "conversion"}, "error", ""
        )


def test_an_empty_time_and_a_text_time_are_refused():
    with pytest.raises(UserError, match="row 2: column 't' is empty"):
        split_by_time(pl.LazyFrame({"t": [1, None]}), "t", train_until=1, valid_until=2)
    with pytest.raises(UserError, match="holds String; expected integers, dates"):
        split_by_time(pl.LazyFrame({"t": ["1"]}), "t", train_until=1, valid_until=2)
