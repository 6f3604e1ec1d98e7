"""Labels are 0 or 1 and nested, or the first offending row is named."""

from typing import Any

import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwiser_jax.data.raw.labels import check_labels
from pwiser_jax.errors import UserError

LADDER = {"click": "click", "conversion": "conversion"}
THREE = {"click": "a", "cart": "b", "order": "c"}


def frame(**columns: list[Any]) -> pl.LazyFrame:
    return pl.LazyFrame(columns)


@pytest.mark.parametrize(
    "clicks",
    [
        [0, 1, 1],
        [0.0, 1.0, 1.0],
        [False, True, True],
        ["0", "1", "1"],
        ["0.0", "1.0", " 1 "],
        ["false", "True", "TRUE"],
    ],
)
def test_every_way_to_write_a_label(clicks: list[Any]):
    rows = frame(click=clicks, conversion=[0, 1, 0], x=[1.5, 2.5, 3.5])
    checked, fixed = check_labels(rows, LADDER, "error", "log.csv")
    found = checked.collect()
    assert found["click"].to_list() == [0, 1, 1]
    assert found["conversion"].to_list() == [0, 1, 0]
    assert found["x"].to_list() == [1.5, 2.5, 3.5]
    assert found.schema["click"] == found.schema["conversion"] == pl.Int8
    assert fixed == {}


@pytest.mark.parametrize(
    ("clicks", "shown"),
    [
        ([0, 1, 2], "holds 2"),
        ([0, 1, -1], "holds -1"),
        ([0, 1, None], "is empty"),
        ([0.0, 1.0, 0.5], "holds 0.5"),
        ([0.0, 1.0, float("nan")], "holds nan"),
        (["0", "1", "yes"], "holds 'yes'"),
        (["0", "1", ""], "is empty"),
    ],
)
def test_another_label_is_refused_by_name(clicks: list[Any], shown: str):
    rows = frame(click=clicks, conversion=[0, 0, 0])
    for mode in ("error", "drop", "nest"):
        with pytest.raises(UserError) as error:
            check_labels(rows, LADDER, mode, "log.csv")
        assert str(error.value) == (
            f"log.csv, row 3: column 'click' {shown}; expected 0 or 1"
        )


def test_the_first_bad_row_of_all_columns_is_named():
    rows = frame(click=[1, 1, 1, 9], conversion=[0, 7, 0, 0])
    with pytest.raises(UserError, match="row 2: column 'conversion' holds 7"):
        check_labels(rows, LADDER, "error", "log.csv")


def test_a_missing_column_is_named_with_a_near_one():
    with pytest.raises(UserError, match=r"log.csv has no column 'click'; .*'clicks'"):
        check_labels(frame(clicks=[0], conversion=[0]), LADDER, "error", "log.csv")


def test_conversions_without_a_click():
    rows = frame(click=[1, 0, 0, 1], conversion=[1, 1, 0, 0], row=[1, 2, 3, 4])
    with pytest.raises(UserError, match=r"^log, row 2: .*a conversion without a click"):
        check_labels(rows, LADDER, "error", "log")
    dropped, fixed = check_labels(rows, LADDER, "drop", "log")
    assert dropped.collect()["row"].to_list() == [1, 3, 4]
    assert fixed == {"conversion_without_click_dropped": 1}
    nested, fixed = check_labels(rows, LADDER, "nest", "log")
    assert nested.collect()["row"].to_list() == [1, 2, 3, 4]
    assert nested.collect()["conversion"].to_list() == [1, 0, 0, 0]
    assert fixed == {"conversion_without_click_nested": 1}
    filled, fixed = check_labels(rows, LADDER, "fill", "log")
    assert filled.collect()["click"].to_list() == [1, 1, 0, 1]
    assert filled.collect()["conversion"].to_list() == [1, 1, 0, 0]
    assert fixed == {"conversion_without_click_filled": 1}


def test_an_order_without_a_cart_is_kept_by_fill():
    rows = frame(a=[1, 0, 1], b=[0, 0, 1], c=[1, 1, 0])
    filled, fixed = check_labels(rows, THREE, "fill", "log")
    assert filled.collect().rows() == [(1, 1, 1), (1, 1, 1), (1, 1, 0)]
    assert fixed == {"order_without_cart_filled": 2}


def test_the_place_can_be_a_function_of_the_row():
    rows = frame(click=[0, 0], conversion=[0, 1])
    with pytest.raises(UserError, match=r"^line 42:"):
        check_labels(rows, LADDER, "error", lambda row: f"line {40 + row}")


bits = st.tuples(*[st.integers(0, 1)] * 3)


@settings(deadline=None, max_examples=40)
@given(st.lists(bits, min_size=1, max_size=30))
def test_a_longer_ladder(rows: list[tuple[int, int, int]]):
    raw = frame(**{column: [row[k] for row in rows] for k, column in enumerate("abc")})
    good = [row for row in rows if row[0] >= row[1] >= row[2]]
    dropped, fixed = check_labels(raw, THREE, "drop", "log")
    assert dropped.collect().rows() == good
    assert sum(fixed.values()) == len(rows) - len(good)
    assert fixed.get("cart_without_click_dropped", 0) == sum(b > a for a, b, _ in rows)
    nested, fixed = check_labels(raw, THREE, "nest", "log")
    assert nested.collect().rows() == [(a, a & b, a & b & c) for a, b, c in rows]
    assert sum(fixed.values()) == len(rows) - len(good)
    filled, fixed = check_labels(raw, THREE, "fill", "log")
    assert filled.collect().rows() == [(a | b | c, b | c, c) for a, b, c in rows]
    assert sum(fixed.values()) == len(rows) - len(good)
    if len(good) < len(rows):
        first = next(at for at, row in enumerate(rows, 1) if row not in good)
        with pytest.raises(UserError, match=f"^log, row {first}: "):
            check_labels(raw, THREE, "error", "log")
