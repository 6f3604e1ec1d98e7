"""A value has one canonical text, whatever the file; text is never parsed."""

from datetime import date, datetime, time
from typing import Any

import polars as pl
import pytest

from pwiser_jax.data.raw import canonical
from pwiser_jax.data.raw.columns import category, group_key
from pwiser_jax.data.raw.hashing import group_hash


def texts(values: list[Any] | pl.Series) -> tuple[str | None, list[str | None]]:
    """The kind of a column and its canonical texts."""
    frame = pl.LazyFrame({"c": values})
    dtype = frame.collect_schema()["c"]
    kind = canonical.kinds_of(frame, {"c": pl.col("c")}).kinds.get("c")
    found = frame.select(category("c", dtype, kind).value).collect()["c"]
    return kind, found.to_list()


@pytest.mark.parametrize(
    ("values", "kind", "expected"),
    [
        (["7", " 8 ", "", None, "-3"], "number", ["7", "8", None, None, "-3"]),
        (["7.0", "8.00", "nan"], "number", ["7", "8", None]),
        (["1e16", "2e+16", "7.0"], "number", ["1e16", "2e16", "7"]),
        (["18446744073709551615", "1"], "number", ["18446744073709551615", "1"]),
        (["007", "7"], "text", ["007", "7"]),
        (["1e5", "2e5"], "text", ["1e5", "2e5"]),
        (["7.0", "7.5"], "text", ["7.0", "7.5"]),
        (["7.0", "a "], "text", ["7.0", "a"]),
        (["True", "false", None], "boolean", ["1", "0", None]),
        (["True", "yes"], "text", ["True", "yes"]),
        (["2022-05-03"], "date", ["2022-05-03"]),
        (
            ["2022-05-03T00:00:00.000000", "2022-05-03 01:02:03.5"],
            "date",
            ["2022-05-03", "2022-05-03 01:02:03.500000"],
        ),
        (
            ["2022-05-03 01:00:00+02:00", "2022-05-03 01:00:00 UTC"],
            "date",
            ["2022-05-02 23:00:00", "2022-05-03 01:00:00"],
        ),
        (["2022-05-33"], "text", ["2022-05-33"]),
        (["01:02:03.000000000"], "clock", ["01:02:03"]),
        ([7.0, float("nan"), -0.0, 1e16], "number", ["7", None, "0", "1e16"]),
        ([True, None], "boolean", ["1", None]),
        ([None, ""], "text", [None, None]),
        ([date(2022, 5, 3)], "date", ["2022-05-03"]),
        ([datetime(2022, 5, 3)], "date", ["2022-05-03"]),
        ([time(1, 2, 3, 4)], "clock", ["01:02:03.000004"]),
    ],
)
def test_canonical_texts(values: list[Any], kind: str, expected: list[Any]) -> None:
    assert texts(values) == (kind, expected)
    assert texts(3 * values) == (kind, 3 * expected)  # each distinct one is parsed once


def test_a_value_far_down_a_column_makes_it_text() -> None:
    values = [f"{k}.0" for k in range(canonical.SAMPLE + 5)]
    assert texts(values)[0] == "number"
    assert texts([*values, "x"]) == ("text", [*values, "x"])


def test_a_column_that_mixes_both_forms_is_reported() -> None:
    frame = pl.LazyFrame({"a": ["7", "7.0"], "b": ["7", "8"], "c": ["7.0", "x"]})
    found = canonical.kinds_of(frame, {name: pl.col(name) for name in "abc"})
    assert found.mixed == ["a"]


@pytest.mark.parametrize(
    "columns",
    [
        [[7, 8], [7.0, 8.0], ["7", "8"], ["7.0", "8.0"], pl.Series(["7", "8.0"])],
        [[True, False], ["true", "false"], ["True", "False"]],
        [[date(2022, 5, 3)], ["2022-05-03"], [datetime(2022, 5, 3)]],
        [pl.Series([2**63 + 7], dtype=pl.UInt64), [str(2**63 + 7)]],
    ],
)
def test_a_group_is_the_same_in_every_form(columns: list[Any]) -> None:
    found = []
    for values in columns:
        frame = pl.LazyFrame({"g": values})
        kind = canonical.kinds_of(frame, {"g": pl.col("g")}).kinds["g"]
        key = group_key("g", frame.collect_schema()["g"], kind)
        groups = frame.select(key.value).collect()["g"]
        found.append(group_hash(groups).tolist())
    assert all(hashes == found[0] for hashes in found)
    # Equal categories are equal groups.
    assert len({tuple(texts(values)[1]) for values in columns}) == 1


def test_text_7_and_7_0_are_one_group_exactly_where_one_category() -> None:
    for values in (["7", "7.0"], ["7", "7.0", "x"]):
        frame = pl.LazyFrame({"g": values})
        kind = canonical.kinds_of(frame, {"g": pl.col("g")}).kinds["g"]
        groups = frame.select(group_key("g", pl.String(), kind).value).collect()["g"]
        categories = texts(values)[1]
        assert len(set(groups)) == len(set(categories))
