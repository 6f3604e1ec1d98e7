"""Own tables: the same rows from every format; errors name file and line."""

import gzip
import os
from datetime import date, datetime
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pwiser_jax.data.datasets.table import open_table, prepare_table
from pwiser_jax.data.datasets.table_schema import KEYS, read_table_schema
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.raw.flat import ListColumn
from pwiser_jax.errors import UserError

COLUMNS = """\
categorical: [user, kind]
numerical: [price]
labels: {click: clicked, conversion: bought}
group: session
time: day
"""
BY_GROUP = "split: {by: group, valid: 0.2, test: 0.1}\n"
ROWS = 2000


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    click = rng.random(ROWS) < 0.3
    return pl.DataFrame(
        {
            "user": [f"u{k}" for k in rng.integers(40, size=ROWS)],
            "kind": rng.integers(5, size=ROWS),
            "price": rng.normal(size=ROWS).round(3),
            "clicked": click.astype(int),
            "bought": (click & (rng.random(ROWS) < 0.3)).astype(int),
            "session": rng.integers(300, size=ROWS),
            "day": [date(2022, 5, 1 + k * 20 // ROWS) for k in range(ROWS)],
            "part": rng.choice(["train", "valid", "test"], size=ROWS),
        }
    )


def lines_of(log: pl.DataFrame) -> list[str]:
    return log.write_csv().splitlines()


def prepare(
    folder: Path, source: Path, schema: str = COLUMNS + BY_GROUP, **options: Any
) -> Prepared:
    path = folder / "schema.yaml"
    path.write_text(schema)
    prepare_table(source, folder / "out", schema=path, **options)
    return Prepared(folder / "out")


def refused(folder: Path, lines: list[str], schema: str = COLUMNS + BY_GROUP) -> str:
    """What is said about a file of these lines; nothing may be left behind."""
    source = folder / "log.csv"
    source.write_bytes("\n".join(lines).encode() + b"\n")
    with pytest.raises(UserError) as error:
        prepare(folder, source, schema)
    assert sorted(os.listdir(folder)) == ["log.csv", "schema.yaml"]
    said = str(error.value)
    assert "\n" not in said
    return said.replace(f"{folder}/", "")


def test_errors_after_the_split_name_the_line_of_the_file(
    log: pl.DataFrame, tmp_path: Path
) -> None:
    small = log.with_columns(price=pl.col("price") * 1e-4)
    lines = lines_of(small)
    at = log["part"].to_list().index("test", 50)
    cells = lines[at + 1].split(",")
    cells[log.columns.index("price")] = "3e38"
    lines[at + 1] = ",".join(cells)
    split = "split: {by: column, column: part}\n"
    said = refused(tmp_path, lines, COLUMNS + split)
    assert said.startswith(f"log.csv, line {at + 2}: column 'price' holds '3e38'")


def test_the_schema_of_the_docs_has_every_key_and_is_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "table.md").read_text()
    schema = tmp_path / "schema.yaml"
    schema.write_text(page.partition("```yaml\n")[2].partition("```")[0])
    read = read_table_schema(schema)
    assert tuple(read.raw) == KEYS
    assert read.multi_valued["brands"] == ListColumn(max_values=10, pool="sum")
    assert (read.min_counts, read.buckets) == ({"item_id": 50}, {"user_id": 1_000_000})


def same_rows(found: Prepared, expected: Prepared) -> None:
    for split in ("train", "valid", "test"):
        ours, theirs = found.load(split), expected.load(split)
        for name in ("categorical", "numerical", "labels", "time"):
            np.testing.assert_array_equal(getattr(ours, name), getattr(theirs, name))


def test_every_text_format_gives_the_same_rows(log: pl.DataFrame, tmp_path: Path):
    text = log.write_csv()
    files = {
        "a.csv": text.encode(),
        "b.CSV": ("\ufeff" + text.replace("\n", "\r\n")).encode(),
        "c.csv.gz": gzip.compress(text.encode()),
        "d.tsv": log.write_csv(separator="\t").encode(),
        "e.tsv.gz": gzip.compress(log.write_csv(separator="\t").encode()),
        "f.csv": log.write_csv(quote_style="always").encode(),
    }
    found = []
    for name, content in files.items():
        folder = tmp_path / name.split(".")[0]
        folder.mkdir()
        (folder / name).write_bytes(content)
        found.append(prepare(folder, folder / name))
        same_rows(found[-1], found[0])
    sources = found[2].manifest.sources
    assert [source.name for source in sources] == ["c.csv.gz", "schema.yaml"]


def test_parquet_gives_the_rows_of_csv(log: pl.DataFrame, tmp_path: Path):
    # By time, as a group that is text and one that is a number have two hashes.
    schema = (
        COLUMNS + "split: {by: time, train_until: 2022-05-15, valid_until: 2022-05-18}"
    )
    for name in ("csv", "parquet"):
        (tmp_path / name).mkdir()
    log.write_csv(tmp_path / "csv" / "log.csv")
    log.write_parquet(tmp_path / "parquet" / "log.parquet")
    csv = prepare(tmp_path / "csv", tmp_path / "csv" / "log.csv", schema)
    parquet = prepare(
        tmp_path / "parquet", tmp_path / "parquet" / "log.parquet", schema
    )
    same_rows(csv, parquet)
    days = [row.time for row in map(csv.load, ("train", "valid", "test"))]
    first = date(2022, 5, 1).toordinal() - date(1970, 1, 1).toordinal()
    assert [(int(day.min()), int(day.max())) for day in days if day is not None] == [
        (first, first + 14),
        (first + 15, first + 17),
        (first + 18, first + 19),
    ]


def test_groups_are_kept_whole(log: pl.DataFrame, tmp_path: Path):
    log.write_csv(tmp_path / "log.csv")
    prepared = prepare(tmp_path, tmp_path / "log.csv")
    groups = [set(prepared.load(s).group.tolist()) for s in ("train", "valid", "test")]
    assert sum(map(len, groups)) == len(set.union(*groups)) == log["session"].n_unique()


def test_a_column_can_name_the_splits(log: pl.DataFrame, tmp_path: Path):
    log.write_csv(tmp_path / "log.csv")
    schema = COLUMNS + "split: {by: column, column: part}\nstandardize: false\n"
    prepared = prepare(tmp_path, tmp_path / "log.csv", schema)
    for name in ("train", "valid", "test"):
        part = log.filter(pl.col("part") == name)
        found = prepared.load(name).numerical[:, 0]
        np.testing.assert_array_equal(found, part["price"].cast(pl.Float32))


def test_bad_labels_can_be_dropped_or_nested(log: pl.DataFrame, tmp_path: Path):
    lines = lines_of(log)
    lines[7] = "u1,1,0.5,0,1,s1,2022-05-01,train"
    said = refused(tmp_path, lines)
    assert said.startswith("log.csv, line 8: 'bought' is 1 but 'clicked' is 0, ")
    for mode, word, rows in (("drop", "dropped", ROWS - 1), ("nest", "nested", ROWS)):
        prepared = prepare(
            tmp_path, tmp_path / "log.csv", on_bad_label=mode, overwrite=True
        )
        splits = prepared.manifest.splits.values()
        assert sum(split.rows for split in splits) == rows
        assert prepared.manifest.dropped == {f"conversion_without_click_{word}": 1}
        assert prepared.manifest.options["on_bad_label"] == mode


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "u1,1,x,0,0,s,2022-05-01,t",
            "line 8: column 'price' holds 'x'; expected a fin",
        ),
        ("u1,1,inf,0,0,s,2022-05-01,t", "line 8: column 'price' holds 'inf'; expected"),
        (
            "u1,1,1,2,0,s,2022-05-01,t",
            "line 8: column 'clicked' holds '2'; expected 0 or",
        ),
        (
            "u1,1,1,,0,s,2022-05-01,t",
            "line 8: column 'clicked' is empty; expected 0 or 1",
        ),
        (
            "u1,1,1,0,0,,2022-05-01,t",
            "line 8: column 'session' is empty; expected a group",
        ),
        (
            "u1,1,1,0,0,s,01.05.2022,t",
            "line 8: column 'day' holds '01.05.2022'; expected ",
        ),
        (
            "u1,1,1,0,0,s,,t",
            "line 8: column 'day' is empty; expected a date such as 2022",
        ),
        ("u1,1,1,0,0,s,2022-05-01", "line 8: expected 8 columns, found 7"),
        ("u1,1,1,0,0,s,2022-05-01,t,", "line 8: expected 8 columns, found 9"),
        ("", "line 8: expected 8 columns, found 0"),
        ('u"1,1,1,0,0,s,2022-05-01,t', "line 8: a quotation mark is not closed"),
        # A value with a line end within: the bad value stands where its row begins.
        ('"u\n1",1,x,0,0,s,2022-05-01,t', "line 8: column 'price' holds 'x'"),
        (
            '"u\n1",1,1,0,0,s,2022-05-01,t\nu,1,x,0,0,s,2022-05-01,t',
            "line 10: column 'pri",
        ),
    ],
)
def test_a_bad_line_is_named(log: pl.DataFrame, tmp_path: Path, line: str, said: str):
    lines = lines_of(log)
    lines[7] = line
    assert refused(tmp_path, lines).startswith(f"log.csv, {said}")


