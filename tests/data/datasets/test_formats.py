"""A table is the same data in CSV, in Parquet and in a folder of Parquet parts."""

import json
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from pwiser_jax.data.datasets.table import open_table, prepare_table
from pwiser_jax.data.prepared.folder import DataWarning, Prepared
from pwiser_jax.errors import UserError

ROWS = 600
KINDS = (
    *("user", "small", "code", "word", "whole", "whole32", "large", "vip"),
    *("on", "at", "zoned", "clock", "cat", "decimal"),
)
SCHEMA: dict[str, Any] = {
    "categorical": list(KINDS),
    "numerical": ["price", "price32", "flag"],
    "multi_valued": {"tags": {"separator": "|"}},
    "labels": {"click": "clicked", "conversion": "bought"},
    "group": "user",
    "time": "stamp",
    "weight": "weight",
    "split": {"by": "group", "valid": 0.2, "test": 0.2},
    "min_count": 2,
    "vocabulary": {"code": {"min_count": 5}, "word": {"buckets": 7}},
}


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    click = rng.random(ROWS) < 0.4
    number = rng.integers(9, size=ROWS)
    day = [date(2022, 5, 1) + timedelta(int(k)) for k in number]
    at = [datetime(2022, 5, 1) + timedelta(hours=int(k)) for k in number * 12]
    tags = [[f"t{k}" for k in range(n % 4)] for n in number]
    return pl.DataFrame(
        {
            "user": rng.integers(80, size=ROWS) * 10**14,
            "small": pl.Series(number, dtype=pl.Int8),
            "code": [f"{k:03}" for k in number],
            "word": [f" w{k} " if k else None for k in number],
            "whole": pl.Series(number, dtype=pl.Float64),
            "whole32": pl.Series(number, dtype=pl.Float32),
            "large": number * 1e16,
            "vip": number > 4,
            "on": day,
            "at": at,
            "stamp": at,
            "zoned": pl.Series(at).dt.replace_time_zone("Europe/Berlin"),
            "clock": [time(int(k), 30) for k in number],
            "cat": pl.Series([f"c{k}" for k in number], dtype=pl.Categorical),
            "decimal": pl.Series(number).cast(pl.Decimal(10, 2)),
            "price": rng.normal(size=ROWS),
            "price32": pl.Series(rng.normal(size=ROWS), dtype=pl.Float32),
            "flag": rng.random(ROWS) < 0.5,
            "weight": pl.Series(rng.random(ROWS), dtype=pl.Float32),
            "tags": tags,
            "clicked": click,
            "bought": click & (rng.random(ROWS) < 0.4),
        }
    ).with_columns(
        pl.when(pl.Series(rng.random(ROWS) < 0.1)).then(None).otherwise(pl.col(n))
        .alias(n)
        for n in ("small", "whole", "vip", "on", "price", "clock", "price32")
    )  # fmt: skip


def flat(log: pl.DataFrame) -> pl.DataFrame:
    return log.with_columns(pl.col("tags").list.join("|"))


def write_csv(log: pl.DataFrame, place: Path) -> Path:
    flat(log).write_csv(place / "log.csv")
    return place / "log.csv"


def write_pandas_csv(log: pl.DataFrame, place: Path) -> Path:
    """The forms that pandas writes: True, 1e+16, a space between date and time."""
    rows = flat(log).with_columns(
        pl.col("vip", "flag", "clicked", "bought").replace_strict(
            {True: "True", False: "False"}, return_dtype=pl.String
        ),
        pl.col("at", "stamp").dt.strftime("%Y-%m-%d %H:%M:%S"),
        pl.col("zoned").dt.strftime("%Y-%m-%d %H:%M:%S%:z"),
        pl.col("clock").dt.strftime("%H:%M:%S"),
    )
    rows.write_csv(place / "log.csv", quote_style="non_numeric")
    return place / "log.csv"


def write_parquet(log: pl.DataFrame, place: Path) -> Path:
    log.write_parquet(place / "log.parquet")
    return place / "log.parquet"


