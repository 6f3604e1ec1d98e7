"""AUC, its intervals and GAUC against definitions that compare every pair of rows."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from pwiser_jax.metrics import (
    auc,
    auc_difference,
    auc_interval,
    group_codes,
    grouped_auc,
)

Z = stats.norm.ppf(0.975)


def beats(positives, negatives):
    """[P, N]: 1 where the positive is above, half where equal."""
    wins = positives[:, None] > negatives[None, :]
    return wins + 0.5 * (positives[:, None] == negatives[None, :])


def auc_by_pairs(labels, scores):
    return beats(scores[labels == 1], scores[labels == 0]).mean()


def delong_covariance(labels, score_sets):
    """DeLong's covariance matrix of several AUCs, from all pairs of rows."""
    tables = [beats(s[labels == 1], s[labels == 0]) for s in score_sets]
    of_positives = np.cov([table.mean(axis=1) for table in tables])
    of_negatives = np.cov([table.mean(axis=0) for table in tables])
    count, other = tables[0].shape
    return np.atleast_2d(of_positives / count + of_negatives / other)


def obuchowski_variance(labels, scores, groups):
    """Obuchowski's variance, in the words of the 1997 paper, group by group."""
    positives, negatives = scores[labels == 1], scores[labels == 0]
    area = beats(positives, negatives).mean()
    m, n, names = len(positives), len(negatives), np.unique(groups)
    s10 = s01 = s11 = 0.0
    with_positive = with_negative = 0
    for name in names:
        inside = groups == name
        x, y = scores[inside & (labels == 1)], scores[inside & (labels == 0)]
        v10 = sum(beats(np.array([a]), negatives).mean() for a in x) - len(x) * area
        v01 = sum(beats(positives, np.array([b])).mean() for b in y) - len(y) * area
        s10, s01, s11 = s10 + v10**2, s01 + v01**2, s11 + v10 * v01
        with_positive += len(x) > 0
        with_negative += len(y) > 0
    s10 *= with_positive / ((with_positive - 1) * m)
    s01 *= with_negative / ((with_negative - 1) * n)
    s11 *= len(names) / (len(names) - 1)
    return s10 / m + s01 / n + 2 * s11 / (m * n)


def clustered(rng, groups, slope=1.0, intercept=-2.0, ties=None):
    """Rows of users: a user's taste moves both scores and labels of all its rows."""
    sizes = rng.integers(1, 15, groups)
    group = np.repeat(np.arange(groups), sizes)
    user = rng.normal(size=groups)[group]
    signal = 0.7 * user + rng.normal(size=len(group))
    chance = special.expit(intercept + slope * signal + 0.7 * user)
    labels = (rng.random(len(group)) < chance).astype(np.int8)
    scores = signal + 0.5 * rng.normal(size=len(group))
    return labels, scores if ties is None else np.round(scores * ties), group


rows = st.lists(
    st.tuples(st.integers(0, 1), st.integers(-4, 4), st.integers(0, 5)), min_size=1
).map(lambda given: [np.array(column) for column in zip(*given, strict=True)])


@settings(deadline=None)
@given(rows)
def test_auc_is_the_share_of_pairs(columns):
    labels, scores, _ = columns
    actual = auc(labels, scores)
    if labels.min() == labels.max():
        assert np.isnan(actual)
        assert np.isnan(auc_interval(labels, scores).value)
    else:
        assert actual == pytest.approx(auc_by_pairs(labels, scores), rel=1e-14)
        assert auc_interval(labels, scores).value == actual
        assert actual + auc(labels, -scores) == pytest.approx(1, rel=1e-15)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_auc_agrees_with_mann_whitney(dtype):
    labels, scores, _ = clustered(np.random.default_rng(0), 500, ties=5)
    scores = scores.astype(dtype)
    u = stats.mannwhitneyu(scores[labels == 1], scores[labels == 0]).statistic
    pairs = labels.sum() * (1 - labels).sum()
    assert auc(labels, scores) == pytest.approx(u / pairs, rel=1e-14)


def test_the_order_of_rows_and_monotone_maps_change_nothing():
    rng = np.random.default_rng(1)
    labels, scores, groups = clustered(rng, 200, ties=8)
    base = auc_interval(labels, scores, groups)
    order = rng.permutation(len(labels))
    moved = auc_interval(labels[order], scores[order], groups[order])
    # The sums by group are of integers, so not even the last digit changes.
    assert moved == base
    assert moved.value == auc(labels, scores)
    order = np.argsort(scores)
    assert auc_interval(labels[order], scores[order], groups[order]) == base
    mapped = auc_interval(labels, np.exp(scores / 3), groups)
    assert mapped == base


