"""The reports of curves, decisions, noise, growth and revenue, from known numbers."""

import json
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from experiments import all as experiments
from experiments import comparison, growth, noise, revenue
from experiments.lib import curves
from experiments.lib.arms import ARMS, check_arm
from experiments.lib.paired import decision, paired_tests
from experiments.lib.step_time import cost
from experiments.lib.study import Outcome
from pwiser_jax.config import Config, load_config
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.data.datasets.table import prepare_table
from pwiser_jax.errors import UserError
from pwiser_jax.training.run.folder import config_tree

CONFIGS = Path(__file__).parents[2] / "configs" / "synthetic"


def finals(effects: dict[str, float], seeds: int = 8) -> pl.DataFrame:
    """Runs of arms whose AUC is .7 and an effect, with noise of .005."""
    rng = np.random.default_rng(0)
    rows = [
        {
            "dataset": "d",
            "model": "mmoe",
            "loss": loss,
            "seed": seed,
            "task": task,
            "auc": 0.7 + effect + 0.005 * rng.normal(),
        }
        for loss, effect in effects.items()
        for seed in range(seeds)
        for task in ("ctr", "ctcvr")
    ]
    return pl.DataFrame(rows)


def with_curves(part: pl.DataFrame, gaps: list[float]) -> pl.DataFrame:
    """Adds curves: PWiseR minus BCE is gaps[k] after epoch k, then the last of them."""
    rng = np.random.default_rng(1)
    columns = []
    for k, name in enumerate(curves.CURVE):
        gap = gaps[min(k, len(gaps) - 1)]
        values = 0.7 + 0.001 * rng.normal(size=part.height)
        ours = (part["loss"] != "bce").to_numpy()
        columns.append(pl.Series(name, values + gap * ours))
    return part.with_columns(columns)


@pytest.mark.parametrize(
    ("gaps", "words"),
    [
        ([0.05, 0.05, 0.0], "ahead of BCE in the first 2 epochs alone"),
        ([0.05, -0.05], "ahead of BCE in the first epoch alone"),
        ([0.05], "ahead of BCE from the first epoch to the last"),
        ([0.05, 0.0, 0.05], "ahead of BCE in the first epoch and at the end"),
        ([-0.05, 0.05], "not ahead of BCE in the first epoch but at the end"),
        ([-0.05], "not ahead of BCE in the first epoch nor at the end"),
    ],
)
def test_a_gain_of_the_first_epochs_is_called_one(gaps: list[float], words: str):
    part = with_curves(finals({"bce": 0.0, "pwiser": 0.0}), gaps)
    assert curves.early_gain(part, "ctcvr", "pwiser") == words


def test_the_area_under_a_curve_is_its_mean():
    part = with_curves(finals({"bce": 0.0, "pwiser": 0.0}), [0.24, 0.0])
    table = curves.areas_table(part, ("ctcvr",), ["bce", "pwiser"])
    gap = float(table["Minus BCE"][1].split(" ")[0])
    assert gap == pytest.approx(0.24 / curves.EPOCHS, abs=0.001)


def test_curves_are_drawn_of_whatever_arms_ran():
    part = finals({"bce": 0.0, "jrc": 0.0, "pwiser": 0.0, "focal": 0.0})
    assert comparison.drawn(part) == ["pwiser", "jrc"]
    assert comparison.drawn(finals({"bce": 0.0, "focal": 0.0})) == ["focal"]


