"""`inspect`: counts against counts row by row, pictures, and errors."""

import json
import math
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pwiser_jax.cli import main
from pwiser_jax.data.datasets.table import prepare_table
from pwiser_jax.data.prepared.manifest import read_manifest, write_manifest
from pwiser_jax.errors import UserError
from pwiser_jax.reports.inspection import measures as inspection
from pwiser_jax.reports.inspection.measures import Inspection, inspect_folder
from pwiser_jax.reports.inspection.show import bar, sparkline
from pwiser_jax.schema import MultiValuedField
from tests.data.multi_valued import SCHEMA, write_folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prepared") / "folder")


@pytest.fixture(scope="module")
def inspected(folder: Path) -> Inspection:
    # Chunks, batches and bins whose ends do not meet.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inspection, "CHUNK", 77)
        patch.setattr(inspection, "BIN_ROWS", 11)
        return inspect_folder(folder, 30)


def rows(folder: Path, split: str) -> list[dict]:
    """Rows as dicts, with the fields that they share."""
    frame = pl.read_parquet(sorted(folder.glob(f"{split}-*.parquet")))
    lines = pl.read_parquet(folder / "common.parquet").rows(named=True)
    return [row | lines[row["common"]] for row in frame.rows(named=True)]


@pytest.mark.parametrize("split", ["train", "valid", "test"])
def test_shares_of_every_field(folder: Path, inspected: Inspection, split: str):
    every = rows(folder, split)
    table = inspected.shares.filter(split=split)
    assert table["field"].to_list() == [field.name for field in SCHEMA.embedded]
    for field, shown in zip(SCHEMA.embedded, table.rows(named=True), strict=True):
        if isinstance(field, MultiValuedField):
            values = [value for row in every for value in row[field.name]]
            missing = sum(not row[field.name] for row in every)
            over = len(values)
        else:
            ids = [row[field.name] for row in every]
            values = [value for value in ids if value != field.missing]
            missing, over = ids.count(field.missing), len(every)
        assert shown["missing"] == pytest.approx(missing / len(every))
        assert shown["values"] == pytest.approx(len(values) / len(every))
        assert shown["unseen"] == pytest.approx(values.count(field.unseen) / over)
        assert shown["rare"] == pytest.approx(values.count(field.rare) / over)


def test_fields(inspected: Inspection):
    ids = inspected.fields.filter(pl.col("size").is_not_null())
    assert dict(ids.select("field", "size").rows()) == {
        field.name: field.size for field in SCHEMA.embedded
    }
    shared = inspected.fields.filter("shared")["field"].to_list()
    assert sorted(shared) == sorted(SCHEMA.common)


