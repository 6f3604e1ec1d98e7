"""A slow reference reader of Ali-CCP: line by line, an independent implementation."""

import random
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from pwiser_jax.data.raw.hashing import hash_integers

USER = ["101", "121", "122", "124", "125", "126", "127", "128", "129"]
ITEM = ["205", "206", "207", "216", "508", "509", "702", "853", "301"]
USER_LISTS = ["109_14", "110_14", "127_14", "150_14"]
ITEM_LISTS = ["210"]
KINDS = ("common_features", "sample_skeleton")
HALVES = ("train", "test")

Triple = tuple[str, str, str]
Files = dict[str, list[str]]


def slow_line(line: bytes, columns: int, wanted: list[str], known: list[str]) -> Any:
    """The columns and triples of a line of bytes, or None where it is bad.

    Triples of fields that are not wanted are (name, None, None).
    """
    try:
        text = line.decode("ascii")
    except UnicodeDecodeError:
        return None
    *values, features = text.split(",")
    forms = [r"\d{1,16}", "[01]", "[01]", "[0-9a-f]{16}", r"\d{1,16}"][-columns:]
    if columns == 2:
        forms = ["[0-9a-f]{16}", r"\d{1,16}"]
    if len(values) != columns:
        return None
    for value, form in zip(values, forms, strict=True):
        if re.fullmatch(form, value) is None:
            return None
    triples: list[Any] = []
    for triple in features.split("\x01") if features else []:
        if "\x02" not in triple:
            return None
        name, rest = triple.split("\x02", 1)
        if re.fullmatch("[0-9A-Za-z_]+", name) is None:
            return None
        if name not in known or name not in wanted:
            triples.append((name, None, None))
            continue
        parts = rest.split("\x03")
        if len(parts) != 2 or re.fullmatch(r"\d{1,10}", parts[0]) is None:
            return None
        if int(parts[0]) >= 2**31:
            return None
        if re.fullmatch(r"\d+(\.\d+)?([eE]-?\d+)?", parts[1]) is None:
            return None
        weight = float(parts[1])
        if weight > float(np.finfo(np.float32).max):
            return None
        triples.append((name, int(parts[0]), float(np.float32(weight))))
    return (values, triples) if len(triples) == int(values[-1]) else None


def line_of(columns: list[Any], triples: list[Triple]) -> str:
    features = "\x01".join(f"{f}\x02{i}\x03{v}" for f, i, v in triples)
    return ",".join(map(str, [*columns, len(triples), features]))


