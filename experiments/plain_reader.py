"""The yardstick of `bench_prepare`: Ali-CCP read by plain Python, one line at a time.

    python -m experiments.plain_reader SOURCE 18

It does what scripts for this dataset do: splits lines, makes a dict of each, joins the
common features by a dict, counts ids, and encodes train and test into lists of numbers.
It writes nothing and checks nothing.
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
    with_lists = fields == 23
    user: set[str] = set(USER_SINGLE)
    item: set[str] = set(ITEM_SINGLE)
    user_lists: set[str] = set(USER_LISTS if with_lists else ())
    item_lists: set[str] = set(ITEM_LISTS if with_lists else ())
    counts = {name: Counter() for name in user | item | user_lists | item_lists}
    halves = {}
    for half in ("train", "test"):
        common, rows, times = {}, [], Counter()
        with (source / f"common_features_{half}.csv").open() as file:
            for line in file:
                key, _, text = line.rstrip("\n").split(",")
                common[key] = features(text, user, user_lists)
        with (source / f"sample_skeleton_{half}.csv").open() as file:
            for line in file:
                _, click, bought, key, _, text = line.rstrip("\n").split(",")
                own = features(text, item, item_lists)
                rows.append((click, bought, key, own))
                if half == "train":
                    times[key] += 1
                    for name, value in own.items():
                        if name in item:
                            counts[name][value] += 1
                        else:
                            counts[name].update(id_ for _, id_ in value)
        # What a line holds counts once for each of its rows.
        for key, count in times.items():
            for name, value in common[key].items():
                for id_ in [value] if name in user else [i for _, i in value]:
                    counts[name][id_] += count
        halves[half] = common, rows
    ids = {
        name: {
            id_: at
            for at, id_ in enumerate(
                sorted(i for i, n in own.items() if n >= MIN_COUNT)
            )
        }
        for name, own in counts.items()
    }
    done = 0
    for common, rows in halves.values():
        shared = {
            key: [_encoded(own.get(name), ids[name]) for name in (*user, *user_lists)]
            for key, own in common.items()
        }
        encoded = [
            (
                int(click),
                int(bought),
                shared[key],
                [_encoded(own.get(name), ids[name]) for name in (*item, *item_lists)],
            )
            for click, bought, key, own in rows
        ]
        done += len(encoded)
    return done


def _encoded(value: Any, ids: dict[str, int]) -> Any:
    if isinstance(value, list):
        return [(ids.get(id_, -1), -weight) for weight, id_ in value]
    return ids.get(value, -1)


if __name__ == "__main__":
    print(read(Path(sys.argv[1]), int(sys.argv[2])))
