"""Show what a prepared folder holds, in the terminal and as pictures."""

from collections.abc import Sequence
from pathlib import Path

from jsonargparse import Namespace

from pwiser_jax.options import Parser


def add_options(parser: Parser, argv: Sequence[str]) -> None:
    parser.add_argument("folder", type=Path, help="a folder that prepare wrote")
    parser.add_argument(
        "--batch_size",
        type=int,
        default=2048,
        help="rows of a batch when conversions in batches are counted",
    )
    parser.add_argument(
        "--output",
        type=Path | None,
        help="a folder for the PNG files; default: FOLDER/inspect, where those of an "
        "earlier call are replaced",
    )
    parser.add_argument(
        "--overwrite",
        type=bool,
        default=False,
        help="replace existing PNG files in OUTPUT",
    )


def run(options: Namespace) -> int:
    from rich.console import Console

    from pwiser_jax.reports.inspection.show import inspect

    output = options.output or options.folder / "inspect"
    overwrite = options.overwrite or options.output is None
    inspect(options.folder, options.batch_size, output, Console(), overwrite=overwrite)
    return 0
