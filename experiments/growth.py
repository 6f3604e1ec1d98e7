"""How the effect grows: with the number of conversions, and with the batch size.

    python -m experiments.all --full --only growth --output runs/comparison
    python -m experiments.all --full --only growth --growth_rows 10000 100000 \\
        --batch_sizes 256 4096 --output runs/comparison

Four arms with the settings that the comparison chose, on synthetic funnels of other
sizes, trained to the end; and with other batch sizes at equal epochs and at equal
steps, with a bank of conversions and with at least 8 conversions in each batch. The
settings are carried over from one size, learning rate included.
"""

from collections.abc import Mapping, Sequence
from itertools import product

import polars as pl

from experiments.comparison import (
    HEADS,
    POSITIVES,
    TRUTH,
    carried_arms,
    chosen_settings,
    runs_of_choice,
)
from experiments.lib.arms import VARIANTS, arm_title, arm_titles
from experiments.lib.datasets import Dataset, synthetic
from experiments.lib.paired import (
    decision,
    decisions_table,
    gap_text,
    paired_tests,
    tests_texts,
)
from experiments.lib.study import Experiment, Finding, Study
from experiments.lib.words import counted, joined, line_rows
from pwiser_jax.reports.html import Picture, TableBlock
from pwiser_jax.reports.plots import interval_lines

NAME = "growth"
OURS = "pwiser ctcvr"
BANK = VARIANTS[f"{OURS}, bank"]
AWARE_BCE = VARIANTS["bce, 8 conversions"]
AWARE = VARIANTS[f"{OURS}, 8 conversions"]
EPOCHS = 10  # at equal epochs
STEPS = 300  # at equal steps, rounded up to whole epochs
LENGTHS = ("epochs", "steps")


def find(study: Study) -> Finding:
    arms = carried_arms(study)
    others = [arm.name for arm in arms[1:]]
    funnel = synthetic(study.place, study.scale.rows)
    points = dict(chosen_settings(study, funnel, arms))
    more = (BANK, AWARE_BCE, AWARE)
    points |= {arm.name: points[arm.name.partition(",")[0]] for arm in more}
    scale = study.scale
    row_counts, lengths = sizes(study)
    by_rows = {
        rows: runs_of_choice(
            study,
            NAME,
            synthetic(study.place, rows),
            arms,
            points,
            scale.seeds,
            {"rows": rows},
        )
        for rows in row_counts
    }
    larger = synthetic(study.place, 2 * scale.rows)
    by_batch = {
        (length, size): runs_of_choice(
            study,
            NAME,
            larger,
            [*arms, *more],
            points,
            scale.seeds,
            {"batch": size, "equal": length},
            _length(larger, size, length),
        )
        for length, size in lengths
    }
    baselines = {arm.name: arm.baseline for arm in (*arms, *more)}
    of_rows = paired_tests(
        [
            (
                {"Rows": f"{rows:,}", "Conversions": f"{_conversions(part):,}"},
                part,
                task,
                name,
                "bce",
            )
            for rows, part in by_rows.items()
            for name in others
            for task in HEADS
        ],
        TRUTH[0],
    )
    of_batch = paired_tests(
        [
            (
                {"Equal": length, "Batch": f"{size:,}"},
                part,
                task,
                name,
                baselines[name],
            )
            for (length, size), part in by_batch.items()
            for name in (*others, BANK.name, AWARE.name)
            for task in HEADS
        ],
        TRUTH[0],
    )
    some = next(iter([*by_rows.values(), *by_batch.values()]))
    runs = (
        f"MMoE, {counted(some['seed'].n_unique(), 'paired seed')}, settings chosen at "
        f"{scale.rows:,} rows"
    )
    blocks: list[TableBlock | Picture] = []
    if len(by_rows) > 1:
        blocks.append(
            _picture(
                of_rows.with_columns(_number("Conversions")),
                "conversions to train on",
                f"Expected AUC minus BCE by the number of conversions; {runs}.",
            )
        )
    blocks.append(
        TableBlock(
            tests_texts(of_rows),
            f"By rows, trained to the end: difference of the expected AUC ({runs}; p "
            f"after Holm over all {of_rows.height})",
        )
    )
    table = decisions_table(
        [
            decision(
                f"{_conversions(part):,} conversions to train on (CTCVR AUC)",
                part,
                "ctcvr",
                TRUTH[0],
            )
            for part in by_rows.values()
        ]
    )
    if by_batch:
        blocks += _batch_blocks(by_batch, of_batch, runs, scale.rows)
    return Finding(answer(of_rows, of_batch), blocks, decisions=table)