def write_parts(log: pl.DataFrame, place: Path) -> Path:
    """As Dask names them, with the marks and checksums that Spark leaves."""
    folder = place / "log[1]"
    folder.mkdir()
    for k in range(12):
        part = log[k * ROWS // 12 : (k + 1) * ROWS // 12]
        part.write_parquet(folder / f"part.{k}.parquet")
        (folder / f".part.{k}.parquet.crc").write_bytes(b"crc")
    (folder / "_SUCCESS").touch()
    return folder


def prepare(place: Path, source: Path, **changes: Any) -> Prepared:
    schema = place / "schema.yaml"
    schema.write_text(yaml.safe_dump(SCHEMA | changes))
    prepare_table(source, place / "out", schema=schema)
    return Prepared(place / "out")


def contents(folder: Path) -> dict[str, bytes]:
    found = {path.name: path.read_bytes() for path in folder.iterdir()}
    manifest = json.loads(found.pop("manifest.json"))
    del manifest["sources"]
    return found | {"manifest": json.dumps(manifest).encode()}


def made(log: pl.DataFrame, place: Path, write: Callable[..., Path]) -> Prepared:
    place.mkdir()
    return prepare(place, write(log, place))


@pytest.mark.parametrize("write", [write_csv, write_pandas_csv, write_parts])
def test_every_format_gives_the_same_bytes(
    log: pl.DataFrame, tmp_path: Path, write: Callable[..., Path]
) -> None:
    parquet = made(log, tmp_path / "parquet", write_parquet)
    other = made(log, tmp_path / "other", write)
    assert contents(other.folder) == contents(parquet.folder)
    assert set(parquet.manifest.spec.kinds) == {*KINDS, "flag", "tags"}
    # A part of the rows is encoded as the whole was, from both files.
    few = log[7:9]
    frames = []
    for name, writer in {"a": write_parquet, "b": write_csv}.items():
        (tmp_path / name).mkdir()
        with open_table(writer(few, tmp_path / name)) as table:
            rows = other.encoder.transform(table.frame, with_labels=False)
            frames.append(rows.collect())
    assert frames[0].equals(frames[1])
    found = frames[0].select(pl.col("code", "at", "zoned").max()).row(0)
    assert max(found) < 9


def test_a_column_of_both_forms_is_reported(log: pl.DataFrame, tmp_path: Path) -> None:
    mixed = flat(log).with_columns(
        user=pl.when(pl.col("price") > 0)
        .then(pl.format("{}.0", "user"))
        .otherwise(pl.col("user").cast(pl.String))
    )
    mixed.write_csv(tmp_path / "log.csv")
    with pytest.warns(DataWarning, match="'user' holds .* 7 and 7.0; they are read as"):
        prepared = prepare(tmp_path, tmp_path / "log.csv")
    groups = [set(prepared.load(s).group.tolist()) for s in ("train", "valid", "test")]
    assert sum(map(len, groups)) == log["user"].n_unique()


def test_lists_are_pooled_and_cut(log: pl.DataFrame, tmp_path: Path) -> None:
    source = write_parquet(log, tmp_path)
    lists = {"tags": {"max_values": 2, "pool": "sum"}}
    prepared = prepare(tmp_path, source, multi_valued=lists)
    (field,) = prepared.schema.multi_valued
    assert (field.name, field.size, field.width, field.pool) == ("tags", 3, 2, "sum")
    beyond = int((log["tags"].list.len() == 3).sum())
    counted = prepared.manifest.options["counted"]
    assert counted == {"values_beyond_max_values_of_tags": beyond}
    stored = pl.concat(
        pl.read_parquet(prepared.folder / f"{name}-00000.parquet")
        for name in ("train", "valid", "test")
    )
    lengths = log["tags"].list.len().clip(0, 2)
    assert sorted(stored["tags"].list.len()) == sorted(lengths)
    assert set(stored["tags"].explode().drop_nulls()) <= {0, 1, field.rare}
    rows = prepared.load("train")
    assert len(rows) == prepared.manifest.splits["train"].rows


def test_vocabularies_by_column(log: pl.DataFrame, tmp_path: Path) -> None:
    prepared = made(log, tmp_path / "out", write_csv)
    sizes = {field.name: field.size for field in prepared.schema.categorical}
    assert sizes["word"] == 7
    values = pl.read_parquet(prepared.folder / "vocabulary.parquet")
    assert "word" not in set(values["field"])
    stored = pl.read_parquet(prepared.folder / "train-00000.parquet")
    assert set(stored["word"]) <= set(range(8))
    assert stored["word"].n_unique() > 3


PARTS = {
    "a/part-0.csv": b"x\n1\n",
    "a/data.json": b"{}",
}


@pytest.mark.parametrize("name", PARTS)
def test_a_folder_of_other_files_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / name).write_bytes(PARTS[name])
    with (
        pytest.raises(UserError, match="is no part of a Parquet table"),
        open_table(tmp_path / "a"),
    ):
        pass


