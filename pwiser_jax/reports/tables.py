"""Results of runs, summarised over seeds and against a baseline of the same seeds.

Results are in long form, one row per finished run and task, with the columns

    dataset, model, loss    what ran; every other setting is equal
    seed                    pairs the runs of two losses
    task                    "ctr", "ctcvr", "cvr", ...
    auc, log_loss, ...      measures, null where not defined
    reason                  why the measures are null (may be absent)
    run, config_hash        the run folder and its config hash

A summary has one row per dataset, model, task and loss, in order of first appearance,
so that the losses of one model and task are adjacent.
"""

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from rich import box
from rich.table import Table
from rich.text import Text

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
    "reason": pl.String,
}
# Formats of numbers by the unit in the brackets of a column's name.
UNITS = {"ms": ",.1f", "µs": ",.1f", "KiB": ",.0f", "%": ".1%"}
DIGITS = ".4f"  # of any other number
# Columns that a narrow terminal leaves out, in this order.
SPARE = ("Runs", "SD")
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
        baseline: loss that the others are compared with.
        metric: column to summarise.

    Returns:
        dataset, model, task, loss; runs: number of runs with the measure; mean and sd
        over them (n - 1); pairs: seeds that the baseline of the same dataset, model and
        task has too; difference, low, high: mean of measure - baseline over the pairs,
        and its 95% paired t interval; seeds: of the runs, in order. Null where not
        defined: sd and interval of one run, differences of the baseline itself;
        reason: why the measure of no run is defined.

    Raises:
        ValueError: a column is missing, or two rows have one dataset, model, task,
            loss and seed.
    """
    cells = _cells(results, metric)
    reasons = _reasons(results)
    rows = [
        (
            *_row(key, values, cells.get((*key[:3], baseline), {}), baseline),
            None if values else reasons.get(key),
        )
        for key, values in cells.items()
    ]
    return pl.DataFrame(rows, schema=SCHEMA, orient="row")


def significance(
    results: pl.DataFrame,
    baseline: str = "bce",
    metric: str = "auc",
    difference: float = 0.001,
) -> pl.DataFrame:
    """Tests of every cell's difference to the baseline.

    Args:
        results, baseline, metric: as in `summary`.
        difference: difference that `seeds` should detect.

    Returns:
        One row per cell that is not the baseline's and has at least two pairs: dataset,
        model, task, loss, pairs; difference, low, high: mean and 95% t interval; sd of
        the differences; p, wilcoxon: of the paired t test and the signed-rank test;
        p_holm, wilcoxon_holm: the same corrected for the number of rows here; seeds:
            number of pairs that detect `difference` with 80% power at this sd.

    Raises:
        ValueError: as `summary`.
    """
    cells = _cells(results, metric)
    rows = []
    for key, values in cells.items():
        a, b = _pairs(values, cells.get((*key[:3], baseline), {}))
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


def _reasons(results: pl.DataFrame) -> dict[Any, str]:
    """Why a measure is null, by cell."""
    if "reason" not in results.columns:
        return {}
    rows = results.filter(pl.col("reason").is_not_null())
    return {row[:-1]: row[-1] for row in rows.select(*CELL, "reason").rows()}


def _pairs(
    values: dict[int, float], others: dict[int, float]
) -> tuple[list[float], list[float]]:
    """The measures of the common seeds."""
    shared = sorted(values.keys() & others.keys())
    return [values[s] for s in shared], [others[s] for s in shared]


def formatted(
    table: pl.DataFrame, decimals: int = 4, metric: str = "AUC"
) -> pl.DataFrame:
    """Formats a summary as texts, for all output formats.

    The dataset is a column only where there are several. Differences carry a sign and
    their interval. Undefined values are en dashes, with their reason.
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
            f"Mean {metric}": _text(row["mean"], number, row["reason"]),
            "SD": _text(row["sd"], number),
            "Difference [95% interval]": difference_text(
                row["difference"], row["low"], row["high"], number
            ),
        }
        if table["dataset"].n_unique() <= 1:
            del texts["Dataset"]
        rows.append(texts)
    return pl.DataFrame(rows)


def tests_table(tests: pl.DataFrame) -> pl.DataFrame:
    """`significance` as texts, in few columns."""
    several = tests["dataset"].n_unique() > 1
    rows = [
        ({"Dataset": row["dataset"]} if several else {})
        | {
            "Model": row["model"],
            "Task": row["task"].upper(),
            "Loss": row["loss"],
            "Pairs": str(row["pairs"]),
            "Difference [95% interval]": difference_text(
                row["difference"], row["low"], row["high"]
            ),
            "p, t test (Holm)": p_text(row["p_holm"]),
            "p, signed ranks (Holm)": p_text(row["wilcoxon_holm"]),
            "Seeds to see .001": f"{row['seeds']:,}",
        }
        for row in tests.iter_rows(named=True)
    ]
    return pl.DataFrame(rows)