def test_other_files_are_refused(log: pl.DataFrame, tmp_path: Path):
    lines = lines_of(log)
    assert "no rows" in refused(tmp_path, lines[:1])
    assert "empty" in refused(tmp_path, [])
    twice = refused(tmp_path, [lines[0].replace("price", "user"), *lines[1:]])
    assert twice == "log.csv, line 1: two columns are called 'user'"
    (tmp_path / "log.csv").unlink()
    packed = gzip.compress(log.write_csv().encode())
    for name, content, message in (
        ("none.csv", None, "none.csv: no such file"),
        ("log.xlsx", b"", "log.xlsx: expected a .csv, .tsv, .csv.gz"),
        ("log.csv.gz", packed[: len(packed) // 2], "log.csv.gz: broken or cut short"),
        ("log.parquet", b"PAR1 no more", "log.parquet cannot be read: "),
        ("bytes.csv", log.write_csv().encode() + b"\xff\n", "bytes.csv, line 2002: "),
    ):
        if content is not None:
            (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=message) as error:
            prepare(tmp_path, tmp_path / name)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "out").exists()


def test_an_occupied_folder_is_refused_before_anything_is_read(tmp_path: Path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").touch()
    with pytest.raises(UserError, match="out holds other data"):
        prepare(tmp_path, tmp_path / "nowhere.csv")


SPLIT = f"{COLUMNS}split: "


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ("a: [\nb: }", "schema.yaml, line 2: not YAML "),
        ("just text", "schema.yaml: expected keys with values"),
        ("", "schema.yaml: expected keys with values"),
        (COLUMNS, "schema.yaml has no key 'split'"),
        (BY_GROUP, "schema.yaml has no key 'labels'"),
        (
            COLUMNS.replace("numerical", "numeric") + BY_GROUP,
            "schema.yaml has an unknown key 'numeric'; did you mean 'numerical'?",
        ),
        (
            COLUMNS + BY_GROUP + "multi_valued: [tags]",
            "log.csv has no column 'tags'",
        ),
        (COLUMNS + BY_GROUP + "min_count: 0", "schema.yaml: min_count is 0; expected"),
        (
            COLUMNS + BY_GROUP + "standardize: 2",
            "schema.yaml: standardize is 2; expected",
        ),
        (
            COLUMNS.replace("[price]", "price") + BY_GROUP,
            "schema.yaml: numerical: expected a list of columns",
        ),
        (
            COLUMNS.replace("[price]", "[no]") + BY_GROUP,
            "schema.yaml: numerical: false is no column's name; expected text",
        ),
        (
            COLUMNS.replace("bought", "clicked") + BY_GROUP,
            "schema.yaml: labels needs a column of its own for each label",
        ),
        (
            SPLIT + "{by: row}",
            "schema.yaml: split: by is 'row'; expected group, time, ",
        ),
        (SPLIT + "{by: [group]}", "schema.yaml: split: by is ['group']; expected"),
        (COLUMNS + BY_GROUP + "time: on", "schema.yaml, line 7: not YAML (the key"),
        (
            COLUMNS.replace("conversion: bought", "click: bought") + BY_GROUP,
            "schema.yaml, line 3: not YAML (the key click is there twice)",
        ),
        (SPLIT + "{valid: 0.1}", "schema.yaml: split: by is null; expected group"),
        (SPLIT + "{by: group}", "schema.yaml: split by group needs the key 'valid'"),
        (
            SPLIT + "{by: group, valid: 0.1, train_until: 3}",
            "schema.yaml: split by group has an unknown key 'train_until'; known",
        ),
        (SPLIT + "{by: group, valid: x}", "schema.yaml: split: valid cannot be 'x'"),
        (SPLIT + "{by: group, valid: 0.5, test: 0.5}", "valid and test take 1 of the "),
        (
            COLUMNS.replace("group: session", "") + BY_GROUP,
            "schema.yaml: split by group: the key 'group' must name a column",
        ),
        (
            SPLIT + "{by: time, train_until: 3, valid_until: 4}",
            "train_until is 3; column 'day' needs a date",
        ),
        (
            SPLIT + "{by: column, column: user}",
            "log.csv, line 2: column 'user' holds 'u",
        ),
        (
            COLUMNS.replace("[price]", "[prize]") + BY_GROUP,
            "log.csv has no column 'prize'; did you mean 'price'?",
        ),
        (
            COLUMNS.replace("[price]", "[clicked]") + BY_GROUP,
            "column 'clicked' is a label: it cannot be a feature",
        ),
        (
            COLUMNS.replace("group: session", "group: clicked") + BY_GROUP,
            "column 'clicked' is a label: it cannot be the group column; name another",
        ),
        (
            COLUMNS.replace("click: clicked", "user: clicked") + BY_GROUP,
            "column 'user' has the name of a prepared column",
        ),
    ],
)
def test_a_bad_schema(log: pl.DataFrame, tmp_path: Path, schema: str, said: str):
    assert refused(tmp_path, lines_of(log), schema).startswith(said)


