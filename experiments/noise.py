"""Noise: where does PWiseR gain most, and does it beat a rival there?

    python -m experiments.all --full --only noise --output runs/comparison

The funnel with accidental clicks, bots, position bias or delayed conversions in its
log, validation included; and noise of a fixed amount, from the paper's assumption, all
of it in clicks, to its reverse. Runs end by early stopping on the noisy validation
rows; they are measured against the true probabilities of the test rows. The arms have
the settings that the comparison chose on the log without noise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import polars as pl

from experiments.comparison import (
    HEADS,
    POSITIVES,
    TRUTH,
    carried_arms,
    chosen_settings,
    runs_of_choice,
)
from experiments.lib.arms import arm_title
from experiments.lib.datasets import synthetic
from experiments.lib.paired import (
    decision,
    decisions_table,
    gap_text,
    paired_tests,
    tests_texts,
)
from experiments.lib.study import Experiment, Finding, Study
from experiments.lib.words import (
    average_difference,
    counted,
    joined,
    line_rows,
)
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import interval_lines

NAME = "noise"
OURS = "pwiser ctcvr"
TOTAL = 0.5  # the shares of noise in clicks and in conversions sum to it


class Kind(NamedTuple):
    """A kind of noise: what its level is, and the title of a level."""

    axis: str
    title: str = ""


KINDS = {
    "accidents": Kind(
        "accidental clicks, share of the clicks", "{:.0%} accidental clicks"
    ),
    "bots": Kind("bots, share of the users", "{:.0%} bots among the users"),
    "position_bias": Kind(
        "position bias, exponent", "a position bias of exponent {:g}"
    ),
    "delayed": Kind(
        "delayed conversions, share of the conversions", "{:.0%} delayed conversions"
    ),
    "moved": Kind(f"conversions' noise, of {TOTAL:.0%} in clicks and conversions"),
}
CLEAN = ("none", 0.0)
Case = tuple[str, float]


def options(kind: str, level: float) -> dict[str, float]:
    """The funnel's options for a case."""
    if kind == "moved":
        shares = {"accidents": TOTAL - level, "conversion_noise": level}
        return {name: share for name, share in shares.items() if share}
    return {kind: level} if level else {}


def title(kind: str, level: float) -> str:
    if (kind, level) == CLEAN:
        return "no noise"
    if kind == "moved":
        shares = {"clicks": TOTAL - level, "conversions": level}
        parts = [
            f"{share:.0%} of the {what}" for what, share in shares.items() if share
        ]
        return f"noise in {joined(parts)}"
    return KINDS[kind].title.format(level)


def cases_of(study: Study) -> list[Case]:
    """The cases of the scale; those of a recorded table where there is one."""
    if study.tables is not None:
        return [(tags["noise"], tags["level"]) for tags in study.recorded_tags(NAME)]
    levels = study.scale.noise.items()
    return [CLEAN, *((kind, level) for kind, some in levels for level in some)]


def of_different_logs(cases: Sequence[Case]) -> list[Case]:
    """The first case of each log: accidents alone are an end of "moved" too."""
    first: dict[frozenset[tuple[str, float]], Case] = {}
    for case in cases:
        first.setdefault(frozenset(options(*case).items()), case)
    return list(first.values())


def find(study: Study) -> Finding:
    rows, seeds = study.scale.rows, study.scale.finals
    arms = carried_arms(study)
    rivals = [arm.name for arm in arms if arm.name != OURS]
    points = chosen_settings(study, synthetic(study.place, rows), arms)
    parts: dict[Case, pl.DataFrame] = {}
    for kind, level in cases_of(study):
        data = synthetic(study.place, rows, options=options(kind, level))
        tags = {"noise": kind, "level": level}
        parts[kind, level] = runs_of_choice(
            study, NAME, data, arms, points, seeds, tags
        )
    distinct = {case: parts[case] for case in of_different_logs(list(parts))}
    comparisons = [
        ({"Noise": title(*case)}, part, task, OURS, rival)
        for case, part in distinct.items()
        for rival in rivals
        for task in HEADS
    ]
    tests = paired_tests(comparisons, TRUTH[0])
    runs = f"MMoE, mean of {counted(seeds, 'seed')}, settings chosen without noise"
    blocks: list[TableBlock | Picture] = [
        TableBlock(
            _means(distinct),
            f"Expected AUC against the true probabilities ({runs}; CTR / CTCVR)",
        ),
        TableBlock(
            tests_texts(tests),
            f"{arm_title(OURS)} minus each rival, 95% intervals over paired seeds (p "
            f"after Holm over all {tests.height})",
        ),
    ]
    for kind, levels in study.scale.noise.items():
        if len(levels) > 1:
            blocks.append(_picture(parts, kind, levels, rivals))
    table = decisions_table(
        [
            decision(
                f"the log has {title(*case)}, you want conversions in order",
                part,
                "ctcvr",
                TRUTH[0],
            )
            for case, part in distinct.items()
        ]
    )
    return Finding(answer(tests), blocks, decisions=table)


