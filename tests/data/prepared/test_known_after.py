"""Features that are known only after the event are refused, others are not."""

import dataclasses
import io
import json
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from rich.console import Console

from pwiser_jax.data.prepared.folder import write
from pwiser_jax.data.prepared.leaks import LeakWarning, feature_aucs, refuse_leaks
from pwiser_jax.data.prepared.manifest import read_manifest, write_manifest
from pwiser_jax.data.raw.flat import FlatSpec, FlatTable
from pwiser_jax.errors import UserError
from pwiser_jax.reports.inspection.show import inspect
from tests.data.multi_valued import write_folder
from tests.data.prepared.tables import LABELS, flat

RNG = np.random.default_rng(0)


def known_after(frame: pl.DataFrame) -> pl.DataFrame:
    """Columns that are filled, or large, only after the event."""
    count = frame.height
    number = pl.Series(RNG.integers(10**6, size=count))
    clicked = pl.col("clicked").cast(pl.Boolean)
    return frame.with_columns(
        order=pl.when("bought").then(number).cast(pl.String),
        paid=pl.when("bought").then(number.cast(pl.Float64)),
        dwell=pl.when(clicked).then(number + 1).otherwise(0),
        left=-pl.when(clicked).then(number + 1).otherwise(0),
        page=pl.when("in_cart").then(pl.lit("cart")).otherwise(pl.lit("list"))
        + (number % 30).cast(pl.String),
        visits=pl.when(clicked).then(pl.lit(40)).otherwise(20)
        + pl.Series(RNG.normal(size=count) * 9),
        # By chance as good as nothing: the number of its own row.
        row=pl.Series(np.arange(count)).cast(pl.String),
    )


def table(*features: str, rows: int = 6000) -> FlatTable:
    kinds = {"order": 0, "page": 0, "row": 0, "paid": 1, "dwell": 1}
    spec = FlatSpec(
        categorical=("kind", *(f for f in features if kinds.get(f, 1) == 0)),
        numerical=("x", *(f for f in features if kinds.get(f, 1) == 1)),
        labels=LABELS,
    )
    source = flat(rows)
    splits = {n: known_after(s.collect()).lazy() for n, s in source.splits.items()}
    return dataclasses.replace(source, spec=spec, splits=splits)


