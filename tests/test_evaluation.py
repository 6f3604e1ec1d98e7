"""Tasks, their rows and their scores: each measure recomputed from its definition."""

import ast
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from scipy import special

from pwiser_jax import evaluation, metrics, tasks
from pwiser_jax.evaluation import evaluate as evaluate_rows
from pwiser_jax.evaluation import mean_auc, probabilities

FUNNEL = ("click", "conversion")
SHOP = ("click", "cart", "order")


def evaluate(*args, **options):
    """The tree of `evaluate`, as it is written."""
    return evaluate_rows(*args, **options).to_dict()


def make_rows(label_names, rows=4000, seed=0):
    """Labels of a ladder, groups, and the logit of every head and joint task."""
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, rows // 8, rows)
    user = rng.normal(size=rows // 8)[groups]
    reached = np.ones(rows, bool)
    labels = np.zeros((rows, len(label_names)), np.int8)
    given, joint = [], []
    for k in range(len(label_names)):
        z = user + rng.normal(size=rows) - 0.7
        reached = reached & (rng.random(rows) < special.expit(z))
        labels[:, k] = reached
        given.append(z.astype(np.float32))
        p = np.prod([special.expit(z) for z in given], axis=0)
        joint.append(special.logit(p).astype(np.float32))
    return labels, groups, given, joint


def named(space, names, given, joint):
    """Logits as a model of that space gives them."""
    joint_names, given_names = names
    logits = dict(zip(joint_names, joint, strict=True))
    if space != "ctcvr":
        logits |= dict(zip(given_names, given[1:], strict=True))
    return logits


FUNNEL_NAMES = (("ctr", "ctcvr"), ("cvr",))
SHOP_NAMES = (("ctr", "cart", "order"), ("cart_given_click", "order_given_cart"))


@pytest.mark.parametrize("space", ["ctcvr", "click", "product"])
def test_each_task_is_measured_on_its_own_rows(space):
    labels, groups, given, joint = make_rows(FUNNEL)
    logits = named(space, FUNNEL_NAMES, given, joint)
    found = evaluate(
        logits, labels, groups, label_names=FUNNEL, space=space, split="valid"
    )
    clicks, conversions = labels.T == 1
    all_rows = np.ones(len(labels), bool)
    cases = {
        "ctr": (clicks, joint[0], all_rows),
        "ctcvr": (conversions, joint[1], all_rows),
        "cvr": (conversions, given[1], clicks),
    }
    assert list(found) == ["split", "rows", "groups", *cases, "pairs"]
    assert found["split"] == "valid"
    assert found["rows"] == len(labels)
    assert found["groups"] == len(np.unique(groups))
    for name, (y, z, rows) in cases.items():
        y, z, own = y[rows], z[rows], groups[rows]
        task = found[name]
        assert (task["rows"], task["positives"]) == (rows.sum(), y.sum())
        interval = metrics.auc_interval(y, z, own)
        # Joint logits are rounded to float32, and the ratio is taken from them.
        close = {"abs": 1e-5} if space == "ctcvr" and name == "cvr" else {"rel": 1e-12}
        assert task["auc"] == pytest.approx(
            {"value": interval.value, "low": interval.low, "high": interval.high},
            **close,
        )
        p = special.expit(z.astype(float))
        gauc = metrics.grouped_auc(y, z, own)
        assert task["log_loss"] == pytest.approx(metrics.log_loss(y, p), abs=1e-6)
        assert task["calibration"] == pytest.approx(
            {
                "predicted_over_observed": p.sum() / y.sum(),
                "ece": metrics.expected_calibration_error(y, p),
            },
            abs=1e-5,
        )
        assert task["gauc"] == pytest.approx(
            {"value": gauc.value, "groups": gauc.groups, "rows": gauc.rows}, **close
        )


@pytest.mark.parametrize("space", ["ctcvr", "click", "product"])
def test_pairs_of_levels(space):
    labels, groups, given, joint = make_rows(FUNNEL)
    logits = named(space, FUNNEL_NAMES, given, joint)
    found = evaluate(
        logits, labels, groups, label_names=FUNNEL, space=space, split="test"
    )["pairs"]
    level = labels.sum(axis=1)
    scores = {"ctr": joint[0], "ctcvr": joint[1], "cvr": given[1]}
    cases = {
        "conversion_over_click_only": (2, 1),
        "conversion_over_no_click": (2, 0),
        "click_only_over_no_click": (1, 0),
    }
    assert list(found) == list(scores)
    for name, z in scores.items():
        assert list(found[name]) == list(cases)
        for pair, (upper, lower) in cases.items():
            above, below = z[level == upper], z[level == lower]
            wins = (above[:, None] > below).mean() + (
                above[:, None] == below
            ).mean() / 2
            tree = found[name][pair]
            assert tree["value"] == pytest.approx(wins, abs=1e-5)
            assert tree["low"] < tree["value"] < tree["high"]
            assert tree["positives"] == len(above)
            assert tree["negatives"] == len(below)


def test_a_longer_ladder():
    labels, groups, given, joint = make_rows(SHOP)
    results = {
        space: evaluate(
            named(space, SHOP_NAMES, given, joint),
            labels,
            groups,
            label_names=SHOP,
            space=space,
            split="valid",
        )
        for space in ("ctcvr", "click", "product")
    }
    for found in results.values():
        reached = labels.sum(axis=0).tolist()
        for name, rows, positives in [
            ("ctr", len(labels), reached[0]),
            ("cart", len(labels), reached[1]),
            ("order", len(labels), reached[2]),
            ("cart_given_click", reached[0], reached[1]),
            ("order_given_cart", reached[1], reached[2]),
        ]:
            assert (found[name]["rows"], found[name]["positives"]) == (rows, positives)
            expected = results["click"][name]["auc"]
            assert found[name]["auc"] == pytest.approx(expected, abs=1e-4)
        assert set(found["pairs"]["order"]) == {
            "order_over_cart_only",
            "order_over_click_only",
            "order_over_no_click",
            "cart_only_over_click_only",
            "cart_only_over_no_click",
            "click_only_over_no_click",
        }


def test_ratio_of_heads_ranks_beyond_one_and_is_a_probability():
    """Where pCTCVR > pCTR the ratio still ranks, and its probability stays at 1."""
    ctr = np.array([-2.0, -2.0, -2.0, 30.0], np.float32)
    ctcvr = np.array([-3.1, 0.0, 1.0, 29.0], np.float32)
    logits = {"ctr": ctr, "ctcvr": ctcvr}
    labels = np.array([[1, 0], [1, 0], [1, 1], [0, 0]], np.int8)
    p = probabilities(logits, FUNNEL, "ctcvr")
    assert list(p) == ["ctr", "ctcvr", "cvr"]
    ratio = special.expit(float(ctcvr[0])) / special.expit(float(ctr[0]))
    assert p["cvr"][0] == pytest.approx(ratio, rel=1e-14)
    assert p["cvr"][1:].tolist() == [1, 1, pytest.approx(1, abs=1e-12)]
    found = evaluate(
        logits, labels, np.arange(4), label_names=FUNNEL, space="ctcvr", split="valid"
    )
    # Rows 1 and 2 are both held at 1, and are still told apart.
    assert found["cvr"]["auc"]["value"] == 1
    assert math.isfinite(found["cvr"]["log_loss"])


def test_very_low_logits_keep_their_order():
    """σ underflows in float32 below -104; its logarithm in float64 does not."""
    ctr = np.full(4, -200, np.float32)
    ctcvr = np.array([-203, -202, -201, -200.5], np.float32)
    labels = np.array([[1, 0], [1, 0], [1, 1], [1, 1]], np.int8)
    found = evaluate(
        {"ctr": ctr, "ctcvr": ctcvr},
        labels,
        np.arange(4),
        label_names=FUNNEL,
        space="ctcvr",
        split="valid",
    )
    assert found["cvr"]["auc"]["value"] == 1
    p = probabilities({"ctr": ctr, "ctcvr": ctcvr}, FUNNEL, "ctcvr")["cvr"]
    assert p == pytest.approx(np.exp([-3, -2, -1, -0.5]))


@pytest.mark.parametrize("space", ["click", "product"])
def test_probabilities_are_those_of_the_heads(space):
    _, _, given, joint = make_rows(SHOP, rows=64)
    p = probabilities(named(space, SHOP_NAMES, given, joint), SHOP, space)
    assert list(p) == ["ctr", "cart", "order", "cart_given_click", "order_given_cart"]
    assert p["cart"] == pytest.approx(p["ctr"] * p["cart_given_click"], rel=1e-5)
    assert p["order"] == pytest.approx(p["cart"] * p["order_given_cart"], rel=1e-5)


@pytest.mark.parametrize(
    ("space", "names"),
    [
        ("ctcvr", ["ctr", "ctcvr"]),
        ("click", ["ctr", "cvr"]),
        ("product", ["ctr", "ctcvr"]),
    ],
)
def test_mean_auc_is_that_of_the_trained_tasks(space, names):
    labels, groups, given, joint = make_rows(FUNNEL)
    logits = named(space, FUNNEL_NAMES, given, joint)
    found = mean_auc(logits, labels, FUNNEL, space)
    mean, each = found.mean, found.auc
    assert found.reasons == {}
    full = evaluate(
        logits, labels, groups, label_names=FUNNEL, space=space, split="valid"
    )
    assert each == {name: full[name]["auc"]["value"] for name in names}
    assert mean == pytest.approx(np.mean(list(each.values())))


def test_mean_auc_leaves_out_tasks_without_both_classes():
    labels = np.array([[0, 0], [1, 0], [1, 0]])
    logits = {"ctr": np.array([0.0, 1.0, -1.0]), "ctcvr": np.zeros(3)}
    found = mean_auc(logits, labels, FUNNEL, "ctcvr")
    assert found.mean == found.auc["ctr"] == 0.5
    assert found.auc["ctcvr"] is None
    assert found.reasons == {"ctcvr": "no positive rows"}
    found = mean_auc(logits, np.zeros((3, 2)), FUNNEL, "ctcvr")
    assert found.mean is None
    assert set(found.reasons) == {"ctr", "ctcvr"}


def nulls(tree, path=()):
    """Paths of the nulls of a JSON tree whose node gives no reason."""
    found = []
    for key, value in tree.items():
        if isinstance(value, dict):
            found += nulls(value, (*path, key))
        elif value is None and not tree.get("reason"):
            found.append((*path, key))
    return found


@pytest.mark.parametrize("level", [[], [0, 0, 0], [0, 1, 1], [1, 1], [2, 2], [0, 1, 2]])
def test_undefined_measures_are_null_with_a_reason(level):
    """Whatever classes are missing: valid JSON, and no null without its reason."""
    level = np.array(level, np.int8)
    labels = np.stack([level >= 1, level >= 2], axis=1).astype(np.int8)
    z = np.linspace(-1, 1, len(level)).astype(np.float32)
    found = evaluate(
        {"ctr": z, "ctcvr": z - 1},
        labels,
        np.arange(len(level)),
        label_names=FUNNEL,
        space="ctcvr",
        split="valid",
    )
    again = json.loads(json.dumps(found, allow_nan=False))
    assert again == found
    assert nulls(found) == []
    for name, given_level in (("ctr", 0), ("ctcvr", 0), ("cvr", 1)):
        y = level[level >= given_level] > (name != "ctr")
        assert (found[name]["auc"]["value"] is None) == (len(set(y.tolist())) < 2)


def test_reasons_say_what_is_missing():
    labels = np.array([[0, 0], [1, 0], [0, 0]])
    z = np.array([0.1, 0.5, 0.9])
    found = evaluate(
        {"ctr": z, "ctcvr": z},
        labels,
        np.zeros(3, np.int64),
        label_names=FUNNEL,
        space="ctcvr",
        split="valid",
    )
    assert found["ctcvr"]["auc"]["reason"] == "no positive rows"
    assert found["ctcvr"]["calibration"]["reason"] == "no positive rows"
    assert "interval" in found["ctr"]["auc"]["reason"]
    assert found["ctr"]["auc"]["value"] == 0.5
    pairs = found["pairs"]["ctr"]
    assert pairs["conversion_over_no_click"]["reason"] == "no conversion rows"


def test_rows_and_groups_may_come_in_any_order():
    labels, groups, given, joint = make_rows(FUNNEL, rows=800)
    logits = named("click", FUNNEL_NAMES, given, joint)
    order = np.random.default_rng(1).permutation(800)
    options = {"label_names": FUNNEL, "space": "click", "split": "valid"}
    one = evaluate(logits, labels, groups, **options)
    moved = {name: z[order] for name, z in logits.items()}
    other = evaluate(moved, labels[order], groups[order] * 10**12, **options)

    def numbers(tree):
        for value in tree.values():
            yield from numbers(value) if isinstance(value, dict) else [value]

    one, other = ([v for v in numbers(t) if v != "valid"] for t in (one, other))
    assert one == pytest.approx(other, rel=1e-9)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_logit_that_is_not_finite_is_refused(bad):
    labels, groups, given, joint = make_rows(FUNNEL, rows=64)
    logits = named("ctcvr", FUNNEL_NAMES, given, joint)
    logits["ctcvr"] = logits["ctcvr"].copy()
    logits["ctcvr"][17] = bad
    message = f"logit of ctcvr in row 17 is not finite: {bad}"
    with pytest.raises(ValueError, match=message):
        evaluate(
            logits, labels, groups, label_names=FUNNEL, space="ctcvr", split="valid"
        )
    with pytest.raises(ValueError, match=message):
        mean_auc(logits, labels, FUNNEL, "ctcvr")
    with pytest.raises(ValueError, match=message):
        probabilities(logits, FUNNEL, "ctcvr")


def test_wrong_shapes_and_labels_are_refused():
    z = np.zeros(2, np.float32)
    good = np.array([[1, 0], [1, 1]])
    for logits, labels, message in [
        ({"ctr": z}, good, "logits have no ctcvr, only ctr"),
        ({"ctr": z, "ctcvr": z[:1]}, good, r"logits of ctcvr must be \(2,\)"),
        ({"ctr": z, "ctcvr": z}, good[:, :1], r"labels must be \[rows, 2\]"),
        ({"ctr": z, "ctcvr": z}, [[1, 0], [0, 1]], "row 1 hold a rung without"),
        ({"ctr": z, "ctcvr": z}, [[2, 0], [0, 0]], "labels must be 0 or 1"),
    ]:
        with pytest.raises(ValueError, match=message):
            mean_auc(logits, np.array(labels), FUNNEL, "ctcvr")


def test_a_measure_is_added_by_one_entry(monkeypatch):
    """A measure from outside is in the attributes, in the tree, and null if NaN."""
    monkeypatch.setattr(evaluation, "MEASURES", dict(evaluation.MEASURES))

    def positive_share(at):
        return float(at.positive.mean()) if len(at.positive) else math.nan

    evaluation.register_measure("positive_share", positive_share)
    labels, groups, given, joint = make_rows(FUNNEL, rows=64)
    logits = named("click", FUNNEL_NAMES, given, joint)
    found = evaluate_rows(
        logits,
        labels * 0,
        groups,
        label_names=FUNNEL,
        space="click",
        split="valid",
    )
    assert found.tasks["ctr"].positive_share == 0
    assert found.to_dict()["ctr"]["positive_share"] == 0
    assert found.to_dict()["cvr"]["positive_share"] is None
    assert found.to_dict()["cvr"]["reason"] == "no rows"
    assert evaluation.Evaluation.from_dict(found.to_dict(), FUNNEL) == found
    with pytest.raises(AttributeError):
        found.tasks["ctr"].unknown  # noqa: B018


@pytest.mark.parametrize(
    ("labels", "titles"),
    [
        (FUNNEL, ["CTR", "CTCVR", "CVR"]),
        (("click", "purchase"), ["CTR", "CTCVR (purchase)", "CVR (purchase)"]),
        (("view", "order"), ["CTR (view)", "CTCVR (order)", "CVR (order)"]),
        (SHOP, ["CTR", "cart", "order", "cart given click", "order given cart"]),
    ],
)
def test_tasks_are_shown_by_the_names_of_the_field(labels, titles):
    assert [tasks.title(task, labels) for task in tasks.measured(labels)] == titles


def test_metrics_stand_alone_and_evaluation_needs_no_jax():
    def imported(path):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                yield node.module
            elif isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)

    allowed = {"numpy", "scipy", *sys.stdlib_module_names}
    files = list(Path(metrics.__path__[0]).glob("*.py"))
    assert len(files) > 3
    for path in files:
        for name in imported(path):
            own = name.startswith("pwiser_jax.metrics")
            assert own or name.split(".")[0] in allowed, (path.name, name)
    assert "jax" not in set(imported(Path(evaluation.__file__)))
