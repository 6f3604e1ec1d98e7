"""What the tables of all benchmarks share: where they come from, spreads, files."""

import os
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median

import polars as pl

from experiments.lib.measure import PACKAGES, machine
from pwiser_jax.atomic import write_whole
from pwiser_jax.reports.tables import write_csv


def spread(values: Sequence[float], digits: int = 2, unit: str = "") -> str:
    """The median of the rounds, and in brackets minimum and maximum.

    Args:
        values: one a round; without any the text is "-".
        digits: decimals.
        unit: after each number; "%" multiplies by 100.
    """
    if not len(values):
        return "-"
    scale = 100 if unit == "%" else 1
    low, middle, high = (
        f"{scale * value:,.{digits}f}{unit}"
        for value in (min(values), median(values), max(values))
    )
    return middle if len(values) == 1 else f"{middle} ({low} to {high})"


def origin(
    command: str, packages: Sequence[str] = PACKAGES, *, rounds: int | None = None
) -> str:
    """Sentences of a table's origin: command, date, machine. Called at the start, for
    the load average."""
    of = "" if rounds is None else f" {rounds} rounds: medians, in brackets minimum and"
    return (
        f"Made by `python -m experiments.bench.{command}` on {date.today()}."
        f"{of and of + ' maximum; ratios are of one round.'} Machine: "
        f"{machine(packages)}; load average at the start {os.getloadavg()[0]:.1f}."
    )


def write_results(output: Path, table: pl.DataFrame, text: str) -> None:
    """Writes `output`.csv, in full precision, and `output`.md."""
    write_csv(table, output.with_suffix(".csv"))
    write_whole(output.with_suffix(".md"), text.rstrip() + "\n")
