"""The synthetic funnel: rates, true probabilities, long tails, noise, sessions."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from scipy.stats import chi2, rankdata

from pwiser_jax.data.datasets.funnel import LADDERS, Disturbances, funnel
from pwiser_jax.data.datasets.synthetic import CATEGORICAL, NUMERICAL, prepare_synthetic
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.errors import UserError

ROWS = 200_000


@pytest.fixture(scope="module")
def log() -> pl.DataFrame:
    return funnel(ROWS, seed=3)


def auc(labels: np.ndarray, scores: np.ndarray) -> float:
    positives = int(labels.sum())
    ranks = rankdata(scores)[labels > 0].sum()
    return (ranks - positives * (positives + 1) / 2) / (
        positives * (len(labels) - positives)
    )


def arrays(log: pl.DataFrame, *names: str) -> list[np.ndarray]:
    return [log[name].to_numpy() for name in names]


def test_one_seed_is_one_log(log: pl.DataFrame):
    assert funnel(ROWS, seed=3).equals(log)
    assert not funnel(ROWS, seed=4).equals(log)


@pytest.mark.parametrize(("clicks", "conversions"), [(0.1, 0.08), (0.03, 0.3)])
def test_rates_are_those_asked_for(clicks: float, conversions: float):
    log = funnel(ROWS, seed=1, click_rate=clicks, conversion_rate=conversions)
    click, conversion = arrays(log, "click", "conversion")
    assert log["true_ctr"].mean() == pytest.approx(clicks, rel=1e-6)
    # Five standard errors of a count.
    assert click.sum() == pytest.approx(ROWS * clicks, abs=5 * (ROWS * clicks) ** 0.5)
    expected = ROWS * clicks * conversions
    assert conversion.sum() == pytest.approx(expected, abs=5 * expected**0.5)
    assert (conversion <= click).all()


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_the_truth_is_calibrated(noise: float):
    log = funnel(ROWS, seed=3, click_noise=noise)
    genuine = log.filter(pl.col("noise_click") == 0)
    if noise:
        # Rows with a click by accident are rows without a genuine one: left out, they
        # would bias the rest, so that here bots alone are left out, by session.
        bots = log.group_by("session_id").agg(
            bot=(pl.col("noise_click").mean() == 1) & (pl.len() > 1)
        )
        genuine = log.join(
            bots.filter(~pl.col("bot")), on="session_id", maintain_order="left"
        ).with_columns(click=pl.col("click") - pl.col("noise_click"))
    for label, truth, rows in (
        ("click", "true_ctr", genuine),
        ("conversion", "true_cvr", genuine.filter(pl.col("click") == 1)),
    ):
        outcome, probability = arrays(rows, label, truth)
        order = np.argsort(probability)
        statistic, bins = 0.0, 20
        for part in np.array_split(order, bins):
            expected = probability[part].sum()
            variance = (probability[part] * (1 - probability[part])).sum()
            statistic += (outcome[part].sum() - expected) ** 2 / variance
        assert statistic < chi2.ppf(0.9999, bins)


def test_clicks_and_conversions_are_related_but_not_the_same(log: pl.DataFrame):
    ctr, cvr = arrays(log, "true_ctr", "true_cvr")
    logits = [np.log(p / (1 - p)) for p in (ctr, cvr)]
    assert 0.2 < np.corrcoef(*logits)[0, 1] < 0.7


def test_the_truth_ranks_as_on_real_logs(log: pl.DataFrame):
    click, conversion, ctr, cvr = arrays(
        log, "click", "conversion", "true_ctr", "true_cvr"
    )
    assert 0.74 < auc(click, ctr) < 0.82
    assert 0.82 < auc(conversion, ctr * cvr) < 0.92
    # Clicks are no good ranking of conversions: there is something to learn beside.
    assert auc(conversion, ctr * cvr) - auc(conversion, ctr) > 0.03


def test_ids_have_long_tails(log: pl.DataFrame):
    for name, head in (("user_id", 0.15), ("item_id", 0.3), ("brand", 0.3)):
        counts = np.sort(log[name].drop_nulls().value_counts()["count"].to_numpy())[
            ::-1
        ]
        top = counts[: len(counts) // 20].sum() / counts.sum()
        assert top > head
        assert np.median(counts) < counts.mean()


def test_sessions_are_visits_of_one_user_in_order(log: pl.DataFrame):
    sessions = log.group_by("session_id", maintain_order=True).agg(
        pl.col("user_id", "hour", "second").n_unique(),
        (pl.col("position").diff() >= 0).all().alias("ordered"),
        pl.col("position").min().alias("first"),
        pl.len(),
    )
    assert sessions["user_id"].max() == sessions["second"].max() == 1
    assert sessions["ordered"].all()
    assert sessions["first"].max() == 0
    assert sessions["len"].mean() == pytest.approx(10, rel=0.05)
    assert log["second"].is_sorted()
    assert (log["second"] // 3600 % 24 == log["hour"]).all()


def test_some_values_are_missing(log: pl.DataFrame):
    for name in (*CATEGORICAL, *NUMERICAL):
        share = log[name].null_count() / ROWS
        gaps = name in ("city", "brand", "budget", "reviews")
        assert share == pytest.approx(0.02 if gaps else 0, abs=0.003)


@pytest.mark.parametrize("share", [0.05, 0.4])
def test_noise_is_its_share_of_the_clicks(share: float):
    log = funnel(ROWS, seed=5, click_noise=share)
    click, noise = (values > 0 for values in arrays(log, "click", "noise_click"))
    assert (click | ~noise).all()
    assert noise.sum() / click.sum() == pytest.approx(share, abs=0.001)
    assert log.filter(noise)["conversion"].sum() == 0
    assert log["conversion"].sum() > 0
    sessions = log.group_by("session_id").agg(
        pl.len(), pl.col("noise_click").sum().alias("noise")
    )
    bots = sessions.filter((pl.col("len") >= 4) & (pl.col("noise") == pl.col("len")))
    # About half the noise is bots; short sessions and chance blur it.
    assert 0.3 < bots["noise"].sum() / noise.sum() < 0.6
    clean = funnel(ROWS, seed=5)
    assert clean["noise_click"].sum() == 0
    assert clean["true_ctr"].equals(log["true_ctr"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rows": 0}, "--rows is 0; expected 1 to 2147483647"),
        ({"items": -1}, "--items is -1; expected 1 to 2147483647"),
        ({"users": 10**14}, "--users is 100000000000000; expected 1 to 2147483647"),
        ({"seed": -1}, "--seed is -1; expected 0 or more"),
        ({"click_rate": 0.0}, "--click-rate is 0.0; expected a share"),
        ({"conversion_rate": 1.5}, "--conversion-rate is 1.5; expected a share"),
        ({"click_noise": 1.0}, "--click-noise is 1.0; expected 0 or more"),
    ],
)
def test_bad_options(options: dict, message: str):
    with pytest.raises(UserError, match=message):
        funnel(**{"rows": 100, **options})


def test_prepared(tmp_path: Path):
    manifest = prepare_synthetic(tmp_path / "a", rows=30_000, seed=2, click_noise=0.1)
    prepare_synthetic(tmp_path / "b", rows=30_000, seed=2, click_noise=0.1)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()
    prepared = Prepared(tmp_path / "a")
    splits = {name: prepared.load(name) for name in ("train", "valid", "test")}
    assert sum(map(len, splits.values())) == 30_000
    assert len(splits["valid"]) == pytest.approx(3000, rel=0.15)
    groups = [set(rows.group.tolist()) for rows in splits.values()]
    assert sum(map(len, groups)) == len(set.union(*groups))
    # The truth is kept beside the rows, and is no feature.
    names = {field.name for field in manifest.schema.categorical}
    names |= {field.name for field in manifest.schema.numerical}
    assert names == {*CATEGORICAL, *NUMERICAL}
    assert manifest.schema.extra == ("true_ctr", "true_cvr", "noise_click")
    valid = splits["valid"]
    assert auc(valid.labels[:, 0], valid.extra["true_ctr"]) > 0.65
    assert manifest.options["click_noise"] == 0.1
    fields = {field.name: field for field in manifest.schema.categorical}
    users = valid.categorical[:, CATEGORICAL.index("user_id")]
    for special in (fields["user_id"].unseen, fields["user_id"].rare):
        assert (users == special).any()
    cities = valid.categorical[:, CATEGORICAL.index("city")]
    assert (cities == fields["city"].missing).mean() == pytest.approx(0.02, abs=0.01)


@pytest.mark.parametrize("labels", [3, 5])
def test_more_labels_make_a_ladder(labels: int):
    log = funnel(ROWS, seed=3, labels=labels, conversion_rate=0.2, click_noise=0.2)
    names = LADDERS[labels]
    genuine = log.filter(pl.col("noise_click") == 0)
    reached = genuine
    for before, label in pairwise(names):
        assert log.filter(pl.col(label) > pl.col(before)).is_empty()
        reached = reached.filter(pl.col(before) == 1)
        truth = reached[f"true_{label}_given_{before}"]
        spread = np.sqrt((truth * (1 - truth)).sum())
        assert abs(reached[label].sum() - truth.sum()) < 4 * spread
    rate = genuine[names[-1]].sum() / genuine["click"].sum()
    assert rate == pytest.approx(0.2, rel=0.1)


def disturbed(**options: float) -> pl.DataFrame:
    return funnel(ROWS, seed=5, disturbances=Disturbances(**options))


FEATURES = ("session_id", "user_id", "item_id", "price", "true_ctr", "true_cvr")


@pytest.mark.parametrize("name", Disturbances._fields)
def test_disturbances_change_labels_alone(name: str):
    clean, log = disturbed(), disturbed(**{name: 0.3})
    assert log.select(FEATURES).equals(clean.select(FEATURES))
    assert not log.equals(clean)
    assert (log["conversion"] <= log["click"]).all()
    with pytest.raises(UserError, match=name.replace("_", "-")):
        disturbed(**{name: -0.1})


def test_accidents_are_their_share_of_the_clicks():
    log, quiet = disturbed(accidents=0.5), disturbed().filter(click=0)
    assert log["noise_click"].sum() / log["click"].sum() == pytest.approx(0.5, abs=1e-3)
    assert log.filter(noise_click=1)["conversion"].sum() == 0
    # On any row without a click: as likely one as others.
    accident = log.filter(noise_click=1)["true_ctr"].mean()
    assert accident == pytest.approx(quiet["true_ctr"].mean(), rel=0.05)


def test_bots_click_everything_and_buy_nothing():
    clean, log = disturbed(), disturbed(bots=0.1)
    bots = log.filter(noise_click=1)["user_id"].unique()
    rows = log.filter(pl.col("user_id").is_in(bots.implode()))
    assert rows["click"].mean() == 1
    assert rows["conversion"].sum() == 0
    assert len(bots) == pytest.approx(0.1 * log["user_id"].n_unique(), rel=0.2)
    others = ~pl.col("user_id").is_in(bots.implode())
    assert log.filter(others).equals(clean.filter(others))


def test_a_row_is_looked_at_by_its_position():
    clean, log = disturbed(), disturbed(position_bias=1.0)
    for position in (0, 1, 3):
        at = pl.col("position") == position
        kept = log.filter(at)["click"].sum() / clean.filter(at)["click"].sum()
        assert kept == pytest.approx(1 / (1 + position), abs=0.06)


def test_late_conversions_are_their_share_and_of_the_last_days():
    clean, log = disturbed(), disturbed(delayed=0.3)
    lost = clean.with_columns(
        pl.Series("lost", clean["conversion"] - log["conversion"])
    ).filter(conversion=1)
    assert lost["lost"].min() == 0
    assert lost["lost"].mean() == pytest.approx(0.3, abs=0.05)
    half = lost["second"].median()
    early, late = (
        lost.filter(x)["lost"].mean()
        for x in (pl.col("second") < half, pl.col("second") >= half)
    )
    assert late > 2 * early
    assert log["click"].equals(clean["click"])


def test_noise_of_conversions_is_its_share():
    clean, log = disturbed(), disturbed(conversion_noise=0.4)
    share = 1 - clean["conversion"].sum() / log["conversion"].sum()
    assert share == pytest.approx(0.4, abs=1e-2)
    assert (log["conversion"] >= clean["conversion"]).all()
    assert log["click"].equals(clean["click"])


def test_order_values_are_an_extra_column(tmp_path: Path):
    manifest = prepare_synthetic(
        tmp_path / "a", rows=20_000, order_values=True, delayed=0.2
    )
    assert manifest.schema.extra[-1] == "order_value"
    assert manifest.options["order_values"]
    assert manifest.options["delayed"] == 0.2
    assert "accidents" not in manifest.options
    assert Prepared(tmp_path / "a").load("test").extra["order_value"].min() > 0
