"""Several steps per call: the same run for all call lengths; one program each."""

from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pwiser_jax.config import Config
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.training.devices.programs import eval_program, train_program
from pwiser_jax.training.devices.several import several_steps
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.checkpoint import Checkpoints
from pwiser_jax.training.run.folder import config_hash
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from pwiser_jax.training.state import state_template
from tests.training.helpers import compilations, small_config


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "synthetic"
    prepare_synthetic(folder, rows=6_000, seed=3)
    return folder


def config(data: Path, steps_per_call: int) -> Config:
    """About 12 steps an epoch: 4 fit neither the checkpoints nor the rest."""
    return small_config(
        data,
        data={"batch_size": 410, "min_conversions": 2},
        model={"name": "shared_bottom"},
        loss={"bank": 4},
        train={"steps_per_call": steps_per_call, "checkpoint_every": 5},
    )


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    folder = tmp_path_factory.mktemp("runs")
    for k in (1, 4):
        train(config(data, k), folder / str(k), Silent())
    return {k: folder / str(k) for k in (1, 4)}


def final_leaves(run: Path, data: Path, k: int) -> list[np.ndarray]:
    last = Checkpoints(run, "last")
    template = state_template(config(data, k), Prepared(data).schema)
    found = last.restore(template, pytest.fail)
    last.close()
    assert found is not None
    return [np.asarray(leaf) for leaf in jax.tree.leaves(found[0])]


def test_the_numbers_of_a_run_do_not_depend_on_its_calls(
    data: Path, runs: dict[int, Path]
) -> None:
    assert read_metrics(runs[1]) == read_metrics(runs[4])
    one, four = (final_leaves(runs[k], data, k) for k in (1, 4))
    for a, b in zip(one, four, strict=True):
        np.testing.assert_array_equal(a, b)
    assert config_hash(config(data, 1)) == config_hash(config(data, 4))


def test_a_run_goes_on_with_other_calls(
    data: Path, runs: dict[int, Path], tmp_path: Path
) -> None:
    for k, stop_after in ((4, 7), (1, 3), (0, 6)):
        with pytest.raises(Interrupted):
            train(config(data, k), tmp_path / "run", Silent(), stop_after=stop_after)
    train(config(data, 4), tmp_path / "run", Silent())
    assert read_metrics(tmp_path / "run") == read_metrics(runs[4])
    for a, b in zip(
        final_leaves(tmp_path / "run", data, 4),
        final_leaves(runs[4], data, 4),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_a_run_compiles_one_program_to_train_and_one_to_evaluate(
    data: Path, tmp_path: Path
) -> None:
    train_program.cache_clear()
    eval_program.cache_clear()
    with compilations() as names:
        with pytest.raises(Interrupted):
            train(config(data, 4), tmp_path / "run", Silent(), stop_after=6)
        train(config(data, 4), tmp_path / "run", Silent())
        other = replace(
            config(data, 4), loss=replace(config(data, 4).loss, lambdas=2.0)
        )
        train(other, tmp_path / "other", Silent())
    # What pmap compiles carries the name of its wrapper, `_fun`.
    assert names.count("jit(_fun)") == 2


def test_steps_that_are_not_taken_change_nothing() -> None:
    def step(state, batch, hyper):
        return state * hyper + batch, {"loss": jnp.sum(state)}, {}

    program = jax.jit(several_steps(step))
    batches = jnp.arange(12.0).reshape(4, 3)
    start = jnp.array([0.1, 0.2, 0.3])
    state, expected = start, []
    names: list[str] = []
    for count in range(5):
        given = batches.at[count:].set(jnp.nan)
        with compilations() as new:
            got, (metrics, _) = program(start, given, count, 1.1)
        names += new
        np.testing.assert_array_equal(got, state)
        np.testing.assert_array_equal(metrics["loss"], [*expected, *[0] * (4 - count)])
        if count < 4:
            state, values, _ = jax.jit(step)(state, batches[count], 1.1)
            expected.append(values["loss"])
    assert names == ["jit(steps)"]