@pytest.mark.parametrize(
    ("feature", "label", "by"),
    [
        ("order", "buy", "whether it is missing"),
        ("paid", "buy", "whether it is missing"),
        ("dwell", "click", "its value"),
        ("left", "click", "its value"),
        ("page", "cart", "its category"),
    ],
)
def test_what_is_known_after_the_event_is_refused_unless_allowed(
    tmp_path: Path, feature: str, label: str, by: str
):
    said = rf"'{feature}' alone predicts the label '{label}' with .* by {by}.*--allow-l"
    with pytest.raises(UserError, match=said):
        write(table(feature), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
    manifest = write(table(feature), tmp_path / "out", allow_leaks=[feature])
    assert manifest.options["allow_leaks"] == [feature]


def test_a_good_feature_is_a_warning_and_chance_is_nothing(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
):
    with pytest.warns(LeakWarning, match=r"'visits' alone predicts the label 'click'"):
        write(table("visits", "row"), tmp_path / "out")
    found = feature_aucs(tmp_path / "out", read_manifest(tmp_path / "out"))
    by_name = {(each.feature, each.label): each for each in found}
    assert set(by_name) == {
        (feature, label)
        for feature in ("kind", "row", "x", "visits")
        for label in LABELS
    }
    for label in LABELS:
        for feature in ("kind", "row", "x"):
            assert by_name[feature, label].low < 0.6
    # P(a normal of mean 20 / 9 and variance 2 is above 0).
    assert by_name["visits", "click"].auc == pytest.approx(0.942, abs=0.01)


def test_inspect_shows_the_features_that_predict_alone(tmp_path: Path):
    write(table("dwell"), tmp_path / "out", allow_leaks="dwell")
    console = Console(record=True, width=100, file=io.StringIO())
    inspect(tmp_path / "out", 256, tmp_path / "pictures", console)
    text = console.export_text()
    (line,) = (x for x in text.splitlines() if re.match(r" *dwell .*1\.000", x))
    assert line.split() == ["dwell", "click", "value", "1.000", "1.000"]


def test_a_label_with_few_rows_of_a_class_is_not_measured(tmp_path: Path):
    orders = []
    for rows, labels in ((900, {"click", "cart", "buy"}), (150, {"click"})):
        source = table("order", rows=rows)
        orders.append(int(source.splits["train"].collect()["bought"].sum()))
        out = tmp_path / str(rows)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            write(source, out)
        # Few orders are a reason to warn, not to refuse; fewer ones say nothing.
        alone = [str(w.message) for w in said if w.category is LeakWarning]
        assert [("'order' alone" in text) for text in alone] == [True] * (rows == 900)
        found = feature_aucs(out, read_manifest(out))
        assert {each.label for each in found} >= labels
        assert ("buy" in {each.label for each in found}) == (rows == 900)
    assert 20 <= orders[0] < 100
    assert orders[1] < 20


def test_an_allowed_name_is_a_feature(tmp_path: Path):
    with pytest.raises(UserError, match=r"'dwel', which is no feature; .*'dwell'"):
        write(table("dwell"), tmp_path / "out", allow_leaks=["dwel"])


def test_shared_and_multi_valued_fields_are_measured(tmp_path: Path):
    folder = write_folder(tmp_path / "folder")
    manifest = read_manifest(folder)
    refuse_leaks(folder, manifest)
    found = feature_aucs(folder, manifest)
    schema = manifest.schema
    fields = [f.name for f in (*schema.embedded, *schema.numerical)]
    assert {each.feature for each in found} == set(fields)
    # The click falls and rises with the age, which the rows share.
    age = next(e for e in found if (e.feature, e.label) == ("age", "click"))
    assert 0.6 < age.auc < 0.9
    # A list that only clicked rows have.
    for name in manifest.splits["train"].files:
        frame = pl.read_parquet(folder / name)
        clicked = pl.col("click") == 1
        frame.with_columns(
            pl.when(clicked)
            .then(pl.col("words"))
            .otherwise(pl.col("words").list.head(0))
        ).with_columns(
            pl.when(clicked & (pl.col("words").list.len() == 0))
            .then(pl.lit([1], dtype=pl.List(pl.Int32)))
            .otherwise("words")
            .alias("words")
        ).write_parquet(folder / name)
    with pytest.raises(UserError, match=r"'words' alone predicts the label 'click'"):
        refuse_leaks(folder, manifest)


def test_rare_classes_are_looked_for_in_all_shards(tmp_path: Path):
    """120 conversions in the last of 40 shards."""
    folder = tmp_path / "folder"
    folder.mkdir()
    files = []
    for at in range(40):
        rng = np.random.default_rng(at)
        y = ((np.arange(300) < 120) & (at == 39)).astype(np.int8)
        files.append(f"train-{at:05}.parquet")
        pl.DataFrame(
            {
                "x": (y + rng.random(300) * (1 + 1e-4)).astype(np.float32),
                "click": (rng.random(300) < 0.5).astype(np.int8) | y,
                "conversion": y,
                "group": np.arange(300),
            }
        ).write_parquet(folder / files[-1])
    base = tmp_path / "base"
    spec = FlatSpec((), ("x",), labels=LABELS)
    manifest = write(dataclasses.replace(flat(), spec=spec), base)
    split = dataclasses.replace(
        manifest.splits["train"], files=tuple(files), rows=12_000
    )
    schema = dataclasses.replace(manifest.schema, labels=("click", "conversion"))
    manifest = dataclasses.replace(
        manifest, schema=schema, splits={**manifest.splits, "train": split}
    )
    found = {each.label: each for each in feature_aucs(folder, manifest)}
    assert found["conversion"].low > 0.99
    assert found["click"].low < 0.9


@pytest.mark.parametrize(
    "name", ["ctr", "CTCVR", "cvr", "pairs", "rows", "split", "groups", "exposure", ""]
)
def test_labels_with_names_of_ours_are_refused_with_the_list(tmp_path: Path, name: str):
    labels = dict(zip(("click", name, "buy"), LABELS.values(), strict=True))
    spec = dataclasses.replace(flat().spec, labels=labels)
    with pytest.raises(UserError, match=r"cannot be called .*: .*ctcvr, ctr, cvr, "):
        write(flat(spec=spec), tmp_path / "out")


@pytest.mark.parametrize("name", [" ", "cart ", "in\ncart", "\x1b[31mcart"])
def test_labels_that_would_break_a_table_are_refused(tmp_path: Path, name: str):
    labels = dict(zip(("click", name, "buy"), LABELS.values(), strict=True))
    spec = dataclasses.replace(flat().spec, labels=labels)
    with pytest.raises(UserError, match=r"cannot be called .*: a name has no"):
        write(flat(spec=spec), tmp_path / "out")


def test_labels_that_give_two_tasks_one_name_are_refused(tmp_path: Path):
    names = ("click", "cart", "cart_given_click")
    labels = dict(zip(names, LABELS.values(), strict=True))
    spec = dataclasses.replace(flat().spec, labels=labels)
    with pytest.raises(UserError, match=r"two tasks the name 'cart_given_click'"):
        write(flat(spec=spec), tmp_path / "out")


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_value_that_overflows_once_scaled_is_named(tmp_path: Path, split: str):
    source = flat()

    def huge(frame: pl.DataFrame) -> pl.DataFrame:
        values = frame["x"].to_numpy() * 1e-4
        values[6] = 3e38
        return frame.with_columns(x=pl.Series(values))

    tiny = {
        n: s.with_columns(x=pl.col("x") * 1e-4)
        if n != split
        else huge(s.collect()).lazy()
        for n, s in source.splits.items()
    }
    changed: Any = dataclasses.replace(source, splits=tiny)
    if split == "train":  # its own spread makes room
        write(changed, tmp_path / "out")
        stored = pl.read_parquet(tmp_path / "out" / "train-00000.parquet")["x"]
        assert stored.is_finite().all()
        return
    said = (
        r"^test, row 7: column 'x' holds 3e\+38; expected a finite number that float32"
    )
    with pytest.raises(UserError, match=said):
        write(changed, tmp_path / "out")


def test_the_manifest_of_allowed_features_is_json(tmp_path: Path):
    manifest = write(table("dwell"), tmp_path / "out", allow_leaks=["dwell"])
    tree = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert tree["options"]["allow_leaks"] == ["dwell"]
    assert write_manifest(tmp_path / "out", manifest) == manifest
