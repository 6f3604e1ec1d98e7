"""The main job on a built-in synthetic funnel, in minutes: `make demo`.

The paper's table with three seeds: see `paper_table`.
"""

import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.all import report
from experiments.commands import ended
from experiments.datasets import CONFIGS, Dataset
from experiments.paper_table import PAPER_TABLE
from experiments.study import SCALES, Study
from pwiser_jax.data.synthetic import prepare_synthetic

OUTPUT = Path("runs/demo")


def _make(output: Path) -> None:
    """More clicks and conversions than in a shop: minutes must show something."""
    prepare_synthetic(
        output,
        rows=50_000,
        click_rate=0.2,
        conversion_rate=0.2,
        users=1_000,
        items=300,
    )


if __name__ == "__main__":
    study = Study(
        output=OUTPUT,
        runs=OUTPUT / "cells",
        scale=replace(SCALES["standard"], seeds=3),
        datasets=[Dataset("synthetic", OUTPUT / "data", CONFIGS / "synthetic", _make)],
    )
    work = partial(report, study, [PAPER_TABLE], "make demo")
    sys.exit(ended("experiments.demo", work))
