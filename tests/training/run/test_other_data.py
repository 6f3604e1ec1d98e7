"""Data that were prepared again under a run are refused, also at its end."""

from pathlib import Path
from typing import Any

import pytest

from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.errors import UserError
from pwiser_jax.inference.evaluate import evaluate_run
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.progress import Silent
from tests.training.helpers import small_config


class Meddling(Silent):
    """Prepares other data into the folder while a run trains on it."""

    def __init__(self, data: Path, **options: Any) -> None:
        self.data, self.options = data, options

    def epoch(self, *args: Any) -> None:
        prepare_synthetic(self.data, overwrite=True, **self.options)


def test_data_prepared_again_is_refused(tmp_path: Path):
    data, run = tmp_path / "data", tmp_path / "run"
    options = {"rows": 3_000, "click_rate": 0.3, "conversion_rate": 0.3}
    prepare_synthetic(data, seed=3, **options)
    config = small_config(data, model={"name": "shared_bottom"}, train={"epochs": 1})
    with pytest.raises(UserError, match=r"data (holds other rows|was prepared with)"):
        train(config, run, Meddling(data, seed=4, **options))
    assert not (run / "result.json").exists()

    prepare_synthetic(data, overwrite=True, seed=3, **options)
    train(config, run)
    evaluate_run(run, "test")
    # As many values of each field, but other ones.
    prepare_synthetic(data, overwrite=True, seed=4, **options)
    for given in ({}, {"data": data}):
        with pytest.raises(UserError, match="with other fields or vocabularies"):
            evaluate_run(run, "test", **given)