def test_integers_beyond_float32_are_kept_apart():
    scores = np.array([2**24, 2**24 + 1])
    assert auc([0, 1], scores) == 1
    assert auc([1, 0], scores) == 0


def test_infinite_scores_are_scores():
    assert auc([0, 1, 0, 1], [-np.inf, -np.inf, 0, np.inf]) == (0.5 + 0 + 1 + 1) / 4


@pytest.mark.parametrize("ties", [None, 3])
def test_interval_without_groups_is_delongs(ties):
    labels, scores, _ = clustered(np.random.default_rng(2), 60, ties=ties)
    actual = auc_interval(labels, scores)
    variance = delong_covariance(labels, [scores])[0, 0]
    assert actual.standard_error == pytest.approx(np.sqrt(variance), rel=1e-10)
    half = Z * actual.standard_error / (actual.value * (1 - actual.value))
    assert special.logit(actual.high) - special.logit(actual.value) == pytest.approx(
        half
    )
    assert special.logit(actual.value) - special.logit(actual.low) == pytest.approx(
        half
    )
    # A group a row is no grouping at all.
    alone = auc_interval(labels, scores, np.arange(len(labels)))
    assert alone.standard_error == pytest.approx(actual.standard_error, rel=1e-12)


@pytest.mark.parametrize("ties", [None, 3])
def test_interval_with_groups_is_obuchowskis(ties):
    labels, scores, groups = clustered(np.random.default_rng(3), 60, ties=ties)
    actual = auc_interval(labels, scores, groups)
    variance = obuchowski_variance(labels, scores, groups)
    assert actual.standard_error == pytest.approx(np.sqrt(variance), rel=1e-10)


def test_interval_with_groups_agrees_with_a_bootstrap_of_groups():
    rng = np.random.default_rng(4)
    labels, scores, groups = clustered(rng, 150)
    members = [np.flatnonzero(groups == name) for name in range(150)]
    draws = []
    for _ in range(1000):
        drawn = np.concatenate([members[k] for k in rng.integers(0, 150, 150)])
        draws.append(auc(labels[drawn], scores[drawn]))
    actual = auc_interval(labels, scores, groups)
    # The bootstrap's own error is 1 / sqrt(2 * 1000) = 2%.
    assert actual.standard_error == pytest.approx(np.std(draws), rel=0.1)
    assert actual.low == pytest.approx(np.quantile(draws, 0.025), abs=0.01)
    assert actual.high == pytest.approx(np.quantile(draws, 0.975), abs=0.01)
    assert auc_interval(labels, scores).standard_error < 0.9 * actual.standard_error


def test_intervals_cover_the_truth_at_their_level():
    shape = {"slope": 2.0, "intercept": -4.5}
    truth = auc(*clustered(np.random.default_rng(5), 200_000, **shape)[:2])
    assert truth > 0.9
    rng = np.random.default_rng(6)
    inside, inside_alone, runs = 0, 0, 600
    for _ in range(runs):
        labels, scores, groups = clustered(rng, 150, **shape)
        actual = auc_interval(labels, scores, groups)
        inside += actual.low <= truth <= actual.high
        alone = auc_interval(labels, scores)
        inside_alone += alone.low <= truth <= alone.high
    # Three standard errors of a share of .95 in 600 draws are .027.
    assert abs(inside / runs - 0.95) < 0.027
    assert inside_alone < inside


def test_a_wider_level_gives_a_wider_interval():
    labels, scores, groups = clustered(np.random.default_rng(7), 60)
    narrow = auc_interval(labels, scores, groups, level=0.5)
    wide = auc_interval(labels, scores, groups, level=0.99)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high < 1


def test_rows_that_say_nothing_of_the_variance_give_no_interval():
    for labels, scores, groups in [
        ([0, 0, 1, 1], [0.0, 1, 2, 3], None),  # AUC 1: the variance is 0
        ([0, 0, 1], [0.0, 2, 1], None),  # a single positive
        ([0, 0, 1, 1], [0.0, 2, 1, 3], [0, 1, 2, 2]),  # all positives in one group
    ]:
        actual = auc_interval(labels, scores, groups)
        assert actual.value == auc(labels, scores)
        assert np.isnan([actual.low, actual.high, actual.standard_error]).all()


