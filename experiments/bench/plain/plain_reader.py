"""Prepares Ali-CCP in plain Python, line by line: the baseline of `bench.prepare`.

    python -m experiments.bench.plain.plain_reader SOURCE OUTPUT 18

It follows the public scripts for this dataset, in the same order:

1. a dict of all features of each common line, kept in memory;
2. for each row a dict of all its features, joined with that of its common line; the
   wanted fields are written as a line of CSV, and those of train's rows are counted;
3. the ids that occur often enough are numbered, and the CSV is read again and written
   with these numbers.

With 18 fields a dict keeps the last value of a field, as in those scripts. With 23,
which they do not support, the five multi-valued fields keep the values of largest
weight. It checks nothing and has no validation split.
"""

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

from pwiser_jax.data.aliccp.fields import (
    ITEM_LISTS,
    ITEM_SINGLE,
    USER_LISTS,
    USER_SINGLE,
)

SINGLE = (*USER_SINGLE, *ITEM_SINGLE)
LISTS = (*USER_LISTS, *ITEM_LISTS)
HALVES = ("train", "test")
MIN_COUNT, MAX_VALUES = 10, 20


def features(text: str) -> dict[str, str]:
    """Field -> its last id."""
    parts = re.split("[\x01\x02\x03]", text)
    return dict(zip(parts[0::3], parts[1::3], strict=False))


def features_with_lists(text: str) -> dict[str, str]:
    """As `features`; multi-valued fields keep the heaviest ids, "id:weight|..."."""
    parts = re.split("[\x01\x02\x03]", text)
    ids, lists = {}, defaultdict(list)
    for field, id_, weight in zip(parts[0::3], parts[1::3], parts[2::3], strict=False):
        if field in LISTS:
            lists[field].append((-float(weight), id_))
        else:
            ids[field] = id_
    for field, values in lists.items():
        heaviest = sorted(values)[:MAX_VALUES]
        ids[field] = "|".join(f"{id_}:{-weight}" for weight, id_ in heaviest)
    return ids


def prepare(source: Path, output: Path, fields: int) -> int:
    """Writes the encoded rows of both halves; returns their number."""
    read = features if fields == 18 else features_with_lists
    columns = SINGLE if fields == 18 else SINGLE + LISTS
    counts: dict[str, Counter[str]] = {name: Counter() for name in columns}
    for half in HALVES:
        common = {}
        with (source / f"common_features_{half}.csv").open() as lines:
            for line in lines:
                key, _, text = line.rstrip("\n").split(",")
                common[key] = read(text)
        with (
            (source / f"sample_skeleton_{half}.csv").open() as lines,
            (output / f"{half}.joined.csv").open("w") as joined,
        ):
            for line in lines:
                _, click, bought, key, _, text = line.rstrip("\n").split(",")
                row = read(text)
                row.update(common[key])
                values = [row.get(name, "") for name in columns]
                joined.write(",".join([click, bought, *values]) + "\n")
                if half == "train":
                    for name, value in zip(columns, values, strict=True):
                        if name in LISTS:
                            for pair in value.split("|"):
                                counts[name][pair.partition(":")[0]] += 1
                        else:
                            counts[name][value] += 1

    ids: dict[str, dict[str, int]] = {}
    for name, counter in counts.items():
        kept = sorted(id_ for id_, count in counter.items() if count >= MIN_COUNT)
        ids[name] = {id_: at for at, id_ in enumerate(kept)}

    rows = 0
    for half in HALVES:
        with (
            (output / f"{half}.joined.csv").open() as lines,
            (output / f"{half}.csv").open("w") as encoded,
        ):
            for line in lines:
                click, bought, *values = line.rstrip("\n").split(",")
                numbers = [click, bought]
                for name, value in zip(columns, values, strict=True):
                    numbering = ids[name]
                    if name in LISTS:
                        pairs = [pair.partition(":") for pair in value.split("|")]
                        numbers.append(
                            "|".join(
                                f"{numbering.get(id_, len(numbering))}:{weight}"
                                for id_, _, weight in pairs
                            )
                        )
                    else:
                        numbers.append(str(numbering.get(value, len(numbering))))
                encoded.write(",".join(numbers) + "\n")
                rows += 1
    return rows


if __name__ == "__main__":
    folder = Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    print(prepare(Path(sys.argv[1]), folder, int(sys.argv[3])))
