"""`predict`: its inputs, outputs and errors."""

import shutil
from pathlib import Path

import polars as pl
import pytest

from pwiser_jax.cli import main
from pwiser_jax.inference.predict import predict
from tests.inference.small import prepare, rows, train

TASKS = ["ctr", "ctcvr", "cvr"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("predict")
    train(prepare(folder, rows()), folder / "run")
    return folder


@pytest.fixture(scope="module")
def expected(home: Path) -> pl.DataFrame:
    return predict(home / "run", home / "rows.csv")


def command(home: Path, source: Path, output: Path, *more: str) -> list[str]:
    files = [f"--input={source}", f"--output={output}"]
    return ["predict", f"--run={home / 'run'}", *files, *more]


def test_the_end_of_the_output_name_is_its_format(
    home: Path, tmp_path: Path, expected: pl.DataFrame
) -> None:
    for name, read in {"p.csv": pl.read_csv, "p[1].parquet": pl.read_parquet}.items():
        assert main(command(home, home / "rows.csv", tmp_path / name)) == 0
        kwargs = {} if name.endswith("csv") else {"glob": False}
        written = read(tmp_path / name, **kwargs)
        assert written.columns == TASKS
        assert written.height == 600
        # CSV has the shortest text that is the same number.
        assert written.equals(expected)


def test_an_output_is_replaced_only_if_asked(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "p.csv"
    output.write_text("mine")
    assert main(command(home, home / "rows.csv", output)) == 2
    assert "p.csv exists; --overwrite replaces it" in capsys.readouterr().err
    assert output.read_text() == "mine"
    assert main(command(home, home / "rows.csv", output, "--overwrite")) == 0
    assert pl.read_csv(output).height == 600


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("p.txt", "must end in .csv or .parquet"),
        ("none/p.csv", "none: no such folder"),
        ("folder.csv", "folder.csv is a folder"),
    ],
)
def test_an_output_that_cannot_be_is_refused(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    words: str,
) -> None:
    (tmp_path / "folder.csv").mkdir()
    assert main(command(home, home / "rows.csv", tmp_path / name)) == 2
    assert words in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["folder.csv"]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_no_rows_give_an_output_without_rows(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], suffix: str
) -> None:
    source = tmp_path / f"none{suffix}"
    empty = rows().head(0).select("user", "item", "price")
    empty.write_csv(source) if suffix == ".csv" else empty.write_parquet(source)
    output = tmp_path / "p.parquet"
    assert main(command(home, source, output, "--keep=user")) == 0
    assert capsys.readouterr().out == f"0 rows to {output}\n"
    written = pl.read_parquet(output)
    assert (written.columns, written.height) == (["user", *TASKS], 0)


def test_columns_are_kept_and_unseen_values_are_counted(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, output = tmp_path / "new.csv", tmp_path / "p.csv"
    lines = ["note,item,price,user", "a,item 3,0.5,1", "b,never,0.5,1", "c,new,1,x"]
    source.write_text("\n".join(lines))
    assert main(command(home, source, output, "--keep", "note, item")) == 0
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "values that the run's training rows do not have: user 1, item 2",
        f"3 rows to {output}",
    ]
    written = pl.read_csv(output)
    assert written.columns == ["note", "item", *TASKS]
    assert written["note"].to_list() == ["a", "b", "c"]
    output.unlink()
    assert main(command(home, source, output, "--keep=item,note,item")) == 0
    assert pl.read_csv(output).columns == ["item", "note", *TASKS]
    output.unlink()
    assert main(command(home, source, output, "--keep=itme")) == 2
    assert "no column 'itme' to keep; did you mean 'item'?" in capsys.readouterr().err
    assert not output.exists()


def test_frames_folders_and_prepared_folders_are_read_in_order(
    home: Path, tmp_path: Path, expected: pl.DataFrame
) -> None:
    run, frame = home / "run", rows()
    assert predict(run, frame).equals(expected)
    parts = tmp_path / "parts[1]"
    parts.mkdir()
    frame[:100].write_csv(parts / "a.csv")
    frame[100:100].write_csv(parts / "b.csv")
    frame[100:].write_parquet(parts / "c.parquet")
    (parts / "notes.txt").write_text("no table")
    assert predict(run, parts, keep=["item"]).drop("item").equals(expected)
    # The splits are the rows in order here.
    whole = predict(run, home / "prepared", keep=["group"])
    assert whole.drop("group").equals(expected)
    shard = predict(run, home / "prepared" / "test-00000.parquet")
    assert shard.equals(expected[480:])


def test_a_damaged_shard_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "prepared"
    shutil.copytree(home / "prepared", folder)
    shard = folder / "test-00000.parquet"
    flipped = bytearray(shard.read_bytes())
    flipped[len(flipped) // 3] ^= 4
    shard.write_bytes(flipped)
    for source in (shard, folder):
        assert main(command(home, source, tmp_path / "p.csv")) == 2
        assert f"{shard} is damaged" in capsys.readouterr().err
    shard.unlink()
    assert main(command(home, folder, tmp_path / "p.csv")) == 2
    assert f"{shard} cannot be read: No such file" in capsys.readouterr().err


def test_a_shard_outside_of_its_folder_is_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "moved.parquet"
    shutil.copy(home / "prepared" / "test-00000.parquet", moved)
    assert main(command(home, moved, tmp_path / "p.csv")) == 2
    assert "rows that prepare has encoded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere", "no such file or folder"),
        ("empty", "holds no .csv"),
        ("text.txt", ".csv"),
        ("binary.parquet", "cannot be read"),
        ("no_item.csv", "item"),
    ],
)
def test_an_input_that_cannot_be_read_gets_one_sentence(
    home: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    words: str,
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("a")
    (tmp_path / "binary.parquet").write_bytes(b"PAR1")
    (tmp_path / "no_item.csv").write_text("user,price\n1,2\n")
    assert main(command(home, tmp_path / name, tmp_path / "p.csv")) == 2
    error = capsys.readouterr().err.strip()
    assert words in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "p.csv").exists()
