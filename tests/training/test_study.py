"""The split of a study into parts is fixed when it starts, and stored beside it."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from pwiser_jax.config import Config
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.errors import UserError
from pwiser_jax.training.run.progress import Silent
from pwiser_jax.training.study import PLAN, planned, train_part
from tests.training.helpers import small_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "synthetic"
    prepare_synthetic(folder, rows=3_000, seed=3)
    return folder


def study(data: Path, output: Path, seeds: range) -> dict[Path, Config]:
    """Runs of two shapes over seeds."""
    base = small_config(data, train={"epochs": 1})
    models = {name: replace(base.model, name=name) for name in ("mmoe", "ple")}
    return {
        output / f"{name}{seed}": replace(
            base, model=model, train=replace(base.train, seed=seed)
        )
        for name, model in models.items()
        for seed in seeds
    }


def names(parts: list[list[Path]]) -> list[list[str]]:
    return [[folder.name for folder in part] for part in parts]


def test_parts_are_of_one_shape_and_of_equal_size(data: Path, tmp_path: Path) -> None:
    runs = study(data, tmp_path, range(5))
    assert names(planned(runs, tmp_path / "a", size=4)) == [
        ["mmoe2", "mmoe3", "mmoe4"],
        ["ple2", "ple3", "ple4"],
        ["mmoe0", "mmoe1"],
        ["ple0", "ple1"],
    ]
    assert len(planned(runs, tmp_path / "b")) == 2
    # Enough parts for all slots.
    parts = planned(runs, tmp_path / "c", slots=5)
    assert sorted(map(len, parts)) == [1, 1, 2, 2, 2, 2]


def test_a_plan_stays_and_new_runs_get_parts_of_their_own(
    data: Path, tmp_path: Path
) -> None:
    first = planned(study(data, tmp_path, range(2)), tmp_path, slots=4, gpus=1)
    assert len(first) == 4
    again = study(data, tmp_path, range(3))
    parts = planned(again, tmp_path, slots=1)
    assert parts == [*first, [tmp_path / "mmoe2"], [tmp_path / "ple2"]]
    assert json.loads((tmp_path / PLAN).read_text()) == {
        "gpus_per_part": 1,
        "parts": names(parts),
    }
    # The device count belongs to the programs.
    with pytest.raises(UserError, match="give --gpus-per-part 1"):
        planned(again, tmp_path, gpus=2)


def test_a_part_with_other_runs_is_split_anew(data: Path, tmp_path: Path) -> None:
    planned(study(data, tmp_path, range(4)), tmp_path, size=3)
    parts = planned(study(data, tmp_path, range(3)), tmp_path)
    assert names(parts) == [
        ["mmoe0", "mmoe1"],
        ["ple0", "ple1"],
        ["mmoe2"],
        ["ple2"],
    ]


def test_a_damaged_plan_is_one_sentence(data: Path, tmp_path: Path) -> None:
    for text in ("{", "[]", '{"parts": [3], "gpus_per_part": null}'):
        (tmp_path / PLAN).write_text(text)
        with pytest.raises(UserError, match="is damaged: remove it"):
            planned(study(data, tmp_path, range(2)), tmp_path)


def test_more_runs_than_fit_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--part-size is 17; at most 16"):
        planned(study(data, tmp_path, range(2)), tmp_path, size=17)


def test_failed_runs_of_a_part_are_returned(data: Path, tmp_path: Path) -> None:
    base = small_config(data, model={"dropout": 0}, train={"epochs": 1})
    wild = replace(base, optimizer=replace(base.optimizer, learning_rate=1e30))
    folders = [tmp_path / "tame", tmp_path / "wild"]
    failures = train_part([base, wild], folders, Silent())
    assert list(failures) == [tmp_path / "wild"]
    assert (tmp_path / "tame" / "result.json").exists()
