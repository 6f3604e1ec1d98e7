"""Predict the probability of every task for each row of a file."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from pwiser_jax.options import Parser

COMPILES = True


def add_options(parser: Parser, argv: Sequence[str]) -> None:
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument(
        "--input",
        type=Path,
        required=True,
        help="prepared Parquet, or a raw CSV or Parquet with the fields' columns",
    )
    parser.add_argument("--output", type=Path, required=True, help="a Parquet file")


def run(options: Namespace) -> int:
    from pwiser_jax.inference.predict import predict_file

    rows = predict_file(options.run, options.input, options.output)
    print(f"{rows:,} rows to {options.output}")
    return 0