def run_with(folder: Path, aucs: list[float]) -> Outcome:
    folder.mkdir()
    lines = [
        {"kind": "valid", "step": 5 * k + 5, "epoch": k, "auc": {"ctr": auc}}
        | {"mean_auc": auc}
        for k, auc in enumerate(aucs)
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (folder / "metrics.jsonl").write_text(text)
    (folder / "config.yaml").write_text(json.dumps(config_tree(Config())))
    return Outcome(folder, folder)


def test_the_end_of_a_curve(tmp_path: Path):
    """Patience is 2: the slope is that of the last three evaluations."""
    end = curves.end(run_with(tmp_path / "a", [0.5, 0.6, 0.7, 0.69, 0.68]))
    assert end["ctr", "last_slope"] == pytest.approx(-0.01)
    assert end["ctr", "last_gain"] == pytest.approx(0.2)
    assert (end["ctr", "epochs"], end["ctr", "epoch_steps"]) == (5, 5)
    rising = curves.end(run_with(tmp_path / "b", [0.5, 0.6, 0.7]))
    assert rising["ctr", "last_slope"] == pytest.approx(0.1)
    curve = curves.curve(run_with(tmp_path / "c", [0.5, 0.6]))
    assert curve["ctr", curves.CURVE[0]] == 0.5
    assert curve["ctr", curves.CURVE[-1]] == 0.6
    short = curves.end(run_with(tmp_path / "d", [0.5]))
    assert np.isnan(short["ctr", "last_slope"])


def test_a_mean_curve_that_rises_is_not_flat():
    part = finals({"bce": 0.0, "pwiser": 0.0}).with_columns(
        pl.lit(9.0).alias("epochs"),
        pl.lit(0.0).alias("at_cap"),
        pl.lit(0.001).alias("last_gain"),
        (
            pl.col("auc") - pl.when(pl.col("loss") == "bce").then(0.71).otherwise(0.6)
        ).alias("last_slope"),
    )
    flat = curves.ends_table(part, ("ctr",))
    assert dict(flat.select("Arm", "Flat").iter_rows()) == {
        "BCE": "yes",
        "PWiseR on both heads": "no",
    }


@pytest.mark.parametrize(
    ("effects", "best", "so"),
    [
        ({"bce": 0.0, "a": 0.03, "b": 0.001}, "a", "use a"),
        ({"bce": 0.03, "a": 0.0}, "BCE", "use BCE: no other has a better mean"),
    ],
)
def test_a_decision_follows_the_numbers(effects: dict[str, float], best: str, so: str):
    row = decision("always", finals(effects), "ctcvr", "auc")
    assert row is not None
    assert (row[0], row[1], row[3]) == ("always", best, so)
    assert decision("never", finals({"bce": 0.0}), "ctcvr", "auc") is None


def test_without_an_effect_no_arm_is_recommended_at_more_than_the_stated_rate():
    """The best of eight arms differs from BCE by chance alone."""
    rng = np.random.default_rng(3)
    base = finals(dict.fromkeys(["bce", *"abcdefgh"], 0.0))
    count = 0
    for _ in range(60):
        part = base.with_columns(pl.Series("auc", rng.normal(0.7, 0.005, base.height)))
        row = decision("null", part, "ctcvr", "auc")
        count += row is not None and row[3].startswith("use ") and "BCE" not in row[3]
    assert count <= 8  # 5% is 3; P(more than 8) < .01


def test_the_cost_of_a_step_is_compared_round_by_round():
    """The machine's drift, here a factor of 10, does not enter the ratio."""
    assert cost([0.002, 0.02, 0.2], [0.001, 0.01, 0.1]) == pytest.approx((20.0, 2.0))


def noise_tests(effects: dict[str, float]) -> pl.DataFrame:
    part = finals(effects)
    return paired_tests(
        [
            ({"Noise": title}, part, task, noise.OURS, rival)
            for title in ("no noise", "bots 20%")
            for rival in effects
            if rival != noise.OURS
            for task in ("ctr", "ctcvr")
        ],
        "auc",
    )


def test_the_answer_on_noise_names_what_wins_and_loses():
    text = noise.answer(noise_tests({"bce": 0.0, noise.OURS: 0.03, "jrc": 0.06}))
    assert "beats BCE significantly in CTR with no noise" in text
    assert "It beats a tuned rival significantly nowhere and loses to it in CTR" in text
    text = noise.answer(noise_tests({"bce": 0.0, noise.OURS: 0.0, "jrc": 0.0}))
    assert text.count("nowhere and loses to it nowhere") == 2


def test_noise_moves_from_clicks_to_conversions():
    assert noise.options("moved", 0.0) == {"accidents": 0.5}
    assert noise.options("moved", 0.25) == {"accidents": 0.25, "conversion_noise": 0.25}
    cases = [("none", 0.0), ("accidents", 0.5), ("moved", 0.0), ("moved", 0.25)]
    assert noise.of_different_logs(cases) == [*cases[:2], cases[3]]
    assert noise.options("moved", 0.5) == {"conversion_noise": 0.5}
    assert noise.options(*noise.CLEAN) == {}
    assert noise.title(*noise.CLEAN) == "no noise"
    assert noise.title("accidents", 0.3) == "30% accidental clicks"
    moved = "noise in 20% of the clicks and 30% of the conversions"
    assert noise.title("moved", 0.3) == moved
    assert noise.title("moved", 0.5) == "noise in 50% of the conversions"
    kinds = {kind for scale in experiments.SCALES.values() for kind in scale.noise}
    assert kinds <= set(noise.KINDS)


def test_the_answer_on_growth_names_what_is_significant():
    part = finals({"bce": 0.0, growth.OURS: 0.03})
    tests = paired_tests(
        [({"Rows": "9", "Conversions": "3"}, part, "ctcvr", growth.OURS, "bce")], "auc"
    )
    text = growth.answer(tests, tests.clear())
    assert "PWiseR on CTCVR differs from BCE in CTCVR with 3 conversions" in text


@pytest.mark.parametrize("option", ["--growth_rows=0", "--batch_sizes=-1"])
def test_a_size_of_nothing_is_refused(
    option: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    assert experiments.main(["--quick", option, f"--output={tmp_path}"]) == 2
    assert "expected 1 or more" in capsys.readouterr().err


def test_revenue_needs_a_price(tmp_path: Path):
    prepare_synthetic(tmp_path / "data", rows=2_000, users=50, items=50)
    with pytest.raises(UserError, match="'order_value' is no extra column"):
        revenue.session_measures(Outcome(tmp_path, tmp_path / "data"))


def test_an_arm_within_groups_needs_groups(tmp_path: Path):
    table = pl.DataFrame(
        {"x": [1.0, 2.0, 2.0, 1.0] * 25, "click": [0, 1] * 50, "buy": [0, 0, 0, 1] * 25}
        | {"part": ["train"] * 60 + ["valid"] * 20 + ["test"] * 20}
    )
    table.write_csv(tmp_path / "rows.csv")
    schema = {"numerical": ["x"], "labels": {"click": "click", "conversion": "buy"}}
    schema["split"] = {"by": "column", "column": "part"}
    (tmp_path / "schema.yaml").write_text(json.dumps(schema))
    schema_file = tmp_path / "schema.yaml"
    prepare_table(tmp_path / "rows.csv", tmp_path / "data", schema=schema_file)
    arm = ARMS["jrc, groups"]
    config = load_config(CONFIGS / "mmoe.yaml", arm.options)
    with pytest.raises(UserError, match=r"jrc, groups cannot run on data: no two"):
        check_arm(arm, config, tmp_path / "data")
