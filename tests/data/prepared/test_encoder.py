"""Encoding: ids and scales are train's, rows keep their order, bad values are named."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwiser_jax.data.aliccp.id_tables import MISSING, IdTable
from pwiser_jax.data.aliccp.line_format import INT32_MAX
from pwiser_jax.data.prepared.encoder import Encoder
from pwiser_jax.data.prepared.moments import Moments, moments
from pwiser_jax.data.prepared.vocabulary import extended
from pwiser_jax.data.raw.flat import FlatSpec, ListColumn
from pwiser_jax.data.raw.hashing import group_hash
from pwiser_jax.errors import UserError
from pwiser_jax.schema import CategoricalField


def encoded(
    train: dict[str, list[Any]], rows: dict[str, list[Any]], spec: FlatSpec
) -> tuple[Encoder, pl.DataFrame]:
    encoder = Encoder.fit(pl.LazyFrame(train, strict=False), spec)
    frame = pl.LazyFrame(rows, strict=False)
    return encoder, encoder.transform(frame, with_labels=False).collect()


def ids(train: list[Any], rows: list[Any], min_count: int = 1, **sizes: int):
    spec = FlatSpec(("f",), min_count=min_count, sizes=sizes)
    encoder, found = encoded({"f": train}, {"f": rows}, spec)
    return encoder.schema.categorical[0], found["f"].to_list()


def test_missing_unseen_and_rare_are_three_things():
    train = ["b", "b", "a", "a", "z", None, "", "c", "c"]
    field, found = ids(train, ["a", "b", "c", "z", "y", None, ""], min_count=2)
    assert field.size == 3
    missing, unseen, rare = field.missing, field.unseen, field.rare
    assert found == [0, 1, 2, rare, unseen, missing, missing]
    assert len({missing, unseen, rare}) == 3
    assert max(missing, unseen, rare) == field.rows - 1


def test_integers_go_by_number_and_text_by_letters():
    assert ids([10, 9, -3, 100], [-3, 9, 10, 100])[1] == [0, 1, 2, 3]
    assert ids(["10", "9", "-3", "100"], ["-3", "9", "10", "100"])[1] == [0, 1, 2, 3]
    assert ids(["10", "9", "x"], ["10", "9", "x"])[1] == [0, 1, 2]
    assert ids(["07", "7", "8"], ["07", "7", "8"])[1] == [0, 1, 2]


@pytest.mark.parametrize(
    "rows",
    [
        [3, 5, None],
        [3.0, 5.0, float("nan")],
        ["3", "5", ""],
        ["3.0", "5.00", None],
        pl.Series([3, 5, None], dtype=pl.UInt8),
        pl.Series(["3", "5", None], dtype=pl.Categorical),
    ],
)
def test_a_value_is_the_same_however_it_is_written(rows: Any):
    field, found = ids([3, 5, 5], rows)
    assert found == [0, 1, field.missing]
    field, found = ids(rows, [3, 5, 4])
    assert found == [0, 1, field.unseen]


def test_booleans_and_dates():
    assert ids([True, False, True], [True, False, 1, 0])[1] == [1, 0, 1, 0]
    days = pl.Series([19001, 19000]).cast(pl.Date)
    assert ids(days, days)[1] == [1, 0]
    assert ids(days, ["2022-01-08", "2022-01-09"])[1] == [0, 1]


def test_a_field_that_train_never_fills():
    field, found = ids([None, None], ["a", None])
    assert field.size == 0
    assert found == [field.unseen, field.missing]


values = st.one_of(st.none(), st.sampled_from(["", "a", "b", "zz", "é", "a b"]))


@settings(deadline=None, max_examples=40)
@given(
    st.lists(values, min_size=1, max_size=60),
    st.lists(values, min_size=1, max_size=60),
    st.integers(1, 4),
)
def test_ids_against_their_definition(train: list, rows: list, min_count: int):
    filled = [value for value in train if value]
    kept = sorted({v for v in filled if filled.count(v) >= min_count}, key=str.encode)

    def expected(value: str | None) -> int:
        if not value:
            return len(kept)
        if value not in filled:
            return len(kept) + 1
        return kept.index(value) if value in kept else len(kept) + 2

    field, found = ids(pl.Series(train, dtype=pl.String), rows, min_count)
    assert field.size == len(kept)
    assert found == [expected(value) for value in rows]


@pytest.mark.parametrize(
    "rows",
    [
        [0, 2, 3, -1, None, 10**12],
        [0.0, 2.0, 3.0, -1.0, float("nan"), 1e12],
        ["0", "2", " 3", "-1", "", "1000000000000"],
    ],
)
def test_ids_of_their_own_stay(rows: list[Any]):
    field, found = ids([0], rows, f=3)
    assert field.size == 3
    assert found == [0, 2, field.unseen, field.unseen, field.missing, field.unseen]


def test_ids_above_int64_are_unseen():
    rows = pl.Series([2**64 - 1, 1, None], dtype=pl.UInt64)
    field, found = ids([0], rows, f=3)
    assert found == [field.unseen, 1, field.missing]


@pytest.mark.parametrize(
    ("rows", "sizes", "message"),
    [
        ([1.0, 2.5], {}, "row 2: column 'f' holds 2.5; expected a whole number"),
        ([1.0, math.inf], {}, "row 2: column 'f' holds inf; expected a whole number"),
        ([1.0, 1e30], {}, "row 2: column 'f' holds 1e"),
        ([1.0, 2.5], {"f": 3}, "row 2: column 'f' holds 2.5; expected a whole number"),
        (["1", "x"], {"f": 3}, "row 2: column 'f' holds 'x'; expected a whole number"),
        ([[1], [2]], {}, r"column 'f' holds List\(Int64\); it cannot be a categorical"),
    ],
)
def test_bad_categories(rows: list[Any], sizes: dict[str, int], message: str):
    with pytest.raises(UserError, match=message):
        ids([1], rows, **sizes)
    with pytest.raises(UserError, match=message):
        ids(rows, [1], **sizes)


def numbers(train: Any, rows: Any, standardize: bool = True):
    spec = FlatSpec(("f",), ("x",), standardize=standardize)
    train, rows = (pl.Series(part, strict=False) for part in (train, rows))
    columns = [{"f": [1] * len(part), "x": part} for part in (train, rows)]
    encoder, found = encoded(*columns, spec)
    return encoder.schema.numerical[0], found["x"]


def test_scales_are_those_of_train_in_float64():
    rng = np.random.default_rng(0)
    train, rows = 1e6 + rng.normal(size=200_000), 1e6 + 3 * rng.normal(size=1000)
    field, found = numbers(train, rows)
    assert field.mean == pytest.approx(train.mean(), rel=1e-14)
    assert field.scale == pytest.approx(train.std(), rel=1e-12)
    expected = ((rows - train.mean()) / train.std()).astype(np.float32)
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert found.dtype == pl.Float32


def test_missing_numbers_become_the_mean_of_train():
    missing = [None, float("nan"), 4.0]
    field, found = numbers([1.0, 3.0, None, float("nan")], missing)
    assert (field.mean, field.scale) == (2.0, 1.0)
    assert found.to_list() == [0.0, 0.0, 2.0]
    field, found = numbers([1.0, 4.0, None], missing, standardize=False)
    assert (field.mean, field.scale) == (0.0, 1.0)
    assert found.to_list() == [2.5, 2.5, 4.0]


def test_numbers_as_text_integers_and_booleans():
    assert numbers(["1", " 3 ", ""], ["1e1", ""])[1].to_list() == [8.0, 0.0]
    assert numbers([1, 3], [2, None])[1].to_list() == [0.0, 0.0]
    assert numbers([True, False], [True, None])[1].to_list() == [1.0, 0.0]


@pytest.mark.parametrize("constant", [[0.1] * 7, [0.1], [1e-300] * 3])
def test_a_constant_keeps_its_scale(constant: list[float]):
    field, found = numbers(constant, [constant[0], 1 + constant[0]])
    assert field.scale == 1.0
    assert found.to_list() == pytest.approx([0.0, 1.0])


def test_a_number_that_train_never_has():
    field, found = numbers(pl.Series([None], dtype=pl.Float64), [None, 2.0])
    assert (field.mean, field.scale) == (0.0, 1.0)
    assert found.to_list() == [0.0, 2.0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([1.0, math.inf], "row 2: column 'x' holds inf; expected a finite number"),
        ([1.0, -math.inf], "row 2: column 'x' holds -inf; expected a finite number"),
        ([1.0, 1e39], "row 2: column 'x' holds 1e"),
        (["1", "cheap"], "row 2: column 'x' holds 'cheap'; expected a finite number"),
        (["1", "inf"], "row 2: column 'x' holds 'inf'; expected a finite number"),
        ([[1.0], [2.0]], r"column 'x' holds List\(Float64\); it cannot be a numerical"),
    ],
)
def test_bad_numbers(rows: list[Any], message: str):
    with pytest.raises(UserError, match=message):
        numbers([1.0], rows)
    with pytest.raises(UserError, match=message):
        numbers(rows, [1.0])


@settings(deadline=None)
@given(st.lists(st.lists(st.floats(-1e6, 1e6), max_size=9), max_size=9))
def test_moments_do_not_depend_on_the_blocks(blocks: list[list[float]]):
    merged, values = Moments(), np.array([x for block in blocks for x in block])
    for block in blocks:
        merged.add(np.array(block))
    assert merged.count == len(values)
    if len(values):
        assert merged.mean == pytest.approx(values.mean(), rel=1e-9, abs=1e-9)
        deviations = np.square(values - values.mean()).sum()
        assert merged.squares == pytest.approx(deviations, rel=1e-7, abs=1e-7)


def test_moments_are_the_same_bits_however_the_frame_is_cut():
    values = pl.Series("x", np.random.default_rng(1).normal(size=300_000) ** 5)
    whole = moments(pl.LazyFrame({"x": values}), {"x": pl.col("x")})
    ragged = pl.concat([values[:7], values[7:99_999], values[99_999:]], rechunk=False)
    assert ragged.n_chunks() == 3
    assert moments(pl.LazyFrame({"x": ragged}), {"x": pl.col("x")}) == whole


SPEC = FlatSpec(
    ("user", "kind"), ("x",), group="user", time="day", extra=("p",), sizes={"kind": 2}
)


def table(rows: int) -> pl.DataFrame:
    rng = np.random.default_rng(2)
    return pl.DataFrame(
        {
            "user": rng.integers(50, size=rows),
            "kind": rng.integers(3, size=rows),
            "x": rng.normal(size=rows),
            "day": rng.integers(9, size=rows),
            "p": rng.random(rows),
            "click": rng.integers(2, size=rows),
            "conversion": [0] * rows,
        }
    )


def test_the_columns_beside_the_features():
    rows = table(400)
    found = Encoder.fit(rows.lazy(), SPEC).transform(rows.lazy()).collect()
    names = ["user", "kind", "x", "click", "conversion", "group", "time", "p"]
    assert found.columns == names
    hashed = group_hash(rows["user"]).view(np.int64)
    np.testing.assert_array_equal(found["group"], hashed)
    assert found["time"].to_list() == rows["day"].to_list()
    assert found["p"].to_list() == rows["p"].to_list()
    assert found["click"].to_list() == rows["click"].to_list()
    dtypes = [pl.Int32] * 2 + [pl.Float32] + [pl.Int8] * 2 + [pl.Int64] * 2
    assert found.dtypes == [*dtypes, pl.Float64]


def test_times_are_days_or_microseconds():
    rows = table(3)
    for dtype, unit in ((pl.Date, 1), (pl.Datetime("ms"), 1000)):
        typed = rows.with_columns(pl.col("day").cast(dtype)).lazy()
        found = Encoder.fit(typed, SPEC).transform(typed).collect()
        assert found["time"].to_list() == (rows["day"] * unit).to_list()


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("user", [1, None], "row 2: column 'user' is empty; expected a group in every"),
        ("user", [1.0, 0.5], "row 2: column 'user' holds 0.5; expected a"),
        (
            "day",
            [1, None],
            "row 2: column 'day' is empty; expected a time in every row",
        ),
        ("day", ["1", "2"], "time column 'day' holds String"),
        (
            "p",
            ["1", "many"],
            "row 2: column 'p' holds 'many'; expected a finite number",
        ),
    ],
)
def test_bad_columns_beside_the_features(column: str, value: list, message: str):
    encoder = Encoder.fit(table(9).lazy(), SPEC)
    rows = table(2).with_columns(pl.Series(column, value)).lazy()
    with pytest.raises(UserError, match=message):
        encoder.transform(rows)


def test_missing_columns_are_all_named():
    encoder = Encoder.fit(table(9).lazy(), SPEC)
    with pytest.raises(UserError, match=r"^raw.csv has no columns 'user', 'x'$"):
        encoder.transform(table(2).lazy().drop("user", "x"), source="raw.csv")
    with pytest.raises(UserError, match="has no columns 'day', 'click'"):
        encoder.transform(table(2).lazy().drop("day", "click"))
    with pytest.raises(UserError, match=r"has no column 'x'; did you mean 'xx'\?"):
        encoder.transform(table(2).lazy().rename({"x": "xx"}))


def test_without_labels_features_are_enough():
    encoder = Encoder.fit(table(300).lazy(), SPEC)
    rows = table(40)
    features = rows.select("x", "kind", "user").lazy()
    found = encoder.transform(features, with_labels=False).collect()
    assert found.columns == ["user", "kind", "x", "group"]
    assert found["group"].to_list() == list(range(40))
    whole = encoder.transform(rows.lazy()).collect()
    assert found.drop("group").equals(whole.select("user", "kind", "x"))
    # What is beside the features is not looked at, right or wrong.
    wrong = rows.with_columns(day=pl.lit("soon"), p=pl.lit("x"), click=pl.lit(7))
    assert encoder.transform(wrong.lazy(), with_labels=False).collect().equals(found)


def test_without_a_group_every_row_is_its_own():
    spec = FlatSpec(("kind",))
    encoder = Encoder.fit(table(5).lazy(), spec)
    found = encoder.transform(table(4).lazy(), first_row=5).collect()
    assert found["group"].to_list() == [5, 6, 7, 8]


def test_many_rows_keep_their_order(tmp_path: Path):
    rows = table(300_000).with_row_index("row")
    spec = FlatSpec(("user", "row"), ("x",), group="user")
    encoder = Encoder.fit(rows.lazy(), spec)
    encoder.transform(rows.lazy()).sink_parquet(tmp_path / "rows.parquet")
    found = pl.read_parquet(tmp_path / "rows.parquet")["row"]
    np.testing.assert_array_equal(found, np.arange(300_000))


@pytest.mark.parametrize("far", [20, 2**31 - 2], ids=["dense", "sparse"])
def test_ids_beyond_those_of_train_are_unseen(far):
    table = IdTable(np.array([5, 9, far], np.int32), np.array([7], np.int32))
    field = CategoricalField("c", 3)
    raw = np.array([5, 9, far, 7, MISSING, 0, 4, 6, far + 1, INT32_MAX], np.int32)
    own, unseen = [0, 1, 2, field.rare, field.missing], [field.unseen] * 5
    assert list(table.encoder(field)(raw)) == own + unseen


def test_a_vocabulary_grows_by_what_is_frequent_in_the_newer_rows() -> None:
    known = pl.Series("value", ["a", "b", "c", "d"])  # c and d are rare
    newer = pl.Series("value", ["b", "d", "x", "c", "y", "a"])  # c, y and a are rare
    values, size = extended(known, 2, newer, 3)
    assert values.to_list() == ["a", "b", "d", "x", "c", "y"]
    assert size == 4


def test_an_extended_encoder_keeps_ids_and_scales(tmp_path: Path) -> None:
    spec = FlatSpec(
        ("kind", "bucket"),
        ("price",),
        multi_valued={"tags": ListColumn("|")},
        buckets={"bucket": 5},
        min_count=2,
    )
    first = {
        "kind": ["7", "7", "3", "3", "5"],  # 5 is rare
        "bucket": list("aabbc"),
        "price": [1.0, 2.0, 3.0, 4.0, None],
        "tags": ["x", "x|y", "y", "", "x"],
    }
    newer = {
        "kind": ["5", "1", "5", "1", "x"],
        "bucket": list("zzzzz"),
        "price": [100.0, 200.0, 300.0, 400.0, None],
        "tags": ["z|x|y", "z", "", "", ""],
    }
    old = Encoder.fit(pl.LazyFrame(first), spec)
    grown = old.extend(pl.LazyFrame(newer))
    assert grown.values["kind"].to_list() == ["3", "7", "1", "5", "x"]
    assert [field.size for field in grown.schema.embedded] == [4, 5, 3]
    assert [field.width for field in grown.schema.multi_valued] == [3]
    assert grown.schema.numerical == old.schema.numerical
    assert grown.fill == old.fill
    then, now = (
        e.transform(pl.LazyFrame(first), with_labels=False).collect()
        for e in (old, grown)
    )
    assert then["kind"].to_list() == [1, 1, 0, 0, 4]
    assert now["kind"].to_list() == [1, 1, 0, 0, 3]
    same = [name for name in then.columns if name != "kind"]
    assert then.select(same).equals(now.select(same))
