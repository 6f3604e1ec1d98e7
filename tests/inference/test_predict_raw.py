"""`predict` on the raw files of each dataset equals `predict` on prepared rows."""

from pathlib import Path

import polars as pl
import pytest
import yaml

from experiments.bench.raw.make_raw import main as make_raw
from pwiser_jax.cli import main
from pwiser_jax.data.aliccp.prepare import prepare_aliccp
from pwiser_jax.data.datasets.aliexpress import (
    ITEM_COLUMNS,
    LABELS,
    LEVEL,
    RAW_NAMES,
    USER_COLUMNS,
    prepare_aliexpress,
)
from pwiser_jax.data.datasets.kuairand import prepare_kuairand
from pwiser_jax.errors import UserError
from pwiser_jax.inference.predict import predict
from tests.inference.small import SCHEMA, rows, train


def of_split(run: Path, folder: Path, split: str) -> pl.DataFrame:
    files = sorted(folder.glob(f"{split}-*.parquet"))
    return pl.concat([predict(run, file) for file in files])


def test_the_raw_files_of_kuairand(real_rows: Path, tmp_path: Path) -> None:
    source, data = real_rows / "kuairand_pure", tmp_path / "data"
    prepare_kuairand(source, data, train_until="2022-05-01", valid_until="2022-05-03")
    run = train(data, tmp_path / "run")
    raw = predict(run, source, keep=["day", "video_id"])
    day = pl.col("day").cast(pl.String)
    parts = {
        "train": day <= "2022-05-01",
        "valid": day.is_between(pl.lit("2022-05-02"), pl.lit("2022-05-03")),
        "test": day > "2022-05-03",
    }
    for split, part in parts.items():
        predictions = raw.filter(part).drop("day", "video_id")
        assert predictions.equals(of_split(run, data, split))
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "a.csv").write_text("user_id\n1\n")
    with pytest.raises(UserError, match=r"no file log_standard_4_22_to_5_08_pure\.csv"):
        predict(run, tmp_path / "empty")


def mtreclib(raw: Path, folder: Path) -> Path:
    """The publisher's files as MTReclib's script joins them."""
    folder.mkdir()
    for split in ("train", "test"):
        users, items = (
            pl.read_csv(raw / f"nl_{what}_{split}.csv", has_header=False)
            for what in ("user", "item")
        )
        users.columns, items.columns = list(USER_COLUMNS), list(ITEM_COLUMNS)
        level = pl.col(LEVEL)
        items.join(
            users, left_on="item_1", right_on="user_1", maintain_order="left"
        ).select(
            pl.col("item_1").alias("search_id"),
            *(pl.col(name).alias(column) for name, column in RAW_NAMES.items()),
            (level >= 1).cast(pl.Int8).alias(LABELS["click"]),
            (level == 2).cast(pl.Int8).alias(LABELS["conversion"]),
        ).write_csv(folder / f"{split}.csv")
    return folder


def test_the_raw_files_of_aliexpress(tmp_path: Path) -> None:
    source, data = tmp_path / "raw", tmp_path / "data"
    assert make_raw(["aliexpress", "--rows=15000", f"--output={source}"]) == 0
    prepare_aliexpress(source, data, valid_fraction=0.3)
    run = train(data, tmp_path / "run")
    test = of_split(run, data, "test")
    raw = predict(run, source, keep=["search"])
    assert raw.height == sum(
        len((source / f"nl_item_{half}.csv").read_bytes().splitlines())
        for half in ("train", "test")
    )
    assert raw.drop("search")[-test.height :].equals(test)
    joined = mtreclib(source, tmp_path / "joined")
    assert predict(run, joined).equals(raw.drop("search"))
    assert predict(run, joined / "test.csv").equals(test)  # as a table
    for name in ("nl_user_train.csv", "nl_item_train.csv"):
        (source / name).unlink()
    assert predict(run, source).equals(test)
    # Rows of a search without a user stay in their places.
    users = source / "nl_user_test.csv"
    lines = users.read_text().splitlines(keepends=True)
    users.write_text("".join(lines[1:]))
    lost = predict(run, source, keep=["search"])
    there = lost["search"] != int(lines[0].partition(",")[0])
    assert 0 < (~there).sum() < test.height / 100
    assert lost.filter(there).drop("search").equals(test.filter(there))


def test_the_raw_files_of_aliccp(tmp_path: Path) -> None:
    source, data = tmp_path / "raw", tmp_path / "data"
    options = ["--rows=9000", "--lines=300", "--test-rows=3000"]
    assert make_raw(["aliccp", f"--output={source}", *options]) == 0
    prepare_aliccp(
        source,
        data,
        fields=23,
        min_count=2,
        max_values=5,
        log_counts=True,
        valid_fraction=0.3,
        on_bad_label="nest",
    )
    run = train(data, tmp_path / "run")
    test = of_split(run, data, "test")
    raw = predict(run, source, keep=["sample_id"])
    assert raw.height == 12_000
    lines = (source / "sample_skeleton_test.csv").read_bytes().splitlines()
    numbers = [int(line.partition(b",")[0]) for line in lines]
    assert raw["sample_id"][9_000:].to_list() == numbers
    assert raw.drop("sample_id")[9_000:].equals(test)
    for path in source.glob("*_train.csv"):
        path.unlink()
    assert predict(run, source).equals(test)
    skeleton = source / "sample_skeleton_test.csv"
    with pytest.raises(UserError, match="rows of aliccp are no table"):
        predict(run, skeleton)
    with pytest.raises(UserError, match="rows of aliccp are no table"):
        predict(run, pl.DataFrame({"101": [1]}))
    common = source / "common_features_test.csv"
    common.write_bytes(common.read_bytes().partition(b"\n")[2])
    with pytest.raises(UserError, match=r"common_features_test\.csv lacks"):
        predict(run, source)


def test_own_tables_with_lists_weights_and_parts(tmp_path: Path) -> None:
    frame = rows().with_columns(
        pl.Series("tags", [[f"t{k % 7}", f"t{k % 5}"][: k % 3] for k in range(600)]),
        pl.Series("importance", [1.0 + k % 2 for k in range(600)]),
    )
    source, data = tmp_path / "rows.parquet", tmp_path / "data"
    frame.write_parquet(source)
    schema = SCHEMA | {"multi_valued": ["tags"], "weight": "importance"}
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(schema))
    command = ["prepare", "table", f"--source={source}", f"--output={data}"]
    assert main([*command, f"--schema={tmp_path / 'schema.yaml'}"]) == 0
    run = train(data, tmp_path / "run")
    expected = predict(run, data)
    features = frame.select("user", "item", "price", "tags")
    assert predict(run, features).equals(expected)
    parts = tmp_path / "parts"
    for at in range(12):
        place = parts / f"day={at // 6}"
        place.mkdir(parents=True, exist_ok=True)
        features[50 * at : 50 * at + 50].write_parquet(place / f"part-{at}.parquet")
    (parts / "_SUCCESS").touch()
    predictions = predict(run, parts, keep=["day"])
    assert predictions["day"].to_list() == ["0"] * 300 + ["1"] * 300
    assert predictions.drop("day").equals(expected)
    output = f"--output={parts / 'p.parquet'}"
    assert main(["predict", f"--run={run}", f"--input={parts}", output]) == 2
