"""Runs in one program equal solo runs, stop independently, and resume after a kill."""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pwiser_jax.config import Config
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.inference.evaluate import evaluate_run
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices.signals import Interrupted
from pwiser_jax.training.devices.stack import filled, stack, stack_hypers
from pwiser_jax.training.devices.stacked import (
    shard_runs,
    sweep_eval_program,
    sweep_program,
)
from pwiser_jax.training.loop import train
from pwiser_jax.training.run.metrics import read_metrics
from pwiser_jax.training.run.progress import Silent
from pwiser_jax.training.run.record import Record
from pwiser_jax.training.step import Hyper, StepSpec, initial_state
from pwiser_jax.training.sweep import (
    RunsFailed,
    sweep_key,
    sweeps_in_progress,
    train_sweep,
)
from tests.training.helpers import SMALL, Lines, compilations, small_config
from tests.training.steps import PWISER, SCHEMA, gradients, make_batch, step_of

MODEL = replace(SMALL, name="shared_bottom", wide=True)
DIAGNOSTICS = ("norm/", "pairs/", "active/", "gate/")
LOSSES = (
    PWISER,
    replace(PWISER, lambdas=0.5),
    replace(PWISER, lambdas={"ctcvr": 1.0}, margins={"conversion>click": None}),
    replace(PWISER, lambdas=0.5, margins={"conversion>exposure": 0.7}),
)


@cache
def _alone(objective: Any) -> Any:
    return jax.jit(step_of(MODEL, objective))


@pytest.mark.parametrize(("at_once", "orders"), [(1, 2), (2, 2), (2, 1)])
def test_a_step_of_a_stack_is_a_step_of_each_run(at_once: int, orders: int) -> None:
    # 8 runs, as 4 devices need: 4 losses x 2 seeds; the last but one has stopped.
    built = [
        objectives.build(loss, SCHEMA.labels, MODEL.cvr_space)
        for loss in LOSSES
        for _ in range(2)
    ]
    whole, weights = objectives.union(built)
    batches = [make_batch(40, seed=order, padding=2) for order in range(orders)]
    spec = StepSpec(model=MODEL, schema=SCHEMA, objective=whole)
    draw = jax.jit(lambda seed: initial_state(spec, seed))
    states = [jax.device_get(draw(run % 2)) for run in range(8)]
    for state in states:  # wide weights start at 0, which L2 leaves there
        state.params["wide"] = jax.tree.map(np.ones_like, state.params["wide"])
    rates = [1e-3 * (1 + run) for run in range(8)]
    which = np.array([run % orders for run in range(8)], np.int32)
    active = np.arange(8) != 6
    hypers = stack_hypers(
        [
            Hyper(run % 2, rates[run], 1e-6, weights[run], wide_l2=0.1 * run)
            for run in range(8)
        ]
    )
    program = sweep_program(spec, at_once)
    calls = filled(stack([stack(batches)]), 3)
    # One step in a call of three at most.
    new, (losses, diagnostics) = program(
        shard_runs(stack(states)), calls, np.int32(1), hypers, which, active
    )
    for run, (objective, own) in enumerate(built):
        mine = jax.tree.map(lambda x, run=run: np.asarray(x[run]), new)
        if not active[run]:
            jax.tree.map(np.testing.assert_array_equal, mine, states[run])
            continue
        arguments = (
            states[run],
            batches[which[run]],
            Hyper(run % 2, rates[run], 1e-6, own, wide_l2=0.1 * run),
        )
        expected, parts = gradients(_alone(objective), *arguments)
        for name, value in parts.items():
            if name in losses:
                np.testing.assert_allclose(losses[name][run, 0], value, rtol=1e-5)
            assert not (losses | diagnostics)[name][run, 1:].any()
        largest = max(float(np.abs(x).max()) for x in jax.tree.leaves(expected))
        jax.tree.map(
            lambda a, b, largest=largest: np.testing.assert_allclose(
                b * 10, a, rtol=1e-4, atol=1e-5 * largest
            ),
            expected,
            mine.optimizer[1].mu,
        )
        assert mine.step == 1


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("prepared") / "synthetic"
    rates = {"click_rate": 0.4, "conversion_rate": 0.3, "valid": 0.3}
    prepare_synthetic(folder, rows=6_000, seed=3, **rates)
    return folder


def configs(data: Path) -> list[Config]:
    """2 seeds x {BCE, PWiseR, other margins, another learning rate}."""
    base = small_config(
        data,
        model={"name": "shared_bottom"},
        train={"epochs": 4, "patience": 4, "log_every": 1},
    )
    each = [
        replace(base, loss=PWISER),
        replace(base, loss=replace(PWISER, lambdas=0.5)),
        replace(
            base,
            loss=replace(PWISER, lambdas=0.5, margins={"conversion>click": 0.5}),
        ),
        replace(base, optimizer=replace(base.optimizer, learning_rate=4e-3)),
    ]
    return [
        replace(config, train=replace(config.train, seed=seed))
        for seed in (0, 3)
        for config in each
    ]


