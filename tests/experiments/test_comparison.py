"""The comparison: its search, its edge check, its planner, its tests, bad input."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy import stats

from experiments import all as experiments
from experiments import comparison
from experiments.lib.arms import (
    ARMS,
    TITLES,
    Arm,
    arm_title,
    check_arm,
    chosen_arms,
)
from experiments.lib.planner import half_width, pilot_deviation, seeds_for_width
from experiments.lib.runs import fixed
from experiments.lib.search import (
    at,
    check_space,
    settings_on_edge,
    sobol_points,
    space_around,
)
from experiments.lib.study import TUNING_SEED
from pwiser_jax.config import Config, load_config
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.errors import UserError
from pwiser_jax.training.sweep import sweep_key

SPACE = {"learning_rate": (1e-3, 1e-1), "l2": (1e-4, 1e-2)}


@pytest.mark.parametrize(("deviation", "width"), [(0.004, 0.0015), (0.01, 0.004)])
def test_the_planned_seeds_give_the_wanted_width(deviation: float, width: float):
    """In simulations the mean half width is the wanted one, and one seed fewer more."""
    count = seeds_for_width(deviation, width)
    assert half_width(deviation, count) <= width < half_width(deviation, count - 1)
    draws = np.random.default_rng(0).normal(0.003, deviation, (4000, count))
    widths = stats.t.ppf(0.975, count - 1) * stats.sem(draws, axis=1)
    assert np.sqrt(np.mean(widths**2)) == pytest.approx(width, rel=0.05)
    covered = np.abs(draws.mean(axis=1) - 0.003) <= widths
    assert covered.mean() == pytest.approx(0.95, abs=0.012)


def test_the_planner_needs_a_spread_and_a_width():
    assert pilot_deviation([0.001, 0.003, 0.008]) == pytest.approx(
        np.std([0.001, 0.003, 0.008], ddof=1)
    )
    assert seeds_for_width(1e-9, 0.1) == 2
    with pytest.raises(UserError, match="1 seed"):
        pilot_deviation([0.001])
    with pytest.raises(ValueError, match="width must be above 0"):
        seeds_for_width(0.01, 0.0)
    with pytest.raises(ValueError, match="more than"):
        seeds_for_width(1.0, 1e-5)
    # A small try may plan with seeds whose AUCs are as different as they can be.
    assert 15e6 < seeds_for_width(1.0, 5e-4) < 16e6


def test_points_are_within_the_space_and_even_in_logarithms():
    points = sobol_points(SPACE, 64, seed=0)
    for name, (low, high) in SPACE.items():
        values = np.array([point[name] for point in points])
        assert ((low <= values) & (values <= high)).all()
        lower_half = values < np.sqrt(low * high)
        assert lower_half.mean() == pytest.approx(0.5, abs=0.05)
    assert points == sobol_points(SPACE, 64, seed=0)
    assert points != sobol_points(SPACE, 64, seed=1)


def test_the_search_goes_past_an_edge():
    box = space_around(SPACE, {"learning_rate": 1e-1, "l2": 1e-3})
    low, high = box["learning_rate"]
    assert low < 1e-1 < high
    assert high / low == pytest.approx(10)
    assert box["l2"] == pytest.approx((1e-3 / 10**0.5, 1e-3 * 10**0.5))


@pytest.mark.parametrize(
    ("chosen", "edges"),
    [(1e-3, ["l2"]), (1.1e-3, ["l2"]), (1e-2, []), (0.95e-1, ["l2"]), (1e-1, ["l2"])],
)
def test_the_edge_check(chosen: float, edges: list[str]):
    tried = [{"l2": value} for value in (1e-3, 1.1e-3, 1e-2, 0.95e-1, 1e-1)]
    assert settings_on_edge(tried, {"l2": chosen}) == edges


def test_a_space_of_one_point_is_refused():
    with pytest.raises(UserError, match=r"bce: the space of l2 is 0.001 to 0.001"):
        check_space("bce", {"l2": (1e-3, 1e-3)})
    with pytest.raises(UserError, match="above 0"):
        _ = Arm("bce", "BCE", "", (), {"lambda": (0.0, 1.0)}).whole_space


def test_every_arm_is_a_configuration_whose_points_share_a_sweep():
    configs = Path(__file__).parents[2] / "configs"
    for arm in ARMS.values():
        config = load_config(configs / "synthetic" / "mmoe.yaml", arm.options)
        points = sobol_points(arm.whole_space, 4, seed=0)
        keys = {sweep_key(at(config, point)) for point in points}
        assert len(keys) == 1, arm.name
        runs = comparison.planned_runs(fixed(config), arm, points, [3])
        assert {run.config.train.seed for run in runs} == {3}


def test_a_point_changes_what_it_names():
    config = at(Config(), {"learning_rate": 0.5, "l2": 0.25})
    assert (config.optimizer.learning_rate, config.optimizer.l2) == (0.5, 0.25)
    base = load_config(
        Path(__file__).parents[2] / "configs" / "synthetic" / "mmoe.yaml",
        ARMS["pwiser ctcvr"].options,
    )
    loss = at(base, {"lambda": 2.0, "m1": 0.3, "m2": 0.6}).loss
    assert loss.lambdas == {"ctcvr": 2.0}
    assert loss.margins == {"conversion>click": 0.3, "conversion>exposure": 0.6}


def test_an_arm_comes_with_its_baseline():
    assert [arm.name for arm in chosen_arms(["jrc, groups"])] == [
        "bce",
        "bce, groups",
        "jrc, groups",
    ]
    with pytest.raises(UserError, match="no arm 'gbdt'"):
        chosen_arms(["gbdt"])


def test_arms_are_told_apart_by_their_titles():
    assert len(set(TITLES.values())) == len(TITLES)
    assert arm_title("pwiser ctcvr minus esmm") == "PWiseR on CTCVR minus ESMM"
    assert arm_title("of another table") == "of another table"


def test_an_arm_that_cannot_run_is_refused_before_training(tmp_path: Path):
    prepare_synthetic(tmp_path / "data", rows=2_000, users=50, items=50)
    arm = Arm("by value", "", "", ("--loss.ranking=pwiser", "--loss.pair_value=price"))
    configs = Path(__file__).parents[2] / "configs" / "synthetic"
    config = load_config(configs / "mmoe.yaml", arm.options)
    with pytest.raises(UserError, match=r"by value cannot run on data: .*price"):
        check_arm(arm, config, tmp_path / "data")


def finals(runs: int, effect: float = 0.0, seed: int = 0) -> pl.DataFrame:
    rng = np.random.default_rng(seed)
    rows = [
        {
            "dataset": "d",
            "model": "mmoe",
            "loss": loss,
            "seed": k,
            "task": task,
            "auc": 0.7 + 0.005 * rng.normal() + effect * (loss == "pwiser"),
            "expected_auc": None,
        }
        for loss in ("bce", "pwiser")
        for k in range(runs)
        for task in ("ctr", "ctcvr")
    ]
    return pl.DataFrame(rows, schema_overrides={"expected_auc": pl.Float64})


def searches() -> dict[str, list[comparison.Tuned]]:
    arms = (ARMS["bce"], ARMS["pwiser"])
    return {"d": [comparison.Tuned(a, [{}], {}, [], 0.7, [0.0]) for a in arms]}


def test_without_an_effect_the_questions_find_nothing_at_the_stated_rate():
    """Holm over both heads: in about 5% of null studies is any question answered."""
    p = [
        comparison.question_tests({"d": finals(8, seed=k)}, searches())["p_holm"].min()
        for k in range(400)
    ]
    share = float(np.mean(np.array(p) < 0.05))
    assert stats.binomtest(round(400 * share), 400, 0.05).pvalue > 0.01
    table = comparison.question_tests({"d": finals(8, effect=0.03)}, searches())
    assert (table["p_holm"] < 0.01).all()
    assert (table["low"] > 0).all()


def test_runs_paired_with_their_own_other_seeds_differ_at_the_nominal_rate():
    part = finals(200).filter(pl.col("loss") == "bce")
    rates = comparison.null_rates(part, "auc", "bce")
    assert rates["Pairs"].to_list() == [100, 100]
    assert rates["t test [%]"].is_between(0.03, 0.07).all()


def test_final_seeds_are_not_those_of_the_search():
    most = max(scale.finals for scale in experiments.SCALES.values())
    assert most < TUNING_SEED


def test_one_seed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    output = f"--output={tmp_path / 'out'}"
    command = ["--only", "comparison", "--quick", "--seeds=1", output]
    assert experiments.main(command) == 2
    assert "needs at least 2" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