def test_parts_name_their_rows_and_columns(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    for k, day in enumerate(("2022-05-03", "2022-05-04")):
        (folder / f"day={day}").mkdir(parents=True)
        part = pl.DataFrame({"x": [k, None]})
        part.write_parquet(folder / f"day={day}" / "part-0.parquet")
    with open_table(folder, time="day") as table:
        rows = table.frame.collect().rows()
        day = date(2022, 5, 3)
        assert rows == [
            *((0, day), (None, day)),
            *((1, day + timedelta(1)), (None, day + timedelta(1))),
        ]
        assert table(4) == f"{folder / 'day=2022-05-04' / 'part-0.parquet'}, row 2"
    pl.DataFrame({"x": ["a"]}).write_parquet(folder / "day=2022-05-04" / "z.parquet")
    with (
        pytest.raises(UserError, match=r"z\.parquet: column 'x' is String, but Int64"),
        open_table(folder),
    ):
        pass
    (tmp_path / "empty").mkdir()
    with (
        pytest.raises(UserError, match=r"a folder without \.parquet files"),
        open_table(tmp_path / "empty"),
    ):
        pass


def test_prepared_rows_are_no_raw_rows(log: pl.DataFrame, tmp_path: Path) -> None:
    prepared = made(log, tmp_path / "a", write_parquet)
    shard = (prepared.folder / "train-00000.parquet").read_bytes()
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "x.parquet").write_bytes(shard)
    for source in (tmp_path / "parts", tmp_path / "parts" / "x.parquet"):
        with (
            pytest.raises(UserError, match="rows that prepare has encoded"),
            open_table(source),
        ):
            pass


def test_another_separator_is_guessed(log: pl.DataFrame, tmp_path: Path) -> None:
    for name, separator in {"a": ",", "b": ";", "c": "\t"}.items():
        path = tmp_path / f"{name}.csv"
        flat(log).write_csv(path, separator=separator)
    frames = []
    for name in "abc":
        with open_table(tmp_path / f"{name}.csv") as table:
            frames.append(table.frame.collect())
    assert frames[0].equals(frames[1])
    assert frames[0].equals(frames[2])


def test_an_empty_group_names_its_line(log: pl.DataFrame, tmp_path: Path) -> None:
    user = pl.col("user").cast(pl.String)
    rows = flat(log).with_row_index("row").with_columns(
        user=pl.when(pl.col("row") == 44).then(None).otherwise(user)
    )  # fmt: skip
    rows.with_columns(part=pl.lit("train")).write_csv(tmp_path / "log.csv")
    split = {"by": "column", "column": "part"}
    with pytest.raises(UserError, match=r"log\.csv, line 46: column 'user' is empty"):
        prepare(tmp_path, tmp_path / "log.csv", split=split)


def test_times_with_a_zone_are_split_by_dates(
    log: pl.DataFrame, tmp_path: Path
) -> None:
    split = {"by": "time", "train_until": date(2022, 5, 2)}
    split["valid_until"] = date(2022, 5, 3)
    folders = []
    for name, write in {"a": write_parquet, "b": write_csv}.items():
        place = tmp_path / name
        place.mkdir()
        source = write(log, place)
        changes = {"time": "zoned", "categorical": ["code", "word"], "split": split}
        folders.append(prepare(place, source, **changes).folder)
    assert contents(folders[0]) == contents(folders[1])
