"""Convert raw files into a prepared folder: Parquet files and a manifest."""

import os
from collections.abc import Sequence

from jsonargparse import Namespace

from pwiser_jax.data.datasets import DATASETS, preparer
from pwiser_jax.options import Parser


def add_options(parser: Parser, argv: Sequence[str]) -> None:
    words = [word for word in argv if not word.startswith("-")][1:2]
    datasets = parser.add_subcommands(required=True, dest="dataset")
    # Readers take a while to import: a known name imports its own reader alone.
    for name in words if words and words[0] in DATASETS else DATASETS:
        function = preparer(name)
        about = (function.__doc__ or "").split("\n\n")[0]
        dataset = Parser(description=about)
        datasets.add_subcommand(name, dataset, help=about)
        if words == [name]:
            dataset.add_function_arguments(function, as_group=False, skip={"each"})
        if name == "table":
            dataset.add_argument(
                "--cluster",
                type=str | None,
                help="prepare a folder of parts on a Ray cluster: local (this machine),"
                " auto (the one that this machine belongs to) or HOST:PORT of its head;"
                " needs the extra [cluster]",
            )


def run(options: Namespace) -> int:
    # Not vars(): an option named as a method ("items") has another key there.
    given = options[options.dataset].as_dict()
    cluster = given.pop("cluster", None)
    if cluster is None:
        manifest = preparer(options.dataset)(**given)
    else:
        from pwiser_jax.training.cluster.calls import calls_on

        given["source"] = os.path.abspath(given["source"])
        with calls_on(cluster, given["output"]) as each:
            manifest = preparer(options.dataset)(**given, each=each)
    for name, split in manifest.splits.items():
        labels = ", ".join(
            f"{count:,} {label}s" for label, count in split.labels.items()
        )
        print(f"{name}: {split.rows:,} rows, {labels}")
    for reason, count in manifest.dropped.items():
        print(f"{reason.replace('_', ' ')}: {count:,} rows")
    for what, count in manifest.options.get("counted", {}).items():
        print(f"{what.replace('_', ' ')}: {count:,}")
    for name, sizes in manifest.options.get("hashed", {}).items():
        from pwiser_jax.data.prepared.vocabulary import Hashed

        hashed = Hashed(**sizes)
        print(
            f"{name}: about {hashed.values:,} values are hashed into {hashed.ids:,} "
            f"ids, as the vocabularies exceed --vocabulary-mib; about "
            f"{hashed.shared:,} values share their id with another"
        )
    if moved := manifest.options.get("moved"):
        largest = sorted(moved, key=lambda name: -abs(moved[name]))[:3]
        shown = ", ".join(f"{name} {moved[name]:+.2f}" for name in largest)
        print(
            "numericals keep the run's scaling; the means of the new train rows differ "
            f"from its by at most, in its standard deviations: {shown}"
        )
    return 0
