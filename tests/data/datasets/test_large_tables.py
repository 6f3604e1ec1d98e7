"""Large tables: a budget of vocabularies, and commands that are killed."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from pwiser_jax.atomic import resumable_folder
from pwiser_jax.cli import main
from pwiser_jax.data.datasets import table_parts
from pwiser_jax.data.prepared import encoder, vocabulary
from pwiser_jax.data.prepared.folder import Prepared
from tests.inference import small

KILL = """
import os, signal, sys
from pathlib import Path
from pwiser_jax.cli import main
left = [int(sys.argv[1])]
def killing(call):
    def called(*arguments):
        left[0] -= 1
        if not left[0]:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*arguments)
    return called
Path.replace, Path.rename = killing(Path.replace), killing(Path.rename)
main(sys.argv[2:])
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Rows in three parts, of which each split has some."""
    parts = tmp_path / "parts"
    parts.mkdir()
    for at in range(3):
        small.rows(300, seed=at).write_parquet(parts / f"part-{at}.parquet")
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(small.SCHEMA))
    return tmp_path


def command(folder: Path, name: str, *options: str) -> list[str]:
    source, schema = folder / "parts", folder / "schema.yaml"
    words = [f"--source={source}", f"--schema={schema}", f"--output={folder / name}"]
    return ["prepare", "table", *words, *options]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


# The names given to files, in order: the plan, a note for each of three parts, the
# encoder, a shard for each split, and then the files of the prepared folder.
@pytest.mark.parametrize(("at", "staged", "fitted"), [(3, 1, 0), (5, 3, 0), (7, 3, 1)])
def test_a_killed_command_goes_on_with_what_is_missing(
    folder: Path, at: int, staged: int, fitted: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(command(folder, "unbroken")) == 0
    words = command(folder, "out")
    killed = subprocess.run([sys.executable, "-c", KILL, str(at), *words])
    assert killed.returncode == -signal.SIGKILL
    unfinished = folder / ".out.unfinished"
    assert len(list(unfinished.glob("part-*.json"))) == staged
    assert (unfinished / "fitted").is_dir() == fitted
    checked, fits = [], []
    check, fit = table_parts.check_labels, encoder.Encoder.fit
    monkeypatch.setattr(
        table_parts, "check_labels", lambda *a: checked.append(0) or check(*a)
    )
    monkeypatch.setattr(encoder.Encoder, "fit", lambda *a: fits.append(0) or fit(*a))
    assert main(words) == 0
    assert len(checked) == 3 - staged
    assert len(fits) == 1 - fitted
    assert contents(folder / "out") == contents(folder / "unbroken")
    assert not unfinished.exists()


def test_what_another_command_left_is_not_used(folder: Path) -> None:
    assert main(command(folder, "unbroken")) == 0
    unfinished = folder / ".out.unfinished"
    (unfinished / "shards").mkdir(parents=True)
    (unfinished / "shards" / "train-00000.parquet").write_bytes(b"old")
    (unfinished / "part-00000.json").write_text("{}")
    (unfinished / "plan.json").write_text("another")
    assert main(command(folder, "out")) == 0
    assert contents(folder / "out") == contents(folder / "unbroken")


def test_two_commands_with_one_output(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with resumable_folder(folder / "out", "plan"):
        assert main(command(folder, "out")) == 2
    assert f"is preparing {folder / 'out'} there" in capsys.readouterr().err


def test_a_vocabulary_beyond_the_budget_is_hashed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A MiB holds some 7,500 values: not 18,000 users, but 20 items."""
    (folder / "parts" / "part-2.parquet").unlink()
    for at in range(2):
        frame = small.rows(9_000, seed=at)
        users = pl.Series("user", np.arange(9_000) + 9_000 * at)
        frame.with_columns(users).write_parquet(folder / f"parts/part-{at}.parquet")
    assert main(command(folder, "exact")) == 0
    assert "hashed" not in Prepared(folder / "exact").manifest.options
    capsys.readouterr()
    assert main(command(folder, "out", "--vocabulary-mib=1")) == 0
    said = capsys.readouterr().out
    prepared = Prepared(folder / "out")
    ids = prepared.manifest.spec.buckets["user"]
    assert "item" not in prepared.manifest.spec.buckets
    assert ids == prepared.schema.categorical[0].size == 8192
    sizes = prepared.manifest.options["hashed"]["user"]
    hashed = vocabulary.Hashed(**sizes)
    train = 2 * 3 * 9_000 // 5
    assert hashed.values == pytest.approx(train, rel=0.05)
    assert f"user: about {hashed.values:,} values are hashed into 8,192 ids" in said
    assert f"about {hashed.shared:,} values share their id" in said
    used = pl.read_parquet(folder / "out" / "train-00000.parquet")["user"]
    sharing = used.value_counts().filter(pl.col("count") > 1)["count"].sum()
    assert hashed.shared == pytest.approx(sharing, rel=0.05)
    exact = pl.read_parquet(folder / "exact" / "train-00000.parquet").drop("user")
    found = pl.read_parquet(folder / "out" / "train-00000.parquet").drop("user")
    assert found.equals(exact)


