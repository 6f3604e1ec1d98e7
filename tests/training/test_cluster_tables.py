"""Tables that are prepared on a Ray cluster equal those of one process."""

from pathlib import Path

import polars as pl
import pytest
import yaml

from pwiser_jax.cli import main
from tests.inference import small
from tests.training.clusters import add_node, run, started

# Ray's own warnings, in the process that starts the cluster.
pytestmark = pytest.mark.filterwarnings("ignore")


def command(folder: Path, source: str, name: str, *options: str) -> list[str]:
    schema, output = folder / "schema.yaml", folder / name
    words = [f"--source={folder / source}", f"--schema={schema}", f"--output={output}"]
    return ["prepare", "table", *words, *options]


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_cluster_needs_a_folder_of_parts(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path, "rows.csv", "out", "--cluster=nowhere")) == 2
    assert "expected auto, local or the HOST:PORT" in capsys.readouterr().err


@pytest.mark.long
def test_two_nodes_write_the_bytes_of_one_process(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    (tmp_path / "schema.yaml").write_text(yaml.safe_dump(small.SCHEMA))
    small.rows(300).write_csv(tmp_path / "rows.csv")
    for at in range(3):
        small.rows(300, seed=at).write_parquet(parts / f"part-{at}.parquet")
    with started() as cluster:
        add_node(cluster)
        address = f"--cluster={cluster.address}"
        assert main(command(tmp_path, "parts", "one")) == 0
        code, said = run(command(tmp_path, "parts", "two", address), tmp_path)
        assert code == 0, said
        assert contents(tmp_path / "two") == contents(tmp_path / "one")

        code, said = run(command(tmp_path, "rows.csv", "no", address), tmp_path)
        assert code == 2
        assert "rows.csv: --cluster needs a folder of .parquet files" in said
        bad = small.rows(300).with_columns(clicked=pl.lit(7, pl.Int64))
        bad.write_parquet(parts / "part-1.parquet")
        code, said = run(command(tmp_path, "parts", "no", address), tmp_path)
        assert code == 2
        assert f"{parts / 'part-1.parquet'}, row 1: column 'clicked' holds 7" in said
        assert said.count("\n") == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        *("one", "parts", "printed.txt", "rows.csv", "schema.yaml", "two")
    ]
