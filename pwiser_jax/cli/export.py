"""Write a run's model as one StableHLO file that jax alone can serve."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from pwiser_jax.options import Parser

COMPILES = True


def add_options(parser: Parser, argv: Sequence[str]) -> None:
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="the file to write; OUTPUT.json beside it documents inputs and outputs",
    )
    parser.add_argument(
        "--overwrite", type=bool, default=False, help="replace existing files"
    )


def run(options: Namespace) -> int:
    from pwiser_jax.inference.export import export

    about = export(options.run, options.output, overwrite=options.overwrite)
    print(f"{options.output}, documented by {about}")
    return 0
