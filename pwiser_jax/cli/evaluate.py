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
    parser.add_argument(
        "--sessions",
        type=bool,
        default=False,
        help="also measure the ranking within each group: GAUC and NDCG of conversions,"
        " with intervals over groups",
    )
    parser.add_argument(
        "--price",
        type=str | None,
        help="an extra column of the data, the price of a conversion: adds revenue@1"
        " and revenue@3 by group, and NDCG is that of revenue",
    )
    parser.add_argument(
        "--json", type=bool, default=False, help="print every measure as JSON"
    )


def run(options: Namespace) -> int:
    from pwiser_jax.host import prepare_host
    from pwiser_jax.inference.evaluate import evaluate_run, summary

    prepare_host()
    evaluation = evaluate_run(
        options.run,
        options.split,
        data=options.data,
        sessions=options.sessions,
        price=options.price,
    )
    if options.json:
        print(json.dumps(evaluation.to_dict(), indent=2, allow_nan=False))
    else:
        print(summary(evaluation))
    return 0
