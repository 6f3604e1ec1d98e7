"""Revenue: do rankings of PWiseR bring more of it, with pairs weighted by value?

    python -m experiments.all --full --only revenue --output runs/comparison

The funnel with a price for each conversion. Rows of a session are ranked by the
predicted CTCVR, or by it times the price, and measured by the revenue that is expected
of the first k rows under the true probabilities, by NDCG with the expected revenue of a
row as its gain, and by GAUC on labels. The arms have the settings that the comparison
chose; the form with weighted pairs has those of the form without, and JRC within
sessions those of JRC.
"""

import numpy as np
import polars as pl

from experiments.comparison import (
    TRUTH,
    carried_arms,
    chosen_settings,
    runs_of_choice,
    truth_measures,
)
from experiments.lib.arms import ARMS, VALUE, VARIANTS, Arm, arm_title, arm_titles
from experiments.lib.datasets import synthetic
from experiments.lib.paired import (
    decision,
    decisions_table,
    gap_text,
    interval_of,
    paired_tests,
    tests_texts,
)
from experiments.lib.study import Experiment, Finding, Measures, Outcome, Study
from experiments.lib.words import counted, effect_rows, joined, text_of
from pwiser_jax import metrics
from pwiser_jax.metrics import Interval
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import differences

NAME = "revenue"
OURS = "pwiser ctcvr"
WEIGHTED = f"{OURS}, value"
SESSIONS = ("bce, sessions", "jrc, sessions")
# Measures of a ranking by session, with the unit of a difference.
MEASURES = {
    TRUTH[0]: "expected AUC",
    "gauc": "GAUC",
    "ndcg": "NDCG of revenue",
    "revenue_1": "revenue@1",
    "revenue_3": "revenue@3",
    "revenue_3_by_value": "revenue@3, by CTCVR x price",
}
ERRORS = ("gauc_error", "ndcg_error", "revenue_1_error", "revenue_3_error")
BEST = ("revenue_1_best", "revenue_3_best")  # of the true probabilities' order
NAMES = (*TRUTH, *list(MEASURES)[1:], *ERRORS, *BEST)


def arms_of(study: Study) -> list[Arm]:
    """The arms; each is compared with cross-entropy on the same batches."""
    known = carried_arms(study)
    arms = [*known, VARIANTS[WEIGHTED]]
    if ARMS["jrc"] in known:
        arms += [VARIANTS[name] for name in SESSIONS]
    return arms


def find(study: Study) -> Finding:
    tuned = synthetic(study.place, study.scale.rows)
    priced = synthetic(study.place, study.scale.rows, options={"order_values": True})
    arms = arms_of(study)
    points = dict(chosen_settings(study, tuned, carried_arms(study)))
    points |= {arm.name: points[arm.name.partition(",")[0]] for arm in arms}
    results = runs_of_choice(
        study,
        NAME,
        priced,
        arms,
        points,
        study.scale.finals,
        {},
        names=NAMES,
        measures=session_measures,
    )
    pairs = [(arm.name, arm.baseline) for arm in arms if "bce" not in arm.name]
    pairs.append((WEIGHTED, OURS))
    tests = {
        name: paired_tests(
            [({"Measure": text}, results, "ctcvr", a, b) for a, b in pairs], name
        )
        for name, text in MEASURES.items()
    }
    table = pl.concat(tests.values()).with_columns(
        pl.Series("p_holm", metrics.holm(pl.concat(tests.values())["p"]), pl.Float64)
    )
    runs = f"MMoE, {counted(study.scale.finals, 'paired seed')}"
    blocks: list[TableBlock | Picture] = [
        TableBlock(
            _levels(results),
            f"CTCVR by session, mean of {counted(study.scale.finals, 'seed')}, with "
            "95% intervals over the sessions of test; revenue is expected under the "
            "true probabilities, in units of price per session",
        ),
        TableBlock(
            tests_texts(table),
            f"Differences ({runs}, 95% intervals over seeds; p after Holm over all "
            f"{table.height})",
        ),
    ]
    percent = _percent(results, table)
    if percent["low"].is_not_null().any():
        blocks.append(
            Picture(
                differences(
                    percent,
                    "cross-entropy",
                    "revenue@3 [%]",
                    rows=("loss",),
                    titles=arm_titles(percent["loss"]),
                ),
                "Difference of revenue@3 to cross-entropy by arm.",
                f"Expected revenue of the first 3 rows of a session, minus that of "
                f"cross-entropy on the same batches, in percent of it; {runs}.",
            )
        )
    to_do = decisions_table(
        [
            decision(f"you want {text} by session", results, "ctcvr", name)
            for name, text in MEASURES.items()
            if name not in TRUTH
        ]
    )
    return Finding(answer(results, table), blocks, decisions=to_do)