def test_difference_without_groups_is_delongs():
    rng = np.random.default_rng(8)
    labels, a, _ = clustered(rng, 60)
    b = a + 0.8 * rng.normal(size=len(a))
    actual = auc_difference(labels, a, b)
    covariance = delong_covariance(labels, [a, b])
    variance = covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1]
    assert actual.standard_error == pytest.approx(np.sqrt(variance), rel=1e-10)
    assert actual.value == auc(labels, a) - auc(labels, b)
    assert actual.high - actual.value == pytest.approx(Z * actual.standard_error)
    assert actual.value - actual.low == pytest.approx(Z * actual.standard_error)
    # Pairing is what makes it short: the two AUCs share their rows.
    apart = np.sqrt(covariance[0, 0] + covariance[1, 1])
    assert actual.standard_error < 0.8 * apart


def test_difference_with_groups_agrees_with_a_bootstrap_of_groups():
    rng = np.random.default_rng(9)
    labels, a, groups = clustered(rng, 150)
    b = a + 0.5 * rng.normal(size=150)[groups]
    members = [np.flatnonzero(groups == name) for name in range(150)]
    draws = []
    for _ in range(800):
        drawn = np.concatenate([members[k] for k in rng.integers(0, 150, 150)])
        draws.append(auc(labels[drawn], a[drawn]) - auc(labels[drawn], b[drawn]))
    actual = auc_difference(labels, a, b, groups)
    assert actual.standard_error == pytest.approx(np.std(draws), rel=0.1)


def test_difference_changes_sign_and_vanishes_as_it_must():
    rng = np.random.default_rng(10)
    labels, a, groups = clustered(rng, 60)
    b = rng.normal(size=len(a))
    forth, back = (auc_difference(labels, *pair, groups) for pair in ((a, b), (b, a)))
    assert (forth.value, forth.low) == pytest.approx((-back.value, -back.high))
    same = auc_difference(labels, a, 2 * a, groups)
    assert same.value == 0
    assert np.isnan(same.low)
    assert np.isnan(auc_difference(np.zeros(5), np.arange(5), np.arange(5)).value)


@settings(max_examples=200, deadline=None)
@given(rows)
def test_grouped_auc_is_the_mean_of_each_groups_own(columns):
    labels, scores, groups = columns
    value = covered = used = 0
    for name in np.unique(groups):
        inside = groups == name
        value_of_group = auc(labels[inside], scores[inside])
        if not np.isnan(value_of_group):
            value += value_of_group * inside.sum()
            covered += inside.sum()
            used += 1
    actual = grouped_auc(labels, scores, groups)
    assert (actual.groups, actual.rows) == (used, covered)
    if used:
        assert actual.value == pytest.approx(value / covered, rel=1e-12)
    else:
        assert np.isnan(actual.value)


def test_what_a_group_is_called_changes_nothing():
    labels, scores, groups = clustered(np.random.default_rng(11), 100)
    interval, within = (f(labels, scores, groups) for f in (auc_interval, grouped_auc))
    for names in (
        groups * 1_000_003 - 2**62,  # hashed: too wide a range to be counted
        groups.astype(np.uint64) + np.uint64(2**63),
        (groups - 50).astype(np.int8),
        groups.astype(str),
    ):
        again = auc_interval(labels, scores, names)
        assert again.value == interval.value
        assert again.standard_error == pytest.approx(interval.standard_error, rel=1e-12)
        same = grouped_auc(labels, scores, names)
        assert (same.groups, same.rows) == (within.groups, within.rows)
        assert same.value == pytest.approx(within.value, rel=1e-12)


def test_group_codes_tell_groups_apart():
    wide = np.array([-(2**63), 2**63 - 1, -(2**63), 0])
    for names in (
        wide,
        np.array([-128, 127, -128, 5], np.int8),
        np.array(list("abac")),
    ):
        codes = group_codes(names, 4)
        assert codes.dtype == np.int64
        assert codes.min() >= 0
        assert (codes[:, None] == codes).tolist() == (names[:, None] == names).tolist()


@pytest.mark.parametrize(
    ("labels", "scores", "message"),
    [
        ([0, 1], [0.0, 1.0, 2.0], "one length"),
        ([[0, 1]], [[0.0, 1.0]], "vectors"),
        ([0, 2], [0.0, 1.0], "row 1 has 2"),
        ([0, 1], [0.0, np.nan], "scores are NaN in row 1"),
    ],
)
def test_wrong_rows_are_refused(labels, scores, message):
    groups = np.zeros(len(labels))
    for call in (
        lambda: auc(labels, scores),
        lambda: auc_interval(labels, scores),
        lambda: grouped_auc(labels, scores, groups),
    ):
        with pytest.raises(ValueError, match=message):
            call()


def test_groups_of_another_length_are_refused():
    with pytest.raises(ValueError, match=r"groups must have shape \(3,\), not \(2,\)"):
        auc_interval([0, 1, 1], [0.0, 1.0, 2.0], [0, 1])
