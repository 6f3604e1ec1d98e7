"""Results of runs, summarised over seeds and against a baseline of the same seeds.

Results come in long form, one row a finished run and task, with the columns

    dataset, model, loss    what ran; every other setting is equal
    seed                    pairs the runs of two losses
    task                    "ctr", "ctcvr", "cvr", ...
    auc, log_loss, ...      measures, null where not defined
    run, config_hash        where the row comes from

A summary has one row a dataset, model, task and loss, in the order in which they first
appear, so that the losses of one model and task stand under each other.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich.table import Table

from pwiser_jax.atomic import write_whole
from pwiser_jax.metrics import (
    holm,
    paired_interval,
    paired_test,
    seeds_needed,
    wilcoxon_test,
)

UNDEFINED, MINUS = "\N{EN DASH}", "\N{MINUS SIGN}"
CELL = ["dataset", "model", "task", "loss"]
SCHEMA: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(CELL, pl.String),
    "runs": pl.Int64,
    "mean": pl.Float64,
    "sd": pl.Float64,
    "pairs": pl.Int64,
    "difference": pl.Float64,
    "low": pl.Float64,
    "high": pl.Float64,
    "seeds": pl.String,
}
TESTS: dict[str, type[pl.DataType]] = {
    **dict.fromkeys(CELL, pl.String),
    "pairs": pl.Int64,
    **dict.fromkeys(("difference", "low", "high", "sd", "p", "wilcoxon"), pl.Float64),
    "seeds": pl.Int64,
}


def summary(
    results: pl.DataFrame, baseline: str = "bce", metric: str = "auc"
) -> pl.DataFrame:
    """Mean and spread of a measure over seeds, and its difference to the baseline.

    Args:
        results: the table described above.
        baseline: the loss that the others are compared with.
        metric: the column that is summarised.

    Returns:
        dataset, model, task, loss; runs: how many have the measure; mean and sd over
        them (n - 1); pairs: seeds that the baseline of the same dataset, model and
        task has too; difference, low, high: mean of measure - baseline over the pairs,
        and its 95% paired t interval; seeds: of the runs, in order. Null where not
        defined: sd and interval of one run, differences of the baseline itself.

    Raises:
        ValueError: a column is missing, or two rows have one dataset, model, task,
            loss and seed.
    """
    cells = _cells(results, metric)
    rows = [
        _row(key, own, cells.get((*key[:3], baseline), {}), baseline)
        for key, own in cells.items()
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def significance(
    results: pl.DataFrame,
    baseline: str = "bce",
    metric: str = "auc",
    difference: float = 0.001,
) -> pl.DataFrame:
    """Is the difference to the baseline more than chance? Tests of every cell.

    Args:
        results, baseline, metric: as in `summary`.
        difference: that `seeds` is about.

    Returns:
        A row a cell that is not the baseline's and has at least two pairs: dataset,
        model, task, loss, pairs; difference, low, high: mean and 95% t interval; sd of
        the differences; p, wilcoxon: of the paired t test and the signed-rank test;
        p_holm, wilcoxon_holm: the same corrected for the number of rows here; seeds:
        how many pairs would show `difference` with 80% power at this sd.

    Raises:
        ValueError: as `summary`.
    """
    cells = _cells(results, metric)
    rows = []
    for key, own in cells.items():
        a, b = _pairs(own, cells.get((*key[:3], baseline), {}))
        if key[3] == baseline or len(a) < 2:
            continue
        gap = paired_interval(a, b)
        sd = float(np.std(np.subtract(a, b), ddof=1))
        tests = paired_test(a, b), wilcoxon_test(a, b)
        numbers = len(a), gap.value, gap.low, gap.high, sd, *tests
        rows.append((*key, *numbers, seeds_needed(sd, difference)))
    table = pl.DataFrame(rows, schema=TESTS, orient="row")
    return table.select(
        *[name for name in TESTS if name != "seeds"],
        pl.Series("p_holm", holm(table["p"].to_numpy())),
        pl.Series("wilcoxon_holm", holm(table["wilcoxon"].to_numpy())),
        "seeds",
    )


def _cells(results: pl.DataFrame, metric: str) -> dict[Any, dict[int, float]]:
    """The measure by seed of every cell, in the order of a summary."""
    missing = sorted({*CELL, "seed", metric} - set(results.columns))
    if missing:
        raise ValueError(f"results have no column {', '.join(missing)}")
    twice = results.filter(results.select(*CELL, "seed").is_duplicated())
    if len(twice):
        row = twice.row(0, named=True)
        names = ", ".join(f"{name} {row[name]}" for name in [*CELL, "seed"])
        raise ValueError(f"results hold more than one run of {names}")
    cells = {
        key: dict(rows.filter(pl.col(metric).is_finite()).select("seed", metric).rows())
        for key, rows in results.group_by(CELL, maintain_order=True)
    }
    position = {
        name: {
            value: k
            for k, value in enumerate(results[name].unique(maintain_order=True))
        }
        for name in CELL
    }
    order = sorted(
        cells, key=lambda key: [position[n][k] for n, k in zip(CELL, key, strict=True)]
    )
    return {key: cells[key] for key in order}


def _pairs(
    own: dict[int, float], others: dict[int, float]
) -> tuple[list[float], list[float]]:
    """The measures of the seeds that both have."""
    shared = sorted(own.keys() & others.keys())
    return [own[s] for s in shared], [others[s] for s in shared]


def formatted(
    table: pl.DataFrame, decimals: int = 4, metric: str = "AUC"
) -> pl.DataFrame:
    """A summary as the texts that every written form shows.

    A dataset column only where there are several. Differences carry a sign and their
    interval; what is not defined is an en dash.
    """
    number = f".{decimals}f"
    rows = []
    for row in table.iter_rows(named=True):
        texts = {
            "Dataset": row["dataset"],
            "Model": row["model"],
            "Task": row["task"].upper(),
            "Loss": row["loss"],
            "Runs": str(row["runs"]),
            f"Mean {metric}": _text(row["mean"], number),
            "SD": _text(row["sd"], number),
            "Difference [95% interval]": difference_text(
                row["difference"], row["low"], row["high"], number
            ),
        }
        if table["dataset"].n_unique() <= 1:
            del texts["Dataset"]
        rows.append(texts)
    return pl.DataFrame(rows)


def write_csv(table: pl.DataFrame, path: Path) -> None:
    """Write a summary or results as CSV in full precision, whole or not at all."""
    write_whole(path, table.write_csv())


def to_markdown(texts: pl.DataFrame) -> str:
    """A table of texts as Markdown; columns of numbers are aligned to the right."""
    cells = [texts.columns, *texts.rows()]
    escaped = [[str(cell).replace("|", "\\|") for cell in row] for row in cells]
    widths = [max(map(len, column)) for column in zip(*escaped, strict=True)]
    right = [is_numeric(texts[name]) for name in texts.columns]
    rule = [
        "-" * (max(width, 3) - 1) + (":" if end else "-")
        for width, end in zip(widths, right, strict=True)
    ]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(max(width, 3)) if end else cell.ljust(max(width, 3))
            for cell, width, end in zip(row, widths, right, strict=True)
        )
        + " |"
        for row in (escaped[0], rule, *escaped[1:])
    ]
    return "\n".join(lines) + "\n"


def to_rich(texts: pl.DataFrame, title: str | None = None) -> Table:
    """A table of texts for the terminal, with a line between models."""
    table = Table(title=title, title_justify="left")
    for name in texts.columns:
        justify = "right" if is_numeric(texts[name]) else "left"
        table.add_column(name, justify=justify, no_wrap=is_numeric(texts[name]))
    blocks = [name for name in ("Dataset", "Model") if name in texts.columns]
    keys = texts.select(blocks).rows() if blocks else [()] * len(texts)
    for k, row in enumerate(texts.rows()):
        last = k + 1 == len(keys) or keys[k] != keys[k + 1]
        table.add_row(*map(str, row), end_section=last)
    return table


def is_numeric(column: pl.Series) -> bool:
    """Whether a column of texts or numbers is one to align to the right."""
    if column.dtype.is_numeric():
        return True
    texts = [str(cell) for cell in column if cell is not None]
    return bool(texts) and all(
        text == UNDEFINED or text.lstrip(f"+-{MINUS}")[:1].isdigit() for text in texts
    )


def _row(key: tuple, values: dict, others: dict, baseline: str) -> tuple[object, ...]:
    own = np.array(list(values.values()), np.float64)
    a, b = ([], []) if key[3] == baseline else _pairs(values, others)
    gap = paired_interval(a, b)
    numbers = [
        float(own.mean()) if len(own) else math.nan,
        float(own.std(ddof=1)) if len(own) > 1 else math.nan,
        gap.value,
        gap.low,
        gap.high,
    ]
    mean, sd, *difference = (None if math.isnan(x) else x for x in numbers)
    seeds = " ".join(map(str, sorted(values)))
    return (*key, len(own), mean, sd, len(a), *difference, seeds)


def _text(value: float | None, number: str) -> str:
    return UNDEFINED if value is None else format(value, number).replace("-", MINUS)


def difference_text(
    value: float | None, low: float | None, high: float | None, number: str = ".4f"
) -> str:
    """+0.0021 [−0.0003, +0.0045]; an en dash for what is not defined."""
    if value is None or math.isnan(value):
        return UNDEFINED
    ends = (None if x is None or math.isnan(x) else x for x in (low, high))
    texts = [_text(end, "+" + number) for end in ends]
    return f"{_text(value, '+' + number)} [{', '.join(texts)}]"
