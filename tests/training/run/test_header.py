"""The lines about a run's sizes before the first step."""

from dataclasses import replace

import pytest

from pwiser_jax.config import (
    Config,
    DataConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
)
from pwiser_jax.data.prepared.manifest import Manifest, Split
from pwiser_jax.data.raw.flat import FlatSpec
from pwiser_jax.schema import CategoricalField, Schema
from pwiser_jax.training.run.header import cautions, header


def manifest(rows: int, conversions: int) -> Manifest:
    split = Split(
        ("train-00000.parquet",), rows, {"click": 10, "conversion": conversions}
    )
    schema = Schema((CategoricalField("user", 3),))
    splits = {"train": split, "valid": split, "test": split}
    return Manifest("table", schema, FlatSpec(("user",)), {}, splits)


def test_the_header_holds_sizes_and_what_is_ranked() -> None:
    data = DataConfig(batch_size=100)
    ranking = LossConfig(ranking="pwiser", lambdas={"ctr": 0.0, "ctcvr": 0.1})
    config = Config(data=data, loss=ranking)
    assert header([config], manifest(2_500, 9), 25, 12_345, "2 cpu devices") == (
        "rows: train 2,500, valid 2,500, test 2,500; 25 steps an epoch of 100 rows; "
        "mmoe, 12,345 parameters; 2 cpu devices; pwiser, lambdas ctr 0, ctcvr 0.1"
    )
    baseline = replace(config, loss=replace(ranking, lambdas=0.0))
    assert header([baseline, config, config], manifest(9, 9), 1, 7, "1 gpu").endswith(
        "3 runs of mmoe, 7 parameters; 1 gpu; "
        "pwiser, lambda 0 or pwiser, lambdas ctr 0, ctcvr 0.1"
    )
    config = replace(config, loss=LossConfig())
    assert header([config], manifest(9, 9), 1, 1, "1 gpu").endswith("no ranking")


@pytest.mark.parametrize(
    ("rows", "conversions", "ranking", "words"),
    [
        (2_500, 2_000, "pwiser", []),
        (1_900, 1_000, "none", ["only 19 steps"]),
        (2_000, 1_000, "none", []),
        # 1 - (1 - 10 / 10,000)^100 = 0.095
        (10_000, 10, "pwiser", ["10% of batches"]),
        (10_000, 10, "none", []),
        (1_000, 1, "ranknet", ["only 10 steps", "10% of batches"]),
    ],
)
def test_small_data_are_said(
    rows: int, conversions: int, ranking: str, words: list[str]
) -> None:
    loss = LossConfig(ranking=ranking)
    config = Config(data=DataConfig(batch_size=100), loss=loss)
    lines = cautions(config, manifest(rows, conversions), rows // 100)
    assert len(lines) == len(words)
    for line, word in zip(lines, words, strict=True):
        assert word in line


def test_a_ramp_beyond_the_training_is_said() -> None:
    config = Config(
        data=DataConfig(batch_size=100),
        loss=LossConfig(ranking="pwiser", lambda_ramp_steps=41, margin_ramp_steps=40),
        optimizer=OptimizerConfig(schedule="warmup", warmup_steps=1_000),
        train=TrainConfig(epochs=2),
    )
    assert cautions(config, manifest(2_000, 1_000), 20) == [
        "optimizer.warmup_steps is 1,000, and train.epochs has 40 steps: the ramp "
        "never ends",
        "loss.lambda_ramp_steps is 41, and train.epochs has 40 steps: the ramp never "
        "ends",
    ]