def test_a_copy_of_a_label_is_refused(log: pl.DataFrame, tmp_path: Path):
    copied = log.with_columns(price=1 - pl.col("bought"))
    assert refused(tmp_path, lines_of(copied)) == (
        "column 'price' is a copy of the label 'conversion' in train: "
        "it cannot be a feature"
    )


def test_a_missing_schema(log: pl.DataFrame, tmp_path: Path):
    with pytest.raises(
        UserError, match=r"s\.yaml: no such file; expected the YAML file of --schema"
    ):
        read_table_schema(tmp_path / "s.yaml")


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["20220503", " -4"], [20220503, -4]),
        (["2022-05-03", "1969-12-31"], [date(2022, 5, 3), date(1969, 12, 31)]),
        (
            ["2022-05-03 14:30:00", "2022-05-03T00:00:01.5"],
            [datetime(2022, 5, 3, 14, 30), datetime(2022, 5, 3, 0, 0, 1, 500_000)],
        ),
    ],
)
def test_times_in_text(tmp_path: Path, texts: list[str], expected: list[Any]):
    path = tmp_path / "log.csv"
    path.write_text("\n".join(["t,x", *(f"{text},1" for text in texts)]))
    with open_table(path, time="t") as table:
        found = table.frame.collect()
    assert found["t"].to_list() == expected
    assert found["x"].to_list() == ["1", "1"]
