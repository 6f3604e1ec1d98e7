"""A run on data with multi-valued and shared fields, and with extra conversions."""

import dataclasses
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.errors import UserError
from pwiser_jax.inference.evaluate import evaluate_run
from pwiser_jax.inference.load import load_best
from pwiser_jax.inference.predict import predict_file
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.logits import predict_logits
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from tests.data.multi_valued import write_folder
from tests.training.helpers import small_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp("prepared") / "folder")


def config(data: Path):
    return small_config(
        data,
        data={"batch_size": 64, "eval_batch_size": 128, "min_conversions": 8},
        model={"name": "shared_bottom"},
    )


@pytest.fixture(scope="module")
def run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    result = train(config(data), folder, Silent())
    assert result.steps == 2 * -(-700 // 56)
    return folder


def test_an_interrupted_run_ends_as_an_uninterrupted_one(
    data: Path, run: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again"
    with pytest.raises(Interrupted):
        train(config(data), again, Silent(), stop_after=17)
    train(config(data), again, Silent())
    assert read_metrics(again) == read_metrics(run)


def test_evaluation_and_prediction_see_the_same_rows(
    data: Path, run: Path, tmp_path: Path
) -> None:
    report = evaluate_run(run, "valid").to_dict()
    prepared = Prepared(data)
    rows = prepared.load("valid")
    assert report["rows"] == len(rows) == 300
    state = load_best(run, config(data), prepared.schema)
    logits = predict_logits(config(data), prepared.schema, state, rows)
    found = []
    for name in prepared.manifest.splits["valid"].files:
        count = predict_file(run, data / name, tmp_path / name).rows
        found.append(pl.read_parquet(tmp_path / name))
        assert found[-1].height == count
    both = pl.concat(found)
    for name in ("ctr", "ctcvr"):
        expected = 1 / (1 + np.exp(-logits[name].astype(np.float64)))
        np.testing.assert_allclose(both[name], expected, rtol=1e-6)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "valid-00000.parquet",
        "valid-00001.parquet",
    ]


def test_raw_rows_with_such_fields_are_refused(
    data: Path, run: Path, tmp_path: Path
) -> None:
    raw = tmp_path / "raw.parquet"
    pl.read_parquet(data / "valid-00000.parquet").write_parquet(raw)
    with pytest.raises(UserError, match="rows of by hand are no table; give"):
        predict_file(run, raw, tmp_path / "out.parquet")


def test_more_conversions_than_a_batch_holds_are_refused(data: Path) -> None:
    good = config(data).data
    with pytest.raises(ValueError, match=r"min_conversions must be below .* \(64\)"):
        dataclasses.replace(
            config(data), data=dataclasses.replace(good, min_conversions=64)
        )