def test_counts_in_pieces_are_those_of_all_rows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(vocabulary, "CHUNK", 7)
    texts = pl.Series("a", np.random.default_rng(0).integers(30, size=200)).cast(
        pl.String
    )
    frame = pl.LazyFrame({"a": texts, "b": ["x"] * 200})
    columns = {name: pl.col(name) for name in ("a", "b")}
    counts = texts.value_counts()
    for least in (1, 7):
        values, hashed = vocabulary.fit_vocabularies(
            frame, columns, {"a": least, "b": 1}
        )
        often = counts.filter(pl.col("count") >= least)["a"].cast(pl.Int64).sort()
        ordered, kept = values["a"]
        assert ordered[:kept].cast(pl.Int64).to_list() == often.to_list()
        assert not hashed
        assert values["b"][0].to_list() == ["x"]


COUNTED = """
import polars as pl
from experiments.lib.measure import peak_bytes, reset_peak
from pwiser_jax.data.prepared.vocabulary import fit_vocabularies
frame = pl.LazyFrame().select(user=pl.int_range(2_000_000))
columns = {"user": pl.col("user").cast(pl.String)}
fit_vocabularies(frame.head(10_000), columns, {"user": 1})
before = reset_peak()
fit_vocabularies(frame, columns, {"user": 1})
print(peak_bytes() - before)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the peak is read from /proc")
def test_values_take_no_more_memory_than_the_budget_counts_for_them() -> None:
    run = [sys.executable, "-c", COUNTED]
    done = subprocess.run(run, capture_output=True, text=True, check=True)
    assert int(done.stdout) < 2_000_000 * (vocabulary.PER_VALUE + len("1234567"))


@pytest.mark.long
def test_a_field_that_is_hashed_extends_and_predicts(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = small.rows(9_000).with_columns(user=pl.Series(np.arange(9_000)) * 10**12)
    for path in (folder / "parts").iterdir():
        path.unlink()
    # 5,400 users with long names in train: beyond a MiB.
    named = pl.format("user of a shop with a very long name {}" + 90 * "-", "user")
    rows.with_columns(user=named).write_parquet(folder / "parts/day1.parquet")
    assert main(command(folder, "day1", "--vocabulary-mib=1")) == 0
    small.train(folder / "day1", folder / "run")
    newer = rows.with_columns(user=named, price=pl.col("price") + 2)
    newer.write_parquet(folder / "parts/day1.parquet")
    capsys.readouterr()
    assert main(command(folder, "day2", f"--extend={folder / 'run'}")) == 0
    said = capsys.readouterr().out
    assert "user: about" in said
    scale = Prepared(folder / "day1").schema.numerical[0].scale
    assert f"in its standard deviations: price {2 / scale:+.2f}" in said
    days = [Prepared(folder / day) for day in ("day1", "day2")]
    assert days[0].schema.categorical == days[1].schema.categorical
    assert days[0].schema.numerical == days[1].schema.numerical
    warm = f"--warm-start={folder / 'run'}"
    small.train(folder / "day2", folder / "run2", warm)
    source = folder / "parts" / "day1.parquet"
    words = f"--run={folder / 'run2'}", f"--input={source}"
    assert main(["predict", *words, f"--output={folder / 'scores.csv'}"]) == 0