def raw_files(seed: int = 0, lines: int = 60, rows: int = 900) -> Files:
    """Small files with every oddity that is not a mistake."""
    dice = random.Random(seed)
    counts = ["0.69315", "1.09861", "1.38629", "2.3979", "1.0", "0.5", "12", "1e-05"]
    files: Files = {}
    for half in HALVES:
        users, skeleton, keys = [], [], []
        for at in range(lines):
            key = f"{dice.getrandbits(64):016x}"
            keys.append(key)
            triples: list[Triple] = [("101", str(1 + (at * 2) // 3), "1.0")]
            if at % 17 == 5:
                triples = []  # a user that is not known
            for k, name in enumerate(USER[1:]):
                if dice.random() < 0.9:
                    triples.append((name, str(1000 * k + dice.randrange(5)), "1.0"))
            for k, name in enumerate(USER_LISTS):
                ids = dice.sample(range(40), dice.randrange(12))
                first = 10_000 * (k + 1)
                triples += [
                    (name, str(first + x * x), dice.choice(counts)) for x in ids
                ]
            dice.shuffle(triples)
            users.append(line_of([key], triples))
        for at in range(rows):
            key = keys[min(int(dice.expovariate(4) * lines), lines - 1)]
            triples = []
            for k, name in enumerate(ITEM):
                if dice.random() < 0.8:
                    value = dice.choice(counts) if name >= "5" else "1.0"
                    number = 900_000 * k + int(dice.expovariate(0.1))
                    triples.append((name, str(number), value))
            for _ in range(dice.randrange(9)):
                number = 123_456_700 + int(dice.expovariate(0.1))
                triples.append(("210", str(number), dice.choice(counts)))
            if at % 40 == 7:  # a further value of a single-valued field
                triples.append(("205", str(dice.randrange(30)), "1.5"))
            if at % 50 == 9:  # fields that nobody knows
                triples += [("999", "1", "1.0"), ("a_long_name", "x", "y")]
            dice.shuffle(triples)
            click = int(dice.random() < 0.3)
            bought = int(click and dice.random() < 0.3)
            skeleton.append(line_of([at + 1, click, bought, key], triples))
        files[f"common_features_{half}.csv"] = users
        files[f"sample_skeleton_{half}.csv"] = skeleton
    return files


def write_files(folder: Path, files: Files) -> Path:
    folder.mkdir(exist_ok=True)
    for name, lines in files.items():
        text = "".join(f"{line}\n" for line in lines)
        (folder / name).write_bytes(text.encode("latin-1"))
    return folder


def expected(
    files: Files, *, min_count: int, width: int, valid_fraction: float
) -> dict[str, Any]:
    """What prepare should make: rows by split with decoded fields, and vocabularies."""
    fields = USER + USER_LISTS + ITEM + ITEM_LISTS
    splits: dict[str, list[dict[str, Any]]] = {"train": [], "valid": [], "test": []}
    for half in HALVES:
        common = {}
        for line in files[f"common_features_{half}.csv"]:
            (key, _), triples = slow_line(line.encode(), 2, fields, fields)
            common[key] = chosen(triples, USER, USER_LISTS, width)
        for line in files[f"sample_skeleton_{half}.csv"]:
            values, triples = slow_line(line.encode(), 5, fields, fields)
            key = values[3]
            row = common[key] | chosen(triples, ITEM, ITEM_LISTS, width)
            user = np.array([row["101"][0] if row["101"] else int(key, 16)], np.uint64)
            seed = 0 if row["101"] else 1
            row |= {"click": int(values[1]), "conversion": int(values[2])}
            row["group"] = int(hash_integers(user, seed).view(np.int64)[0])
            share = (int(hash_integers(user, seed)[0]) >> 11) * 2.0**-53
            name = "valid" if half == "train" and share < valid_fraction else half
            splits[name].append(row)
    vocabularies = {}
    for name in fields:
        seen: Counter[int] = Counter()
        for row in splits["train"]:
            if name in USER + ITEM:
                seen.update([row[name][0]] if row[name] else [])
            else:
                seen.update(i for i, _ in row[name])
        kept = sorted(i for i, n in seen.items() if n >= min_count)
        rare = sorted(i for i, n in seen.items() if n < min_count)
        vocabularies[name] = (kept, rare)
    for rows in splits.values():
        for row in rows:
            for name in fields:
                row[name] = encoded(row[name], name, vocabularies[name])
    return {"splits": splits, "vocabularies": vocabularies}


def chosen(
    triples: list[Any], singles: list[str], lists: list[str], width: int
) -> dict[str, Any]:
    found: dict[str, Any] = defaultdict(list)
    for name, id_, weight in triples:
        found[name].append((id_, weight))
    row: dict[str, Any] = {}
    for name in singles:
        heaviest = sorted(found[name], key=lambda value: (-value[1], value[0]))
        row[name] = heaviest[0] if heaviest else None
    for name in lists:
        heaviest = sorted(found[name], key=lambda value: (-value[1], value[0]))
        row[name] = heaviest[:width]
    for name in singles:
        row[f"D{name}"] = row[name][1] if row[name] else 0.0
    return row


def encoded(value: Any, name: str, vocabulary: tuple[list[int], list[int]]) -> Any:
    kept, rare = vocabulary

    def one(id_: int) -> int:
        if id_ in kept:
            return kept.index(id_)
        return len(kept) + (2 if id_ in rare else 1)

    if name in USER + ITEM:
        return one(value[0]) if value else len(kept)
    sums: dict[int, float] = defaultdict(float)
    for id_, weight in value:
        sums[one(id_)] += weight
    pairs = [(i, float(np.float32(w))) for i, w in sums.items()]
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))
