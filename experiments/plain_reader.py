"""The yardstick of `bench_prepare`: Ali-CCP read by plain Python, one line at a time.

    python -m experiments.plain_reader SOURCE 18

It does what scripts for this dataset do, step by step: split each line, make a dict of
its features, join the dict of its common line, count the ids of train's rows, encode
all rows into lists of numbers. It writes nothing and checks nothing.
"""

import sys
from collections import Counter
from pathlib import Path
from typing import Any

from pwiser_jax.data.aliccp_raw import ITEM_LISTS, ITEM_SINGLE, USER_LISTS, USER_SINGLE

Values = dict[str, Any]
MIN_COUNT, MAX_VALUES = 10, 20


def features(text: str, single: set[str], lists: set[str]) -> Values:
    """The wanted fields of a line: an id, or the heaviest ids with their weights."""
    found: Values = {}
    for triple in text.split("\x01"):
        field, rest = triple.split("\x02")
        if field in single:
            found[field] = rest.split("\x03")[0]
        elif field in lists:
            id_, weight = rest.split("\x03")
            found.setdefault(field, []).append((-float(weight), id_))
    for field in lists & found.keys():
        found[field] = sorted(found[field])[:MAX_VALUES]
    return found


def read(source: Path, fields: int) -> int:
    """Reads all rows; the number of them."""
    single: set[str] = {*USER_SINGLE, *ITEM_SINGLE}
    lists: set[str] = {*USER_LISTS, *ITEM_LISTS} if fields == 23 else set()
    halves = {}
    for half in ("train", "test"):
        common = {}
        with (source / f"common_features_{half}.csv").open() as file:
            for line in file:
                key, _, text = line.rstrip("\n").split(",")
                common[key] = features(text, single, lists)
        rows = []
        with (source / f"sample_skeleton_{half}.csv").open() as file:
            for line in file:
                _, click, bought, key, _, text = line.rstrip("\n").split(",")
                row = common[key] | features(text, single, lists)
                rows.append((int(click), int(bought), row))
        halves[half] = rows
    counts = {name: Counter() for name in single | lists}
    for _, _, row in halves["train"]:
        for name in single & row.keys():
            counts[name][row[name]] += 1
        for name in lists & row.keys():
            counts[name].update(id_ for _, id_ in row[name])
    ids: dict[str, dict[str, int]] = {}
    for name, own in counts.items():
        kept = sorted(id_ for id_, count in own.items() if count >= MIN_COUNT)
        ids[name] = {id_: at for at, id_ in enumerate(kept)}
    done = 0
    for rows in halves.values():
        encoded = [
            (
                click,
                bought,
                [ids[name].get(row.get(name), -1) for name in single],
                [
                    [(ids[name].get(id_, -1), -weight) for weight, id_ in row[name]]
                    for name in lists & row.keys()
                ],
            )
            for click, bought, row in rows
        ]
        done += len(encoded)
    return done


if __name__ == "__main__":
    print(read(Path(sys.argv[1]), int(sys.argv[2])))
