"""Predict the probability of every task for each row of a file or folder."""

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
        help="raw rows (CSV, TSV, Parquet, a folder of such files, or a dataset's raw "
        "files), or a prepared folder or one of its files",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        help="the file to write; its name ends in .parquet or .csv",
    )
    parser.add_argument(
        "--keep",
        type=str,
        default="",
        help="columns of the input to copy, such as user_id,item_id",
    )
    parser.add_argument(
        "--overwrite", type=bool, default=False, help="replace an existing output"
    )


def run(options: Namespace) -> int:
    from pwiser_jax.host import prepare_host
    from pwiser_jax.inference.predict import predict_file

    prepare_host()
    keep = [name.strip() for name in options.keep.split(",") if name.strip()]
    predicted = predict_file(
        options.run,
        options.input,
        options.output,
        keep=keep,
        overwrite=options.overwrite,
    )
    unseen = {name: count for name, count in predicted.unseen.items() if count}
    if unseen:
        counts = ", ".join(f"{name} {count:,}" for name, count in unseen.items())
        print(f"values that the run's training rows do not have: {counts}")
    print(f"{predicted.rows:,} rows to {options.output}")
    return 0