def session_measures(outcome: Outcome) -> Measures:
    """Measures by session of the order by CTCVR, for one run.

    Raises:
        UserError: the rows have no price.
    """
    rows = outcome.rows("test").with_pair_columns(pair_value=VALUE)
    price = rows.extra[VALUE]
    revenue = rows.extra["true_ctr"] * rows.extra["true_cvr"] * price
    prediction = outcome.predictions("test")["ctcvr"]
    scores, groups = prediction.scores, rows.group
    bought = outcome.level("test") >= len(outcome.prepared.schema.labels)
    gauc = metrics.gauc_interval(bought, scores, groups)
    ndcg = metrics.session_ndcg(revenue, scores, groups)
    values = {"gauc": gauc.value, "gauc_error": gauc.standard_error}
    values |= _mean("ndcg", ndcg)
    for k in (1, 3):
        each = metrics.session_revenue(revenue, scores, groups, k)
        values |= _mean(f"revenue_{k}", each)
        best = metrics.session_revenue(revenue, revenue, groups, k)
        values[f"revenue_{k}_best"] = float(best.mean())
    by_value = prediction.probabilities * price
    each = metrics.session_revenue(revenue, by_value, groups, 3)
    values["revenue_3_by_value"] = float(each.mean())
    truth = truth_measures(outcome)
    return {**truth, **{("ctcvr", name): value for name, value in values.items()}}


def _mean(name: str, each: np.ndarray) -> dict[str, float]:
    over = metrics.mean_interval(each[np.isfinite(each)])
    return {name: over.value, f"{name}_error": over.standard_error}


def _levels(results: pl.DataFrame) -> pl.DataFrame:
    """A row an arm: each measure, with its interval over sessions where it has one."""
    rows = []
    ctcvr = results.filter(pl.col("task") == "ctcvr")
    for (loss,), own in ctcvr.group_by("loss", maintain_order=True):
        row = {"Arm": arm_title(str(loss))}
        for name, text in MEASURES.items():
            row[text] = f"{own[name].mean():.4f}"
            if f"{name}_error" in ERRORS:
                half = 1.96 * float(own[f"{name}_error"].to_numpy().mean())
                row[text] += f" \N{PLUS-MINUS SIGN}{half:.4f}"
        rows.append(row)
    best = dict.fromkeys(MEASURES.values(), "\N{EN DASH}")
    for k in (1, 3):
        best[f"revenue@{k}"] = f"{ctcvr[f'revenue_{k}_best'].mean():.4f}"
    rows.append({"Arm": "expected revenue itself", **best})
    return pl.DataFrame(rows)


def _percent(results: pl.DataFrame, tests: pl.DataFrame) -> pl.DataFrame:
    """Differences of revenue@3 to cross-entropy in percent: rows of `differences`."""
    rows = []
    for row in tests.filter(pl.col("Measure") == MEASURES["revenue_3"]).rows(
        named=True
    ):
        if not row["baseline"].startswith("bce"):
            continue
        level = _level(results, row["baseline"], "revenue_3")
        ends = (row[name] for name in ("difference", "low", "high"))
        parts = [None if x is None else 100 * x / level for x in ends]
        rows.append(("ctcvr", row["loss"], *parts))
    return effect_rows(["task", "loss"], rows)


def _level(results: pl.DataFrame, loss: str, name: str) -> float:
    of_loss = (pl.col("loss") == loss) & (pl.col("task") == "ctcvr")
    return float(results.filter(of_loss)[name].to_numpy().mean())


def answer(results: pl.DataFrame, tests: pl.DataFrame) -> str:
    """Revenue@3 of PWiseR and of weighted pairs; then all that is significant."""
    sentences = []
    for loss, baseline in ((OURS, "bce"), (WEIGHTED, OURS)):
        named = tests.filter(
            (pl.col("loss") == loss)
            & (pl.col("baseline") == baseline)
            & (pl.col("Measure") == MEASURES["revenue_3"])
        )
        gap = interval_of(named.row(0, named=True))
        level = _level(results, baseline, "revenue_3")
        sentences.append(
            f"Revenue@3 by session of {arm_title(f'{loss} minus {baseline}')}: "
            f"{text_of(_scaled(gap, 100 / level), '.2f')} percent."
        )
    sure = [row for row in tests.rows(named=True) if row["p_holm"] < 0.05]
    if not sure:
        sentences.append(
            f"After Holm none of {tests.height} differences in AUC, GAUC, NDCG and "
            "revenue is significant."
        )
        return " ".join(sentences)
    texts = [
        f"{arm_title(row['loss'])} minus {arm_title(row['baseline'])} in "
        f"{row['Measure']} ({gap_text(row)})"
        for row in sure
    ]
    of = f"{len(sure)} of {tests.height} differences are"
    sentences.append(f"After Holm {of} significant: {joined(texts)}.")
    return " ".join(sentences)


def _scaled(gap: Interval, factor: float) -> Interval:
    ends = (gap.value, gap.low, gap.high, gap.standard_error)
    return Interval(*(factor * x for x in ends))


EXPERIMENT = Experiment(
    NAME,
    "Revenue",
    "Does PWiseR, or PWiseR with pairs weighted by value, bring more revenue by "
    "session than cross-entropy and rivals?",
    find,
)
