"""Raw files in the publishers' exact formats, at any size, for tests and benchmarks.

    python -m experiments.bench.raw.make_raw aliexpress --rows 5000000 --output /tmp/ae
    python -m experiments.bench.raw.make_raw aliccp --rows 5000000 --output /tmp/aliccp

Rates, cardinalities, long tails and grouping follow the published data, but rows are
random: models trained on them are meaningless. The same options give the same bytes.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.bench.raw.raw_aliccp import make_aliccp
from experiments.bench.raw.raw_aliexpress import RATES, make_aliexpress
from pwiser_jax.options import Parser


def _parser() -> Parser:
    parser = Parser(prog="experiments.bench.raw.make_raw", description=__doc__)
    datasets = parser.add_subcommands(required=True, dest="dataset")
    aliexpress = Parser(description="{cc}_{user,item}_{train,test}.csv")
    aliexpress.add_argument("--country", choices=list(RATES), default="nl")
    aliccp = Parser(description="{sample_skeleton,common_features}_{train,test}.csv")
    aliccp.add_argument(
        "--lines", type=int | None, help="common lines of train; default: in proportion"
    )
    aliccp.add_argument(
        "--test_rows", type=int | None, help="default: in proportion to the published"
    )
    for name, dataset in {"aliexpress": aliexpress, "aliccp": aliccp}.items():
        dataset.add_argument("--output", type=Path, required=True, help="a folder")
        dataset.add_argument("--rows", type=int, default=100_000, help="of train")
        dataset.add_argument("--seed", type=int, default=0)
        datasets.add_subcommand(name, dataset, help=dataset.description)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    options = parser.parse(argv)
    chosen = options[options.dataset]
    if chosen.rows < 1:
        parser.error(f"--rows is {chosen.rows}; expected 1 or more")
    chosen.output.mkdir(parents=True, exist_ok=True)
    makers = {"aliexpress": make_aliexpress, "aliccp": make_aliccp}
    given = {key: value for key, value in vars(chosen).items() if key != "output"}
    makers[options.dataset](chosen.output, **given)
    for path in sorted(chosen.output.iterdir()):
        print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