def folders(parent: Path) -> list[Path]:
    return [parent / f"run{i}" for i in range(8)]


@pytest.fixture(scope="module")
def compiled() -> list[str]:
    """What `swept` compiles."""
    return []


@pytest.fixture(scope="module")
def swept(
    data: Path, compiled: list[str], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    parent = tmp_path_factory.mktemp("swept")
    sweep_program.cache_clear()
    sweep_eval_program.cache_clear()
    with compilations() as names:
        results = train_sweep(configs(data), folders(parent), Silent())
    compiled += names
    for folder, result in zip(folders(parent), results, strict=True):
        assert json.loads((folder / "result.json").read_text()) == result.to_dict()
    return parent


def test_each_run_equals_its_solo_run(data: Path, swept: Path, tmp_path: Path) -> None:
    for i in (0, 5, 2, 7):  # each kind, and both seeds
        config, folder = configs(data)[i], folders(swept)[i]
        solo = tmp_path / folder.name
        expected = train(config, solo, Silent())
        assert (folder / "config.yaml").read_text() == (
            solo / "config.yaml"
        ).read_text()
        lines = [line for line in read_metrics(folder) if line["kind"] == "train"]
        solo_lines = [line for line in read_metrics(solo) if line["kind"] == "train"]
        for line, solo_line in zip(lines[:20], solo_lines[:20], strict=True):
            assert line.keys() == solo_line.keys()
            for name, value in solo_line.items():
                if name != "kind" and not name.startswith(DIAGNOSTICS):
                    assert line[name] == pytest.approx(value, rel=1e-4), name
        result = json.loads((folder / "result.json").read_text())
        # An epoch is as good as another that differs in the last digits.
        for task, auc in expected.best.auc.items():
            assert result["best"]["auc"][task] == pytest.approx(auc, abs=1e-3)
        assert result["stopped"] == expected.stopped
        assert result["steps"] == expected.steps
        ours, theirs = evaluate_run(folder, "valid"), evaluate_run(solo, "valid")
        assert ours.tasks["ctr"].auc.value == pytest.approx(
            theirs.tasks["ctr"].auc.value, abs=1e-3
        )


def test_runs_of_a_sweep_have_their_own_numbers_of_the_pointwise_loss(
    data: Path, tmp_path: Path
) -> None:
    base = small_config(
        data,
        model={"name": "shared_bottom"},
        train={"epochs": 1, "log_every": 1},
    )
    each = [
        replace(
            base,
            loss=replace(
                PWISER,
                pointwise="focal",
                focal_gamma=gamma,
                conversion_weight=weight,
                lambda_ramp_steps=steps,
            ),
        )
        for gamma, weight, steps in ((0.5, 4.0, 10), (3.0, 1.5, 2))
    ]
    swept = [tmp_path / "a", tmp_path / "b"]
    train_sweep(each, swept, Silent())
    for config, folder in zip(each, swept, strict=True):
        train(config, tmp_path / f"{folder.name}_solo", Silent())
        lines, solo = (
            [line["loss"] for line in read_metrics(run) if line["kind"] == "train"]
            for run in (folder, tmp_path / f"{folder.name}_solo")
        )
        assert lines[:20] == pytest.approx(solo[:20], rel=1e-4)


def test_a_sweep_compiles_one_program_to_train_and_one_to_evaluate(
    swept: Path, compiled: list[str]
) -> None:
    del swept  # has run
    assert compiled.count("jit(steps)") == 1
    assert compiled.count("jit(logits)") == 1


def test_a_killed_sweep_goes_on_with_the_same_numbers(
    data: Path, swept: Path, tmp_path: Path
) -> None:
    mine = folders(tmp_path)
    for _ in range(100):
        try:
            train_sweep(configs(data), mine, Silent(), stop_after=13)
            break
        except Interrupted:
            # What is written after a checkpoint is written again.
            with (mine[0] / "metrics.jsonl").open("a") as file:
                file.write('{"kind": "train", "step": 10000')
            (in_progress,) = sweeps_in_progress(tmp_path).values()
            assert in_progress == mine
    for folder, original in zip(mine, folders(swept), strict=True):
        assert read_metrics(folder) == read_metrics(original)
        for name in ("result.json",):
            assert (folder / name).read_bytes() == (original / name).read_bytes()
        assert evaluate_run(folder, "valid") == evaluate_run(original, "valid")
    assert not sweeps_in_progress(tmp_path)
    assert not (tmp_path / ".sweeps").exists()


def test_finished_runs_are_left_alone(data: Path, swept: Path, tmp_path: Path) -> None:
    mine = folders(tmp_path)
    for i in (0, 1, 2, 5):
        shutil.copytree(folders(swept)[i], mine[i])
    before = [(mine[i] / "metrics.jsonl").stat().st_mtime_ns for i in (0, 1, 2, 5)]
    train_sweep(configs(data), mine, Silent())
    after = [(mine[i] / "metrics.jsonl").stat().st_mtime_ns for i in (0, 1, 2, 5)]
    assert before == after
    for folder, original in zip(mine, folders(swept), strict=True):
        assert read_metrics(folder) == read_metrics(original)


def test_a_run_whose_loss_is_not_finite_stops_alone(
    data: Path, swept: Path, tmp_path: Path
) -> None:
    each, mine = configs(data), folders(tmp_path)
    wild = replace(each[1], optimizer=replace(each[1].optimizer, learning_rate=1e38))
    with pytest.raises(RunsFailed, match=r"1 of 8 runs failed.*run1: the loss is not"):
        train_sweep([each[0], wild, *each[2:]], mine, Silent())
    assert "not finite" in (mine[1] / "failure.txt").read_text()
    assert not (mine[1] / "result.json").exists()
    for i in (0, *range(2, 8)):
        assert read_metrics(mine[i]) == read_metrics(folders(swept)[i])


def test_a_run_that_stops_early_is_frozen_and_the_others_go_on(
    data: Path, swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine, real = folders(tmp_path), Record.end_epoch

    def stops_runs_of_seed_3(record: Record, *arguments: Any) -> bool:
        better = real(record, *arguments)
        if record.config.train.seed == 3:
            record.progress.stopped = "early"
        return better

    monkeypatch.setattr(Record, "end_epoch", stops_runs_of_seed_3)
    results = train_sweep(configs(data), mine, Silent())
    for i, folder in enumerate(mine):
        whole = read_metrics(folders(swept)[i])
        lines = [line for line in whole if i < 4 or line["epoch"] == 0]
        assert read_metrics(folder) == lines
        assert results[i].steps == lines[-1]["step"]


def test_margins_of_runs_with_lambda_0_change_no_bit(
    data: Path, tmp_path: Path
) -> None:
    base = configs(data)[0]
    each = [
        base,
        replace(base, loss=replace(PWISER, margins={"conversion>click": 0.9})),
        replace(base, loss=replace(PWISER, lambdas=0.5)),  # the program ranks
    ]
    each = [replace(c, train=replace(c.train, epochs=1)) for c in each]
    runs, reporter = [tmp_path / f"run{i}" for i in range(3)], Lines()
    train_sweep(each, runs, reporter)
    first, second, ranked = (read_metrics(run) for run in runs)
    assert first == second != ranked
    train(each[0], tmp_path / "solo", Silent())
    lines = read_metrics(tmp_path / "solo")
    assert [line["step"] for line in lines] == [line["step"] for line in first]
    for line, solo in zip(first, lines, strict=True):
        assert line.keys() == solo.keys()
        if line["kind"] == "train":
            assert line["loss"] == pytest.approx(solo["loss"], rel=1e-4)
    # The header and the warnings are those of the group, once.
    headers = [text for text in reporter.lines if text.startswith("rows: train")]
    assert len(headers) == 1
    assert "3 runs of shared_bottom" in headers[0]
    assert sum("steps an epoch: the model" in text for text in reporter.lines) == 1
    assert not any("training bce alone" in text for text in reporter.lines)


def test_what_cannot_be_traced_is_another_sweep(data: Path) -> None:
    base = configs(data)[1]
    same = replace(base, loss=PWISER, train=replace(base.train, seed=9))
    assert sweep_key(base) == sweep_key(same)
    weighted = [
        replace(base, loss=replace(base.loss, conversion_weight=weight))
        for weight in (1.0, 2.0, 5.0)
    ]
    assert sweep_key(weighted[1]) == sweep_key(weighted[2]) != sweep_key(weighted[0])
    ramped = replace(base, loss=replace(base.loss, lambda_ramp_steps=5))
    longer = replace(base, loss=replace(base.loss, lambda_ramp_steps=9))
    assert sweep_key(ramped) == sweep_key(longer)
    wide = [
        replace(
            base,
            model=replace(base.model, wide=True),
            optimizer=replace(base.optimizer, wide_l2=l2),
        )
        for l2 in (None, 0.1, 0.2)
    ]
    assert sweep_key(wide[1]) == sweep_key(wide[2]) != sweep_key(wide[0])
    for other in (
        ramped,
        replace(base, loss=replace(base.loss, scores="logit")),
        replace(base, data=replace(base.data, batch_size=128)),
        replace(base, train=replace(base.train, epochs=3)),
    ):
        assert sweep_key(base) != sweep_key(other)
        with pytest.raises(ValueError, match="sweep_key"):
            train_sweep([base, other], [Path("a"), Path("b")], Silent())
    with pytest.raises(ValueError, match="folder"):
        train_sweep([base, same], [Path("a"), Path("a")], Silent())