def p_text(p: float) -> str:
    """A p value to three digits."""
    if math.isnan(p):
        return UNDEFINED
    return "<.001" if p < 0.001 else f"{p:.3f}"


def as_texts(table: pl.DataFrame) -> pl.DataFrame:
    """Formats cells as texts: digits by the column's unit, null as a dash.

    The unit stands in the column's name: "time [ms]", "share [%]" (of a share from 0 to
    1); see UNITS.
    """
    return table.select(
        pl.Series(name, [_cell(value, name) for value in table[name]], pl.String)
        for name in table.columns
    )


def _cell(value: Any, name: str) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return UNDEFINED
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        unit = name.rpartition("[")[2].rstrip("]") if name.endswith("]") else ""
        return _text(value, UNITS.get(unit, DIGITS))
    return str(value)


def write_csv(table: pl.DataFrame, path: Path) -> None:
    """Writes a summary or results as CSV in full precision, atomically."""
    write_whole(path, table.write_csv())


def to_markdown(texts: pl.DataFrame) -> str:
    """A table of texts as Markdown; columns of numbers are aligned to the right."""
    cells = [texts.columns, *as_texts(texts).rows()]
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in cells]
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


def to_rich(
    texts: pl.DataFrame, title: str | None = None, width: int | None = None
) -> Table:
    """A table of texts for the terminal, with a line between models.

    Args:
        texts: the table.
        title: title above the table.
        width: width of the terminal. A wider table loses the columns SPARE. Names are
            not interpreted as markup, and never cut.
    """
    spare = [name for name in SPARE if name in texts.columns]
    while width and spare and _least_width(texts) > width:
        texts = texts.drop(spare.pop(0))
    table = Table(
        title=Text(title, "table.title") if title else None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,
    )
    breaks = width is not None and _least_width(texts) > width
    for name in texts.columns:
        number = is_numeric(texts[name])
        table.add_column(
            Text(name),
            justify="right" if number else "left",
            no_wrap=number,
            overflow="fold",
            min_width=None if breaks and not number else _longest_word(texts[name]),
        )
    blocks = [name for name in ("Dataset", "Model") if name in texts.columns]
    keys = texts.select(blocks).rows() if blocks else [()] * len(texts)
    for k, row in enumerate(as_texts(texts).rows()):
        last = k + 1 == len(keys) or keys[k] != keys[k + 1]
        table.add_row(*map(Text, row), end_section=last)
    return table


def _least_width(texts: pl.DataFrame) -> int:
    """Width of the narrowest table that breaks no word."""
    return sum(_longest_word(texts[name]) + 2 for name in texts.columns)


def _longest_word(column: pl.Series) -> int:
    """A number with its interval is one word."""
    cells = as_texts(column.to_frame()).to_series().to_list()
    words = cells if is_numeric(column) else [w for cell in cells for w in cell.split()]
    return max((len(word) for word in [*words, *column.name.split()]), default=1)


def is_numeric(column: pl.Series) -> bool:
    """Whether a column of texts or numbers is right-aligned."""
    if column.dtype.is_numeric():
        return True
    texts = [str(cell) for cell in column if cell is not None]
    return bool(texts) and all(
        text.startswith(UNDEFINED) or text.lstrip(f"+-<.{MINUS}")[:1].isdigit()
        for text in texts
    )


def _row(key: tuple, values: dict, others: dict, baseline: str) -> tuple[object, ...]:
    of_seeds = np.array(list(values.values()), np.float64)
    a, b = ([], []) if key[3] == baseline else _pairs(values, others)
    gap = paired_interval(a, b)
    numbers = [
        float(of_seeds.mean()) if len(of_seeds) else math.nan,
        float(of_seeds.std(ddof=1)) if len(of_seeds) > 1 else math.nan,
        gap.value,
        gap.low,
        gap.high,
    ]
    mean, sd, *difference = (None if math.isnan(x) else x for x in numbers)
    seeds = " ".join(map(str, sorted(values)))
    return (*key, len(of_seeds), mean, sd, len(a), *difference, seeds)


def _text(value: float | None, number: str, reason: str | None = None) -> str:
    if value is None:
        return f"{UNDEFINED} ({reason})" if reason else UNDEFINED
    return number_text(value, number)


def number_text(value: float, number: str) -> str:
    """A number with a true minus sign; one that rounds to zero has no sign."""
    text = format(value, number)
    zero = not text.strip("+-0.,%")
    return text.lstrip("+-") if zero else text.replace("-", MINUS)


def difference_text(
    value: float | None, low: float | None, high: float | None, number: str = ".4f"
) -> str:
    """+0.0021 [−0.0003, +0.0045]; an en dash if undefined."""
    if value is None or math.isnan(value):
        return UNDEFINED
    ends = (None if x is None or math.isnan(x) else x for x in (low, high))
    texts = [_text(end, "+" + number) for end in ends]
    return f"{_text(value, '+' + number)} [{', '.join(texts)}]"
