"""The first schema of a table is one that `prepare table` reads."""

from datetime import date, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from pwiser_jax.cli import main
from pwiser_jax.data.datasets import schema_draft
from pwiser_jax.data.datasets.schema_draft import write_schema
from pwiser_jax.data.datasets.table import prepare_table
from pwiser_jax.errors import UserError

ROWS = 1500


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    rng = np.random.default_rng(0)
    click = (rng.random(ROWS) < 0.4).astype(int)
    return pl.DataFrame(
        {
            "session_id": rng.integers(200, size=ROWS),
            "item id": rng.integers(50, size=ROWS),
            "no": [f"n{k % 9}" for k in range(ROWS)],
            "price": rng.normal(size=ROWS).round(2),
            "views": rng.integers(100_000, size=ROWS),
            "tags": ["a|b" if k % 2 else "c" for k in range(ROWS)],
            "looks": ["a; b" if k % 3 else "c" for k in range(ROWS)],
            "is_click": click,
            "purchased": click * (rng.random(ROWS) < 0.4),
            "day": [date(2022, 5, 1) + timedelta(k % 9) for k in range(ROWS)],
            "weight": rng.random(ROWS),
            "trace: #1": [f"x{k}" for k in range(ROWS)],
            "same": ["v"] * ROWS,
        }
    )


@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_a_draft_can_be_used_as_it_is(
    log: pl.DataFrame, tmp_path: Path, name: str
) -> None:
    source, schema = tmp_path / name, tmp_path / "schema.yaml"
    log.write_csv(source) if name.endswith("csv") else log.write_parquet(source)
    write_schema(source, schema)
    text = schema.read_text()
    assert yaml.safe_load(text) == {
        "categorical": ["item id", "no"],
        "numerical": ["price", "views"],
        "multi_valued": {"tags": {"separator": "|"}, "looks": {"separator": ";"}},
        "labels": {"click": "is_click", "conversion": "purchased"},
        "group": "session_id",
        "time": "day",
        "weight": "weight",
        "split": {"by": "group", "valid": 0.1, "test": 0.1},
        "min_count": 5,
    }
    assert "# not used: trace: #1 (text, 1,500 distinct values: x0, x1, x2)" in text
    assert "# not used: same" in text
    manifest = prepare_table(source, tmp_path / "out", schema=schema)
    assert sum(split.rows for split in manifest.splits.values()) == ROWS
    with pytest.raises(UserError, match="exists already"):
        write_schema(source, schema)


def test_labels_that_are_not_found_are_left_to_the_user(tmp_path: Path) -> None:
    pl.DataFrame({"x": ["a", "b"], "y": [0.5, 1.5]}).write_csv(tmp_path / "a.csv")
    write_schema(tmp_path / "a.csv", tmp_path / "s.yaml")
    tree = yaml.safe_load((tmp_path / "s.yaml").read_text())
    assert tree["labels"] == {
        "click": "CLICK_COLUMN",
        "conversion": "CONVERSION_COLUMN",
    }


def test_the_command_writes_a_schema_that_prepare_reads(
    log: pl.DataFrame, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, schema = tmp_path / "log[1].csv", tmp_path / "schema.yaml"
    log.write_csv(source)
    write = ["schema", str(source), f"--output={schema}"]
    assert main(write) == 0
    assert "schema.yaml: check each line" in capsys.readouterr().out
    prepare = ["prepare", "table", f"--source={source}", f"--schema={schema}"]
    assert main([*prepare, f"--output={tmp_path / 'out'}"]) == 0
    capsys.readouterr()
    assert main(write) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["schema", str(tmp_path / "none.csv"), "--output=s.yaml"]) == 2
    assert "none.csv: no such file" in capsys.readouterr().err


def test_too_little_memory_is_said_in_one_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*paths: Path) -> None:
        raise MemoryError("Unable to allocate 728. TiB")

    monkeypatch.setattr(schema_draft, "write_schema", fail)
    assert main(["schema", "a.csv", "--output=b.yaml"]) == 2
    error = capsys.readouterr().err
    assert error == "pwiser: error: not enough memory: Unable to allocate 728. TiB\n"