def _batch_blocks(
    by_batch: Mapping[tuple[str, int], pl.DataFrame],
    tests: pl.DataFrame,
    runs: str,
    rows: int,
) -> list[TableBlock | Picture]:
    """Pictures and tables by batch size."""
    blocks: list[TableBlock | Picture] = []
    for length in LENGTHS if tests["Batch"].n_unique() > 1 else ():
        part = tests.filter(pl.col("Equal") == length)
        blocks.append(
            _picture(
                part.with_columns(_number("Batch")),
                f"rows of a batch, at equal {length}",
                f"Expected AUC minus BCE on the same batches, at equal {length} "
                f"({_said(length)}); {runs}.",
            )
        )
    return [
        *blocks,
        TableBlock(
            _means(by_batch),
            f"By batch size, {2 * rows:,} rows: expected AUC (CTR / CTCVR; {runs})",
        ),
        TableBlock(
            tests_texts(tests),
            "By batch size: difference of the expected AUC to BCE on the same batches "
            f"(p after Holm over all {tests.height})",
        ),
    ]


def sizes(study: Study) -> tuple[Sequence[int], Sequence[tuple[str, int]]]:
    """Numbers of rows, and lengths with batch sizes; of a recorded table, its own."""
    if study.tables is None:
        lengths = product(LENGTHS, study.scale.batch_sizes)
        return study.scale.growth_rows, list(lengths)
    recorded = study.recorded_tags(NAME)
    rows = {tags["rows"] for tags in recorded if "rows" in tags}
    lengths = {(tags["equal"], tags["batch"]) for tags in recorded if "batch" in tags}
    return sorted(rows), sorted(lengths)


def _length(dataset: Dataset, size: int, length: str) -> tuple[str, ...]:
    """The options of runs of a batch size at equal epochs or at equal steps."""
    epochs = EPOCHS
    if length == "steps":
        rows = 0.6 * int(dataset.folder.name.split("_")[1])
        epochs = max(1, round(STEPS * size / rows))
    return (
        f"--data.batch_size={size}",
        f"--train.epochs={epochs}",
        f"--train.patience={epochs}",
    )


def _said(length: str) -> str:
    return (
        f"{EPOCHS} epochs"
        if length == "epochs"
        else f"about {STEPS} steps, and at least an epoch"
    )


def _conversions(part: pl.DataFrame) -> int:
    """Conversions to train on."""
    return int(part.filter(pl.col("task") == "ctcvr")[POSITIVES][0])


def _number(name: str) -> pl.Expr:
    return pl.col(name).str.replace_all(",", "").cast(pl.Float64).alias("x")


def _picture(tests: pl.DataFrame, x: str, caption: str) -> Picture:
    rows = tests.select("task", "loss", "x", "difference", "low", "high").rows()
    return Picture(
        interval_lines(
            line_rows(rows),
            x,
            "expected AUC minus BCE",
            zero="as BCE",
            log=True,
            titles=arm_titles(tests["loss"]),
        ),
        f"Difference of AUC to BCE by {x}, a line an arm.",
        caption,
    )


def _means(parts: Mapping[tuple[str, int], pl.DataFrame]) -> pl.DataFrame:
    rows = []
    for (length, size), part in parts.items():
        row = {"Equal": length, "Batch": f"{size:,}"}
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


def answer(of_rows: pl.DataFrame, of_batch: pl.DataFrame) -> str:
    """PWiseR minus BCE at each size, and what is significant at any batch size."""
    ours = of_rows.filter((pl.col("loss") == OURS) & (pl.col("task") == "ctcvr"))
    each = "; ".join(
        f"{row['Conversions']} conversions: {gap_text(row)}"
        for row in ours.rows(named=True)
    )
    sentences = [f"PWiseR on the CTCVR head minus BCE, in CTCVR AUC: {each}."]
    sure = [row for row in of_rows.rows(named=True) if row["p_holm"] < 0.05]
    sentences.append(
        "After Holm "
        + (
            joined(
                [
                    f"{arm_title(row['loss'])} differs from BCE in "
                    f"{row['task'].upper()} with {row['Conversions']} conversions "
                    f"({gap_text(row)})"
                    for row in sure
                ]
            )
            if sure
            else f"none of the {of_rows.height} differences by size is significant"
        )
        + "."
    )
    for length in LENGTHS if of_batch.height else ():
        part = of_batch.filter(pl.col("Equal") == length)
        sure = [row for row in part.rows(named=True) if row["p_holm"] < 0.05]
        named = [
            f"{arm_title(row['loss'])} in {row['task'].upper()} at {row['Batch']} rows "
            f"({gap_text(row)})"
            for row in sure
        ]
        sentences.append(
            f"By batch size at equal {length}, "
            + (
                f"these differ from BCE: {joined(named)}."
                if named
                else f"none of {part.height} differences to BCE is significant."
            )
        )
    return " ".join(sentences)


EXPERIMENT = Experiment(
    NAME,
    "How it grows",
    "How does the effect change with the number of conversions and the batch size, at "
    "equal epochs and at equal steps?",
    find,
)
