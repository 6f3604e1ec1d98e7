"""Write a first schema file for your own table, guessed from its columns."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from pwiser_jax.options import Parser


def add_options(parser: Parser, argv: Sequence[str]) -> None:
    parser.add_argument(
        "file",
        type=Path,
        help="a CSV, TSV or Parquet file, or a folder of Parquet files",
    )
    parser.add_argument(
        "--output", type=Path, required=True, help="the YAML file to write"
    )


def run(options: Namespace) -> int:
    from pwiser_jax.data.datasets.schema_draft import write_schema

    write_schema(options.file, options.output)
    print(f"{options.output}: check each line, then prepare table --schema reads it")
    return 0
