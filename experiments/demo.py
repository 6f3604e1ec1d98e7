"""The main job on a built-in synthetic funnel, in minutes: `make demo`.

The paper's table with three seeds: see `paper_table`.
"""

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from experiments.all import experiment_of, report
from experiments.lib.commands import run_command
from experiments.lib.datasets import CONFIGS, Dataset
from experiments.lib.study import SCALES, Study
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.options import Parser


def _make(output: Path) -> None:
    """Higher rates than a shop's: short runs need enough conversions."""
    prepare_synthetic(
        output,
        rows=50_000,
        click_rate=0.2,
        conversion_rate=0.2,
        users=1_000,
        items=300,
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.demo", description=__doc__)
    parser.add_argument(
        "--output",
        type=Path,
        default=Path("runs/demo"),
        help="the folder of the report; a run that stopped there resumes",
    )
    output = parser.parse(argv).output
    study = Study(
        output=output,
        runs=output / "cells",
        scale=replace(SCALES["standard"], seeds=3),
        datasets=[
            Dataset(
                "synthetic",
                "synthetic data",
                output / "data",
                CONFIGS / "synthetic",
                _make,
            )
        ],
    )
    chosen = [experiment_of("paper_table")]
    return run_command(parser.prog, partial(report, study, chosen, "make demo"))


if __name__ == "__main__":
    sys.exit(main())
