"""Measure a run's best checkpoint on a split."""

import json
from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from pwiser_jax.options import Parser

COMPILES = True


def add_options(parser: Parser, argv: Sequence[str]) -> None:
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument(
        "--split", choices=["valid", "test"], default="valid", help="rows to measure on"
    )
    parser.add_argument(
        "--data",
        type=Path | None,
        help="a prepared folder of the same encoding; default: the run's",
    )


def run(options: Namespace) -> int:
    from pwiser_jax.inference.evaluate import evaluate_run

    report = evaluate_run(options.run, options.split, data=options.data)
    print(json.dumps(report, indent=2, allow_nan=False))
    return 0
