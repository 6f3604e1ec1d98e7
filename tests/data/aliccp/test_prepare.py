"""Ali-CCP: every value equals that of a slow reader, for all archive types."""

import gzip
import os
import re
import resource
import signal
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pwiser_jax.data.aliccp import prepare as aliccp
from pwiser_jax.data.aliccp.prepare import prepare_aliccp
from pwiser_jax.data.aliccp.raw import RawReader
from pwiser_jax.data.prepared.folder import DataWarning, Prepared
from pwiser_jax.data.prepared.manifest import read_manifest
from pwiser_jax.data.raw.archives import Source
from pwiser_jax.errors import UserError
from tests.data.aliccp.slow_reader import (
    HALVES,
    ITEM,
    ITEM_LISTS,
    USER,
    USER_LISTS,
    Files,
    expected,
    raw_files,
    write_files,
)

OPTIONS: dict[str, Any] = {
    "fields": 23,
    "min_count": 4,
    "max_values": 5,
    "valid_fraction": 0.2,
    "log_counts": True,
}


@pytest.fixture(scope="module")
def files() -> Files:
    return raw_files()


@pytest.fixture(scope="module")
def prepared(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aliccp")
    prepare_aliccp(write_files(folder / "raw", files), folder / "out", **OPTIONS)
    return folder / "out"


def tables(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.parquet")}


def joined(folder: Path, split: str) -> pl.DataFrame:
    manifest = read_manifest(folder)
    rows = pl.concat(pl.read_parquet(folder / f) for f in manifest.splits[split].files)
    assert manifest.common is not None
    common = pl.read_parquet(folder / manifest.common.file)
    assert common.height == manifest.common.rows
    return pl.concat([rows, common[rows["common"]]], how="horizontal")


def test_every_value_is_that_of_a_slow_reader(files: Files, prepared: Path) -> None:
    truth = expected(files, min_count=4, width=5, valid_fraction=0.2)
    manifest = read_manifest(prepared)
    schema = manifest.schema
    sizes = {f.name: f.size for f in (*schema.categorical, *schema.multi_valued)}
    assert sizes == {k: len(kept) for k, (kept, _) in truth["vocabularies"].items()}
    assert schema.common == (*USER, *USER_LISTS)
    assert {f.width for f in schema.multi_valued} == {5}
    assert [f.name for f in schema.categorical] == USER + ITEM
    assert manifest.splits["valid"].rows > 50
    for split, rows in truth["splits"].items():
        table = joined(prepared, split)
        assert table.height == len(rows) == manifest.splits[split].rows
        for name in (*USER, *ITEM, "click", "conversion", "group"):
            assert table[name].to_list() == [row[name] for row in rows], name
        for name in USER_LISTS + ITEM_LISTS:
            pairs = zip(table[name], table[f"{name}:weight"], strict=True)
            for (ids, weights), row in zip(pairs, rows, strict=True):
                assert list(zip(ids, weights, strict=True)) == row[name]
        for field in schema.numerical:
            raw = np.array([row[field.name] for row in rows])
            stored = table[field.name].to_numpy() * field.scale + field.mean
            np.testing.assert_allclose(stored, raw, atol=1e-5)
    train = np.array([row["D508"] for row in truth["splits"]["train"]])
    field = schema.numerical[0]
    assert (field.mean, field.scale) == pytest.approx((train.mean(), train.std()))


def test_dtypes_order_and_vocabulary(files: Files, prepared: Path) -> None:
    truth = expected(files, min_count=4, width=5, valid_fraction=0.2)
    rows = pl.read_parquet(prepared / "train-00000.parquet")
    assert {rows[name].dtype for name in (*ITEM, "common")} == {pl.Int32()}
    assert rows["D508"].dtype == pl.Float32
    assert rows["210"].dtype == pl.List(pl.Int32)
    assert rows["210:weight"].dtype == pl.List(pl.Float32)
    table = pl.read_parquet(prepared / "vocabulary.parquet")
    for name, (kept, rare) in truth["vocabularies"].items():
        own = table.filter(pl.col("field") == name)
        assert own["value"].to_list() == [str(x) for x in kept + rare]
        assert own["id"].to_list() == [*range(len(kept)), *[len(kept) + 2] * len(rare)]


def test_the_cache_and_batches_take_the_folder(prepared: Path) -> None:
    rows = Prepared(prepared).load("train")
    assert rows.categorical.shape == (len(rows), 18)
    assert rows.numerical.shape == (len(rows), 4)


def test_18_fields_are_the_single_valued_ones_of_23(
    files: Files, prepared: Path, tmp_path: Path
) -> None:
    source = write_files(tmp_path / "raw", files)
    options = OPTIONS | {"fields": 18, "log_counts": False}
    manifest = prepare_aliccp(source, tmp_path / "out", **options)
    assert not manifest.schema.multi_valued
    assert not manifest.schema.numerical
    few, all_ = joined(tmp_path / "out", "test"), joined(prepared, "test")
    assert few.equals(all_.select(few.columns))


def test_users_are_whole_and_counts_are_in_the_manifest(
    files: Files, prepared: Path
) -> None:
    manifest = read_manifest(prepared)
    train, valid = (set(joined(prepared, split)["group"]) for split in SPLIT)
    assert not train & valid
    lines = files["sample_skeleton_train.csv"] + files["sample_skeleton_test.csv"]
    counted = manifest.options["counted"]
    assert counted["features_of_unknown_fields"] == sum(
        line.count("999\x02") + line.count("a_long_name") for line in lines
    )
    repeated = sum(max(line.count("205\x02") - 1, 0) for line in lines)
    assert counted["values_of_single_fields_beyond_one"] == repeated > 0
    assert manifest.dropped == {}


SPLIT = ("train", "valid")


def test_every_way_of_packing_gives_the_same_bytes(
    files: Files, prepared: Path, tmp_path: Path
) -> None:
    source = write_files(tmp_path / "raw", files)
    paths = sorted(source.iterdir())
    for name in ("gzipped", "published", "windows", "zipped"):
        (tmp_path / name).mkdir()
    for path in paths:
        text = path.read_bytes()
        (tmp_path / "gzipped" / f"{path.name}.gz").write_bytes(gzip.compress(text))
        windows = text.replace(b"\n", b"\r\n")
        (tmp_path / "windows" / path.name).write_bytes(windows)
    for half in HALVES:
        name = tmp_path / "published" / f"sample_{half}.tar.gz"
        with tarfile.open(name, "w:gz") as archive:
            # The rows come first there: the user's lines are read in a second pass.
            for kind in ("sample_skeleton", "common_features"):
                archive.add(source / f"{kind}_{half}.csv", f"x/{kind}_{half}.csv")
    with tarfile.open(tmp_path / "all.tar", "w") as archive:
        for path in paths:
            archive.add(path, path.name)
    with zipfile.ZipFile(tmp_path / "zipped" / "aliccp.zip", "w") as archive:
        for path in paths:
            archive.write(path, f"inside/{path.name}")
    places = ["raw", "gzipped", "published", "windows", "zipped", "all.tar"]
    for place in places:
        output = tmp_path / "out"
        prepare_aliccp(tmp_path / place, output, overwrite=True, **OPTIONS)
        assert tables(output) == tables(prepared), place


def test_small_blocks_and_shards_change_nothing(
    files: Files, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Blocks are cut anywhere: only the number of files depends on the shard."""
    blocks = aliccp_blocks()
    monkeypatch.setattr("pwiser_jax.data.aliccp.raw.blocks", lambda s: blocks(s, 777))
    monkeypatch.setattr(aliccp, "SHARD", 100)
    source = write_files(tmp_path / "raw", files)
    manifest = prepare_aliccp(source, tmp_path / "out", **OPTIONS)
    assert [pl.read_parquet(tmp_path / "out" / f).height for f in shards(manifest)][
        :-1
    ] == [100] * (len(shards(manifest)) - 1)
    for split in ("train", "valid", "test"):
        assert joined(tmp_path / "out", split).equals(joined(prepared, split))
    common = (tmp_path / "out" / "common.parquet").read_bytes()
    assert common == (prepared / "common.parquet").read_bytes()


def aliccp_blocks() -> Any:
    from pwiser_jax.data.aliccp.lines import blocks

    return blocks


def shards(manifest: Any) -> tuple[str, ...]:
    return manifest.splits["train"].files


def edit(files: Files, name: str, line: int, change: Any) -> Files:
    lines = list(files[name])
    lines[line - 1] = change(lines[line - 1])
    return files | {name: lines}


def test_conversions_without_a_click(files: Files, tmp_path: Path) -> None:
    name = "sample_skeleton_train.csv"
    at = [k for k, x in enumerate(files[name], 1) if x.split(",")[1:3] == ["0", "0"]]
    bad = files
    for line in at[:3]:
        bad = edit(bad, name, line, lambda x: x.replace(",0,0,", ",0,1,", 1))
    source = write_files(tmp_path / "raw", bad)
    with pytest.raises(UserError, match=rf"{name}, line {at[0]}: 'conversion' is 1"):
        prepare_aliccp(source, tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]
    before = prepare_aliccp(write_files(tmp_path / "good", files), tmp_path / "before")
    conversions = before.splits["train"].labels["conversion"]
    conversions += before.splits["valid"].labels["conversion"]
    for choice, lost in {"drop": 3, "nest": 0, "fill": 0}.items():
        manifest = prepare_aliccp(source, tmp_path / choice, on_bad_label=choice)
        fixed = {"drop": "dropped", "nest": "nested", "fill": "filled"}[choice]
        assert manifest.dropped == {f"conversion_without_click_{fixed}": 3}
        halves = manifest.splits["train"], manifest.splits["valid"]
        kept = 3 if choice == "fill" else 0
        assert sum(half.labels["conversion"] for half in halves) == conversions + kept
        rows = manifest.splits["train"].rows + manifest.splits["valid"].rows
        assert rows == len(files[name]) - lost


def test_rows_that_repeat_are_counted_and_kept(files: Files, tmp_path: Path) -> None:
    name = "sample_skeleton_train.csv"
    twice = files | {name: [*files[name], *(f"9{x}" for x in files[name][:7])]}
    source = write_files(tmp_path / "raw", twice)
    manifest = prepare_aliccp(source, tmp_path / "out", fields=23)
    before = prepare_aliccp(write_files(tmp_path / "b", files), tmp_path / "c")
    repeats = manifest.options["counted"]["rows_that_repeat_another"]
    assert repeats - before.options["counted"].get("rows_that_repeat_another", 0) == 7
    rows = sum(manifest.splits[split].rows for split in SPLIT)
    assert rows == len(files[name]) + 7


def test_rows_without_a_common_line(files: Files, tmp_path: Path) -> None:
    name = "sample_skeleton_test.csv"

    def lose(line: str) -> str:
        sample, click, bought, _, *rest = line.split(",")
        return ",".join([sample, click, bought, "0" * 16, *rest])

    few = files
    for line in range(3, 12):
        few = edit(few, name, line, lose)
    source = write_files(tmp_path / "raw", few)
    manifest = prepare_aliccp(source, tmp_path / "out")
    assert manifest.dropped == {"rows_without_common_line_dropped": 9}
    assert manifest.splits["test"].rows == len(files[name]) - 9
    write_files(source, edit(few, name, 12, lose))
    with pytest.raises(UserError, match=r"10 of 900 rows .* in line 3; up to 1%"):
        prepare_aliccp(source, tmp_path / "out", overwrite=True)
    assert read_manifest(tmp_path / "out") == manifest
    manifest = prepare_aliccp(source, tmp_path / "more", max_unmatched=0.05)
    assert manifest.dropped == {"rows_without_common_line_dropped": 10}


def test_common_lines_that_repeat(files: Files, tmp_path: Path) -> None:
    name = "common_features_train.csv"
    key, count, features = files[name][4].split(",")
    turned = "\x01".join(reversed(features.split("\x01")))
    same = files | {name: [*files[name], f"{key},{count},{turned}"]}
    source = write_files(tmp_path / "raw", same)
    manifest = prepare_aliccp(source, tmp_path / "out", fields=23)
    assert manifest.options["counted"]["common_lines_that_repeat"] == 1
    other = files | {name: [*files[name], f"{key},1,101\x0277\x031.0"]}
    write_files(source, other)
    with pytest.raises(UserError, match=rf"{name}, line 61: .* is that of line 5"):
        prepare_aliccp(source, tmp_path / "new")


def test_differences_to_the_published_counts_are_told(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "sample_skeleton_train.csv"
    clicks = sum(line.split(",")[1] == "1" for line in files[name])
    own = {"rows": 900, "clicks": clicks + 1, "common_lines": 60}
    monkeypatch.setitem(aliccp.PUBLISHED, "train", own)
    source = write_files(tmp_path / "raw", files)
    told = f"train has {clicks} clicks, the published file {clicks + 1}"
    with pytest.warns(DataWarning, match=told):
        prepare_aliccp(source, tmp_path / "out")


def test_strict_refuses_unknown_fields(files: Files, tmp_path: Path) -> None:
    source = write_files(tmp_path / "raw", files)
    told = r"sample_skeleton_train\.csv, line 10: field '(999|a_long_name)' is not"
    with pytest.raises(UserError, match=told):
        prepare_aliccp(source, tmp_path / "out", strict=True)


SKELETON, COMMON = "sample_skeleton_test.csv", "common_features_train.csv"
BAD = {
    f"{SKELETON}, line 2: expected 6 columns, found 5": (SKELETON, 2, b",", b"."),
    f"{SKELETON}, line 5: column 'click' holds": (SKELETON, 5, b"5,", b"5,3"),
    f"{SKELETON}, line 7: this is not UTF-8": (SKELETON, 7, b"\x02", b"\xff\x02"),
    f"{SKELETON}, line 9: expected": (SKELETON, 9, b"\x01", b""),
    f"{COMMON}, line 3: expected": (COMMON, 3, b"\x01", b"\x01\x01"),
    f"{COMMON}, line 3: feature": (COMMON, 3, b"\x03", b"99999999999\x03"),
    f"{COMMON}, line 6: column 'common_feature_index' holds": (COMMON, 6, b",", b"g,"),
    f"{COMMON}, line 8: feature": (COMMON, 8, b"\x031.0", b"\x03-1.0"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_lines_are_refused_with_file_and_line(
    files: Files, tmp_path: Path, message: str
) -> None:
    name, line, old, new = BAD[message]
    source = write_files(tmp_path / "raw", files)
    lines = (source / name).read_bytes().split(b"\n")
    assert old in lines[line - 1]
    lines[line - 1] = lines[line - 1].replace(old, new, 1)
    (source / name).write_bytes(b"\n".join(lines))
    with pytest.raises(UserError) as error:
        prepare_aliccp(source, tmp_path / "out", fields=23)
    assert str(error.value).startswith(f"{source}/{message}")
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_ids_end_with_int32(files: Files, tmp_path: Path) -> None:
    source = write_files(tmp_path / "raw", files)
    lines = (source / COMMON).read_bytes().split(b"\n")
    at = next(k for k, line in enumerate(lines) if b"121\x02" in line)
    for number in (2**31 - 1, 2**31, 10**10):
        triple = f"121\x02{number}\x03".encode()
        lines[at] = re.sub(rb"121\x02\d+\x03", triple, lines[at])
        (source / COMMON).write_bytes(b"\n".join(lines))
        if number < 2**31:
            prepare_aliccp(source, tmp_path / "out")
            continue
        told = f"{source}/{COMMON}, line {at + 1}: feature "
        expected = f"the id of field 121 is '{number}'; expected a whole number up to"
        with pytest.raises(UserError, match=re.escape(told) + ".*" + expected):
            prepare_aliccp(source, tmp_path / "out", overwrite=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_files_that_are_cut_empty_or_missing(files: Files, tmp_path: Path) -> None:
    source = write_files(tmp_path / "raw", files)
    path = source / SKELETON
    good = path.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(UserError, match=match):
            prepare_aliccp(source, tmp_path / "out")
        assert [found.name for found in tmp_path.iterdir()] == ["raw"]

    path.write_bytes(good[:-1])
    refused(rf"{SKELETON}, line 900: the line has no end")
    path.write_bytes(good[: len(good) // 2])
    refused(rf"{SKELETON}, line \d+: ")
    path.write_bytes(b"")
    refused(rf"{SKELETON}: the file is empty")
    path.unlink()
    refused(rf"no file {SKELETON}")
    packed = source / f"{SKELETON}.gz"
    packed.write_bytes(gzip.compress(good)[:-900])
    refused(r"test\.csv\.gz: broken or cut short")
    packed.unlink()
    tar = source / "sample_test.tar.gz"
    with tarfile.open(tar, "w:gz") as archive:
        archive.add(source / COMMON, "other.csv")
    refused(rf"no file {SKELETON} in it")
    path.write_bytes(good)
    with tarfile.open(tar, "w:gz") as archive:
        archive.add(path, path.name)
    path.unlink()
    tar.write_bytes(tar.read_bytes()[:-2_000])
    refused(r"sample_test\.tar\.gz/sample_skeleton_test\.csv: broken or cut short")


def test_a_file_without_line_ends_is_refused_by_byte(
    files: Files, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pwiser_jax.data.aliccp.lines.LONGEST_LINE", 1_000)
    blocks = aliccp_blocks()
    monkeypatch.setattr("pwiser_jax.data.aliccp.raw.blocks", lambda s: blocks(s, 600))
    source = write_files(tmp_path / "raw", files)
    lines = (source / SKELETON).read_bytes().split(b"\n")
    joined_lines = b"\n".join(lines[:5]) + b"\n" + b" ".join(lines[5:])
    (source / SKELETON).write_bytes(joined_lines)
    write_files(source, {COMMON: [x[:1] for x in files[COMMON]]})
    offset = len(b"\n".join(lines[:5])) + 1
    reader_text = rf"no line ends in the [\d,]+ bytes after byte {offset:,};"
    with pytest.raises(UserError, match=reader_text):
        for _ in blocks(Source(source / SKELETON), 600):
            pass
    (source / SKELETON).write_bytes(b" ".join(lines[:3]))
    size = len(b" ".join(lines[:3]))
    with pytest.raises(UserError, match=rf"no line ends in the {size} bytes after by"):
        next(blocks(Source(source / SKELETON), 600))


@pytest.mark.parametrize("limit", [3_000, 40_000])
def test_a_full_disk_is_refused_and_leaves_nothing(
    files: Files, tmp_path: Path, limit: int
) -> None:
    """A limit on the size of files stands for the full disk."""
    source = write_files(tmp_path / "raw", files)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(UserError, match="File too large"):
            prepare_aliccp(source, tmp_path / "out", fields=23, max_values=50)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["raw"]


def test_a_killed_run_is_never_taken_for_a_finished_one(
    files: Files, prepared: Path, tmp_path: Path
) -> None:
    source = write_files(tmp_path / "raw", files)
    code = (
        "import sys, time\nfrom pathlib import Path\n"
        "from pwiser_jax.data.aliccp import prepare as aliccp\n"
        "aliccp.AliccpEncoder.write_common = lambda *a: (print('here', flush=True),"
        " time.sleep(60))\n"
        f"aliccp.prepare_aliccp(Path({str(source)!r}), Path(sys.argv[1]), fields=23)"
    )
    output = tmp_path / "out"
    command = [sys.executable, "-c", code, str(output)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        os.kill(process.pid, signal.SIGKILL)
    assert not output.exists()
    assert any(path.name.startswith(".out.partial") for path in tmp_path.iterdir())
    prepare_aliccp(source, output, **OPTIONS)
    assert tables(output) == tables(prepared)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "raw"]


def test_the_command_line(
    files: Files, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from pwiser_jax.cli import main

    source = write_files(tmp_path / "raw", files)
    command = ["prepare", "aliccp", f"--source={source}", f"--output={tmp_path / 'o'}"]
    assert main([*command, "--fields", "23", "--max-values", "3"]) == 0
    printed = capsys.readouterr().out
    assert "test: 900 rows" in printed
    assert "values of single fields beyond one: " in printed
    assert main([*command, "--overwrite", "--strict"]) == 2
    assert "is not known" in capsys.readouterr().err
    assert main([*command, "--overwrite", "--min-count", "0"]) == 2


def test_real_common_lines(real_rows: Path) -> None:
    """The two lines that are at hand, every value of them."""
    path = real_rows / "aliccp" / "common_features_2_lines.csv"
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool:
        reader = RawReader(pool, with_lists=True, width=3_000, strict=True)
        ((first, block),) = reader.common(Source(path))
    assert first == 1
    lines = [line.split(",") for line in path.read_text().splitlines()]
    assert [f"{index:016x}" for index in block.index] == [line[0] for line in lines]
    for at, (_, count, text) in enumerate(lines):
        triples = [triple.split("\x02") for triple in text.split("\x01")]
        own: dict[str, list[tuple[int, float]]] = {}
        for name, rest in triples:
            id_, value = rest.split("\x03")
            own.setdefault(name, []).append((int(id_), float(np.float32(value))))
        assert sum(map(len, own.values())) == int(count)
        assert {name for name in own if len(own[name]) > 1} == set(USER_LISTS)
        single = block.features.single[:, at].tolist()
        assert single == [own[name][0][0] for name in USER]
        for name in USER_LISTS:
            found = block.features.lists[name][at : at + 1]
            pairs = list(zip(found.ids.tolist(), found.weights.tolist(), strict=True))
            assert pairs == sorted(own[name], key=lambda x: (-x[1], x[0]))
