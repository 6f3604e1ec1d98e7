"""`export`: the file is loaded with jax alone and predicts as `predict` does."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pwiser_jax.cli import main
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.inference.predict import predict
from tests.inference.small import prepare, rows, train

# jax.export writes and reads its files with it.
pytest.importorskip("flatbuffers")

SERVE = """
import sys
sys.modules["pwiser_jax"] = sys.modules["flax"] = sys.modules["polars"] = None
import numpy as np
from jax import export

exported = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
with np.load(sys.argv[2]) as inputs:
    inputs = dict(inputs)
for count in (len(inputs["categorical"]), 1):
    some = {name: values[:count] for name, values in inputs.items()}
    out = {name: np.asarray(p) for name, p in exported.call(some).items()}
    assert all(p.shape == (count,) for p in out.values())
    if count > 1:
        np.savez(sys.argv[3], **out)
"""


@pytest.mark.parametrize("space", ["ctcvr", "click", "product", "escm2_dr"])
def test_jax_alone_gets_the_numbers_of_predict(tmp_path: Path, space: str) -> None:
    data = prepare(tmp_path, rows())
    run = train(data, tmp_path / "run", f"--model.cvr_space={space}")
    output = tmp_path / "scorer.bin"
    command = ["export", f"--run={run}", f"--output={output}"]
    assert main(command) == 0
    assert main(command) == 2
    assert main([*command, "--overwrite"]) == 0
    inputs = Prepared(data).load("test").inputs
    np.savez(tmp_path / "in.npz", **inputs)
    paths = [str(tmp_path / name) for name in ("scorer.bin", "in.npz", "out.npz")]
    subprocess.run([sys.executable, "-c", SERVE, *paths], check=True, cwd=tmp_path)
    expected = predict(run, data / "test-00000.parquet")
    with np.load(tmp_path / "out.npz") as found:
        assert set(found) == set(expected.columns) == {"ctr", "ctcvr", "cvr"}
        for name in found:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    about = json.loads((tmp_path / "scorer.bin.json").read_text())
    assert about["outputs"].keys() == {"ctr", "ctcvr", "cvr"}
    names = [column["name"] for column in about["inputs"]["categorical"]["columns"]]
    assert names == ["user", "item"]
    assert about["inputs"]["numerical"]["shape"] == ["rows", 1]


def test_the_lines_of_the_docs_serve_a_run(tmp_path: Path) -> None:
    """docs/serving.md, without this package and Flax, on raw rows."""
    page = Path(__file__).parents[2] / "docs" / "serving.md"
    (lines,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)
    data = prepare(tmp_path, rows())
    run = train(data, tmp_path / "RUN")
    output = tmp_path / "scorer.bin"
    assert main(["export", f"--run={run}", f"--output={output}"]) == 0
    raw = rows(300, seed=1).with_columns(
        pl.when(pl.int_range(300) % 7 > 0).then("price"),
        pl.when(pl.int_range(300) % 5 > 0).then("user"),
        item=pl.when(pl.int_range(300) % 3 > 0).then("item").otherwise(pl.lit("new")),
    )
    raw.write_csv(tmp_path / "raw.csv")
    raw.write_parquet(tmp_path / "raw.parquet")
    blocked = "import sys\nsys.modules['pwiser_jax'] = sys.modules['flax'] = None\n"
    call = "out = score(polars.read_parquet('raw.parquet').to_dicts())\n"
    save = "np.savez('out.npz', **out)\n"
    subprocess.run(
        [sys.executable, "-c", blocked + lines + call + save], check=True, cwd=tmp_path
    )
    expected = predict(run, tmp_path / "raw.csv")
    with np.load(tmp_path / "out.npz") as found:
        for name in ("ctr", "ctcvr", "cvr"):
            np.testing.assert_allclose(found[name], expected[name], atol=1e-6)


def test_the_document_is_enough_to_encode_rows(tmp_path: Path) -> None:
    """Ids and scales by hand, from the JSON and the vocabulary, as a server would."""
    data = prepare(tmp_path, rows())
    run = train(data, tmp_path / "run")
    output = tmp_path / "scorer.bin"
    assert main(["export", f"--run={run}", f"--output={output}"]) == 0
    about = json.loads((tmp_path / "scorer.bin.json").read_text())
    vocabulary = pl.read_parquet(run / "data" / "vocabulary.parquet")
    raw = rows().filter(pl.col("part") == "test")
    loaded = Prepared(data).load("test").inputs
    for at, column in enumerate(about["inputs"]["categorical"]["columns"]):
        table = vocabulary.filter(pl.col("field") == column["name"])
        ids = dict(zip(table["value"], table["id"], strict=True))
        values = raw[column["name"]].cast(pl.String)
        own = [ids.get(value, column["unseen"]) for value in values]
        assert own == loaded["categorical"][:, at].tolist()
    price = about["inputs"]["numerical"]["columns"][0]
    scaled = (raw["price"].to_numpy() - price["mean"]) / price["scale"]
    np.testing.assert_allclose(scaled, loaded["numerical"][:, 0], rtol=1e-6, atol=1e-6)
