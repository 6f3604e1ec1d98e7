"""A label among the features is refused, whatever its name and its two values."""

import dataclasses

import numpy as np
import polars as pl
import pytest

from pwiser_jax.data.prepared.encoder import features
from pwiser_jax.data.raw import leaks
from pwiser_jax.data.raw.flat import FlatSpec
from pwiser_jax.data.raw.leaks import refuse_copies, refuse_names
from pwiser_jax.errors import UserError

SPEC = FlatSpec(("user",), ("x",), group="user", time="day", extra=("p",))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"categorical": ("click",)}, "column 'click' is a label"),
        ({"numerical": ("conversion",)}, "column 'conversion' is a label"),
        ({"labels": {"click": "x", "buy": "b"}}, "column 'x' is a label"),
        ({"categorical": ("click",), "labels": {"click": "c"}}, "prepared column"),
        ({"categorical": ("group",)}, "'group' has the name of a prepared column"),
        ({"numerical": ("time",), "time": None}, "'time' has the name of a prepared"),
        ({"extra": ("click",)}, "'click' has the name of a prepared column"),
        ({"numerical": ("day",)}, "column 'day' is the time column, never a feature"),
        ({"numerical": ("p",)}, "column 'p' is the extra column, never a feature"),
        ({"numerical": ("user",)}, "column 'user' is named twice among the features"),
        ({"categorical": (), "numerical": ()}, "name at least one"),
    ],
)
def test_names(change: dict, message: str):
    refuse_names(SPEC)
    with pytest.raises(UserError, match=message):
        refuse_names(dataclasses.replace(SPEC, **change))


def check(name: str, values: pl.Series, rows: pl.DataFrame, numerical: bool):
    frame = rows.with_columns(values.alias(name)).lazy()
    spec = FlatSpec(("user",) if numerical else ("user", name), (name,) * numerical)
    readings = features(frame, spec, "train")
    refuse_copies(frame, spec, {key: read.value for key, read in readings.items()})


@pytest.fixture(scope="module")
def rows() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    click = rng.random(5000) < 0.2
    conversion = click & (rng.random(5000) < 0.1)
    return pl.DataFrame(
        {"user": rng.integers(9, size=5000), "click": click, "conversion": conversion}
    ).with_columns(pl.col("click", "conversion").cast(pl.Int8))


@pytest.mark.parametrize("label", ["click", "conversion"])
@pytest.mark.parametrize("numerical", [False, True])
def test_copies(rows: pl.DataFrame, label: str, numerical: bool):
    truth = rows[label].cast(pl.Int64)
    level = rows["click"].cast(pl.Int64) + rows["conversion"]
    copies = [truth, 1 - truth, truth.cast(pl.Float32), truth.cast(pl.String)]
    copies += [truth == 1, 3 * truth - 7]
    copies += [truth.replace_strict({0: None, 1: 5}, return_dtype=pl.Int64)]
    copies += [level, 2 - level] if label == "click" else []
    if not numerical:
        copies += [truth.replace_strict({0: "no", 1: "yes"})]
    for copy in copies:
        with pytest.raises(UserError, match=f"'f' is a copy of the label '{label}'"):
            check("f", copy, rows, numerical)


def test_the_first_rows_refuse_nothing_alone(
    rows: pl.DataFrame, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(leaks, "SAMPLE", 100)
    rows = rows.sort("click")  # the first rows have one level
    truth = rows["click"].cast(pl.Int64)
    check("f", truth.clone().scatter(4999, 0), rows, True)
    with pytest.raises(UserError, match="'f' is a copy of the label 'click'"):
        check("f", truth, rows, True)


@pytest.mark.parametrize("numerical", [False, True])
def test_what_only_looks_like_a_copy(rows: pl.DataFrame, numerical: bool):
    truth = rows["click"].cast(pl.Int64)
    one_off = truth.scatter(17, 1 - truth[17])
    constant, empty = truth * 0 + 4, truth.replace_strict({0: None, 1: None})
    for honest in (one_off, constant, empty.cast(pl.Int64), truth.reverse()):
        check("f", honest, rows, numerical)


def test_few_rows_equal_a_label_by_chance():
    few = pl.DataFrame({"user": [1, 1, 2], "click": [0, 0, 1], "conversion": [0, 0, 0]})
    check("f", pl.Series(["a", "a", "b"]), few, numerical=False)
    with pytest.raises(UserError, match="copy of the label 'click'"):
        check("f", pl.Series([1, 1, 0]), few, numerical=False)