def test_conversions_in_batches_of_either_order(folder: Path, inspected: Inspection):
    converted = np.array([row["conversion"] for row in rows(folder, "train")])
    counts = converted[: 700 // 30 * 30].reshape(-1, 30).sum(1)
    batches = inspected.batches
    np.testing.assert_array_equal(
        batches.in_order, np.bincount(counts, minlength=len(batches.in_order))
    )
    assert batches.mean == pytest.approx(30 * converted.mean())
    assert batches.empty_in_order == pytest.approx(np.mean(counts == 0))
    total, positives = len(converted), int(converted.sum())
    for k in range(len(batches.shuffled) - 1):
        ways = math.comb(positives, k) * math.comb(total - positives, 30 - k)
        assert batches.shuffled[k] == pytest.approx(ways / math.comb(total, 30))
    assert batches.shuffled.sum() == pytest.approx(1)


def test_drift_along_the_file(folder: Path, inspected: Inspection):
    every = rows(folder, "train")
    ends = inspected.drift.ends
    assert (ends[0], ends[-1], len(ends) - 1) == (0, 700, 700 // 11)
    assert np.ptp(np.diff(ends)) <= 1
    for label, rates in inspected.drift.rates.items():
        for at, rate in enumerate(rates):
            part = [row[label] for row in every[ends[at] : ends[at + 1]]]
            assert rate == pytest.approx(np.mean(part))
        low, high = inspected.drift.band(label)
        assert low <= np.mean([row[label] for row in every]) <= high
    assert inspection.BINS == 100


def test_the_command_prints_tables_and_writes_pictures(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    arguments = ["inspect", str(folder), "--batch-size", "64"]
    assert main([*arguments, f"--output={tmp_path / 'out'}"]) == 0
    text = capsys.readouterr().out
    for word in ("train", "700", "CTCVR", "tags", "file order", "Drift"):
        assert word in text
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {
        f"{name}.png" for name in ("splits", "sizes", "shares", "conversions", "drift")
    }
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes().startswith(b"\x89PNG")

    (tmp_path / "out" / "drift.png").write_text("mine")
    command = [*arguments, f"--output={tmp_path / 'out'}"]
    assert main(command) == 2
    assert "splits.png exists; --overwrite replaces it" in capsys.readouterr().err
    assert (tmp_path / "out" / "drift.png").read_text() == "mine"
    assert main([*command, "--overwrite"]) == 0
    assert (tmp_path / "out" / "drift.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["{tmp}/none"], "no such folder"),
        (["{folder}", "--batch-size=0"], "--batch-size is 0"),
        (["{folder}", "--output={folder}/manifest.json"], "name another --output"),
        ([], "FOLDER"),
    ],
)
def test_a_mistake_gets_one_sentence(
    folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    words: str,
):
    given = [text.format(folder=folder, tmp=tmp_path) for text in arguments]
    try:
        code = main(["inspect", *given])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err.strip()
    assert code == 2
    assert words in error
    assert len(error.splitlines()) == 1


def test_damaged_rows_are_one_sentence(folder: Path, tmp_path: Path):
    broken = write_folder(tmp_path / "broken")
    shard = broken / "train-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-30])
    with pytest.raises(UserError, match="missing or damaged"):
        inspect_folder(broken, 64)
    pl.read_parquet(folder / "valid-00000.parquet").write_parquet(shard)
    pl.read_parquet(shard).head(3).write_parquet(shard)
    with pytest.raises(UserError, match="train has 447 rows, the manifest says 700"):
        inspect_folder(broken, 64)


def test_a_flipped_bit_is_named_by_its_file(tmp_path: Path):
    broken = write_folder(tmp_path / "broken")
    write_manifest(broken, read_manifest(broken))  # with the files' hashes
    shard = broken / "train-00001.parquet"
    flipped = bytearray(shard.read_bytes())
    flipped[len(flipped) // 3] ^= 4
    shard.write_bytes(flipped)
    with pytest.raises(UserError, match=r"train-00001\.parquet is damaged"):
        inspect_folder(broken, 64)
    shard.unlink()
    with pytest.raises(UserError, match=r"train-00001\.parquet cannot be read: No "):
        inspect_folder(broken, 64)


def test_bars_and_lines_of_the_terminal():
    assert bar(1.0, 4) == "████"
    assert bar(0.5, 4) == "██"
    assert bar(0.0, 4) == ""
    assert sparkline(np.array([0.0, 1.0, 2.0])) == "▁▅█"
    assert sparkline(np.zeros(3)) == "▁▁▁"
    assert len(sparkline(np.ones(500))) == 20


NAMES = ("price [eur]$", "tag[/b]$x_1$", "_under$")


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three labels, and names that rich or matplotlib would read as markup."""
    folder = tmp_path_factory.mktemp("odd")
    random = np.random.default_rng(0)
    click = random.random(3000) < 0.4
    cart = click & (random.random(3000) < 0.5)
    buy = cart & (random.random(3000) < 0.5)
    columns = {name: random.integers(0, 9, 3000) for name in NAMES}
    labels = {"click": click, "cart": cart, "buy [eur]$": buy}
    table = pl.DataFrame(columns | {k: v.astype(int) for k, v in labels.items()})
    table = table.with_columns(user=pl.Series(random.integers(0, 200, 3000)))
    table.write_csv(folder / "table.csv")
    schema = {
        "categorical": list(NAMES[1:]),
        "numerical": [NAMES[0]],
        "labels": {name: name for name in labels},
        "group": "user",
        "split": {"by": "group", "valid": 0.2, "test": 0.2},
    }
    (folder / "schema.yaml").write_text(json.dumps(schema))
    prepare_table(
        folder / "table.csv", folder / "prepared", schema=folder / "schema.yaml"
    )
    return folder / "prepared"


def test_labels_keep_the_order_of_the_ladder(
    odd: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert main(["inspect", str(odd), f"--output={tmp_path}"]) == 0
    lines = capsys.readouterr().out.splitlines()
    first = {line.split("  ")[0]: line.split()[-3:] for line in reversed(lines) if line}
    rows = pl.read_parquet(sorted(odd.glob("train-*.parquet")))
    click, cart = rows["click"].sum(), rows["cart"].sum()
    assert first["CART_GIVEN_CLICK"][0] == f"{cart / click:.3%}"
    assert not any("GIVEN_BUY" in line for line in lines)
    table = lines[: lines.index("")]
    shares = [text for line in table for text in line.split() if text.endswith("%")]
    assert len(shares) == 5 * 3
    assert all(float(text.rstrip("%")) <= 100 for text in shares)


@pytest.mark.filterwarnings("error")
def test_names_are_shown_as_they_are_in_80_columns(
    odd: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("COLUMNS", "80")
    assert main(["inspect", str(odd), f"--output={tmp_path}"]) == 0
    text = capsys.readouterr().out
    for name in ("buy [eur]$", "BUY [EUR]$_GIVEN_CART", *NAMES[1:]):
        assert name in text
    assert "…" not in text
    assert len(list(tmp_path.iterdir())) == 5