def _means(parts: dict[Case, pl.DataFrame]) -> pl.DataFrame:
    rows = []
    for case, part in parts.items():
        counts = [part.filter(task=task)[POSITIVES][0] for task in HEADS]
        row = {
            "Noise": title(*case),
            "Clicks / conversions to train on": " / ".join(f"{n:,.0f}" for n in counts),
        }
        for loss in part["loss"].unique(maintain_order=True):
            means = [
                part.filter((pl.col("loss") == loss) & (pl.col("task") == task))
                for task in HEADS
            ]
            row[arm_title(loss)] = " / ".join(
                f"{mean[TRUTH[0]].mean():.4f}" for mean in means
            )
        rows.append(row)
    return pl.DataFrame(rows)


def _picture(
    parts: dict[Case, pl.DataFrame],
    kind: str,
    levels: Sequence[float],
    rivals: Sequence[str],
) -> Picture:
    """PWiseR minus each rival over the levels of a kind of noise."""
    first = [] if kind == "moved" else [(0.0, parts[CLEAN])]
    at = [*first, *((level, parts[kind, level]) for level in levels)]
    rows = []
    for task in HEADS:
        for rival in rivals:
            for level, part in at:
                gap = average_difference(part, task, OURS, rival, TRUTH[0])
                line = (task, f"minus {arm_title(rival)}", level)
                rows.append((*line, gap.value, gap.low, gap.high))
    return Picture(
        interval_lines(
            line_rows(rows),
            KINDS[kind].axis,
            f"expected AUC of {arm_title(OURS)}",
            zero="as the rival",
            percent=kind != "position_bias",
        ),
        f"{arm_title(OURS)} minus each rival by {kind.replace('_', ' ')}.",
        f"Funnel with noise: {KINDS[kind].axis}; above 0 PWiseR is better.",
    )


def answer(tests: pl.DataFrame) -> str:
    """Where PWiseR gains most, and what it beats and loses to, after Holm."""
    gaps = tests.filter(pl.col("low").is_not_null())
    if gaps.is_empty():
        return "Too few seeds for intervals."
    sentences = []
    to_bce = gaps.filter(pl.col("baseline") == "bce")
    for task in HEADS:
        of_task = to_bce.filter(pl.col("task") == task).sort("difference")
        most = of_task.row(-1, named=True)
        p = most["p_holm"]
        sure = "significant" if p < 0.05 else "not significant"
        gains = "gains most over" if most["difference"] > 0 else "loses least to"
        sentences.append(
            f"In {task.upper()} it {gains} BCE with {most['Noise']}: "
            f"{gap_text(most)}, {sure} after Holm."
        )
    for is_bce, who in ((True, "BCE"), (False, "a tuned rival")):
        of_rivals = gaps.filter((pl.col("baseline") == "bce") == is_bce)
        if of_rivals.is_empty():
            continue
        sure = of_rivals.filter(pl.col("p_holm") < 0.05)
        rows = sure.rows(named=True)
        better = [_where(row) for row in rows if row["difference"] > 0]
        worse = [_where(row) for row in rows if row["difference"] < 0]
        sentences.append(
            f"It beats {who} significantly "
            f"{f'in {joined(better)}' if better else 'nowhere'} and loses to it "
            f"{f'in {joined(worse)}' if worse else 'nowhere'} "
            f"({of_rivals.height} comparisons)."
        )
    head = f"PWiseR on the CTCVR head, {gaps.height} comparisons."
    return " ".join([head, *sentences])


def _where(row: dict) -> str:
    rival = "" if row["baseline"] == "bce" else f" against {arm_title(row['baseline'])}"
    return f"{row['task'].upper()} with {row['Noise']}{rival} ({gap_text(row)})"


EXPERIMENT = Experiment(
    NAME,
    "Noise",
    "With accidental clicks, bots, position bias, delayed conversions or noisy "
    "conversions in the log, where does PWiseR gain most, and does it ever beat a "
    "tuned rival?",
    find,
)
