"""10,000 mutated lines: each refused with its number, or parsed as a slow parser does.

The compiled loop, the line-by-line explanation and the slow parser implement one
grammar; they must agree on every line.
"""

import random
from collections import defaultdict

import numpy as np
import pytest

from pwiser_jax.data.aliccp.line_format import Names
from pwiser_jax.data.aliccp.lines import EDGE, find_bad
from pwiser_jax.data.aliccp.raw import (
    COMMON_COLUMNS,
    SKELETON_COLUMNS,
    RawReader,
    _parsed,
)
from pwiser_jax.data.aliccp.triples import parse
from tests.data.aliccp.slow_reader import (
    ITEM,
    ITEM_LISTS,
    USER,
    USER_LISTS,
    raw_files,
    slow_line,
)

MARKS = [b"\x01", b"\x02", b"\x03", b",", b"\n", b"\r", b"\0", b" ", b".", b"e", b"-"]
BYTES = [*MARKS, b"0", b"9", b"a", b"_", b"\x80", b"\xc3\xa9", b"+", b"/", b":"]
SNIPPETS = [
    b"2147483647",
    b"2147483648",
    b"00000000000",
    b"1.5e5",
    b"1e39",
    b"3.4028235e38",
    b"1.",
    b".5",
    b"nan",
    b"\x01101\x021\x031.0",
    b"\x01205\x0299999999\x032.5",
    b"\x01210\x02123456789\x0312.3456789",
    b"\x01x\x02",
    b"\x01109_14\x02",
]


def mutated(dice: random.Random, line: bytes) -> bytes:
    """The line with one to three changes; it may be two lines then, or none."""
    for _ in range(dice.choice([1, 1, 1, 2, 3])):
        at = dice.randrange(len(line) + 1)
        choice = dice.randrange(7)
        if choice == 0:
            line = line[:at] + dice.choice(BYTES) + line[at + 1 :]
        elif choice == 1:
            line = line[:at] + dice.choice(BYTES + SNIPPETS) + line[at:]
        elif choice == 2:
            line = line[:at] + line[at + dice.choice([1, 1, 2, 9]) :]
        elif choice == 3:
            line = line[:at]
        elif choice == 4:
            end = at + dice.randrange(30)
            line = line[:end] + line[at:end] + line[end:]
        elif choice == 5:
            marks = [k for k, byte in enumerate(line) if byte in b"\x01\x02\x03,"]
            if marks:
                at = dice.choice(marks)
                line = line[:at] + dice.choice(MARKS) + line[at + 1 :]
        else:
            line = line[:at] + bytes([dice.randrange(256)]) + line[at + 1 :]
    return line


@pytest.mark.parametrize("lists", [True, False])
@pytest.mark.parametrize("kind", ["common_features", "sample_skeleton"])
def test_mutated_lines(kind: str, lists: bool) -> None:
    dice = random.Random(f"{kind} {lists}")
    good = [line.encode() for line in raw_files(7)[f"{kind}_train.csv"]]
    good += [line[: dice.randrange(60)] for line in good[:20]]
    reader = RawReader(None, with_lists=lists, width=9, strict=False)  # pyright: ignore
    common = kind == "common_features"
    columns = COMMON_COLUMNS if common else SKELETON_COLUMNS
    read, names = (
        (reader._common, reader._user) if common else (reader._skeleton, reader._item)
    )
    single, several = (USER, USER_LISTS) if common else (ITEM, ITEM_LISTS)
    wanted = single + (several if lists else [])
    refused = parsed = 0
    for _ in range(2_500):
        text = mutated(dice, dice.choice(good)) + b"\n"
        # Mutated lines between good ones, which must not make up for each other.
        before, after = dice.choice(good[:40]), dice.choice(good[:40])
        text = b"\n".join([before, text + after]) + b"\n"
        unix = text.replace(b"\r\n", b"\n")
        rows = [
            slow_line(line, len(columns), wanted, single + several)
            for line in unix[:-1].split(b"\n")
        ]
        array = np.frombuffer(EDGE + text + EDGE, np.uint8)
        found = _parsed(array, read, columns, names)
        unix_array = np.frombuffer(EDGE + unix + EDGE, np.uint8)
        bad = find_bad(unix_array, columns, names)
        wrong = [at for at, row in enumerate(rows) if row is None]
        if wrong:
            assert not isinstance(found, tuple), text
            assert bad is not None, text
            assert bad[0] == wrong[0], text
            assert bad[1]
            refused += 1
            continue
        assert bad is None, text
        assert isinstance(found, tuple), text
        block, _ = found
        parsed += 1
        assert len(block) == len(rows)
        for at, (values, triples) in enumerate(rows):
            index = int(values[0 if common else 3], 16)
            assert int(block.index[at]) == index
            own = defaultdict(list)
            for name, id_, weight in triples:
                own[name].append((weight, id_))
            for k, name in enumerate(single):
                best = max(own[name], key=lambda x: (x[0], -x[1]), default=(0.0, -1))
                cell = block.features.weight[k, at], block.features.single[k, at]
                assert cell == best, (text, name)
            for name in several if lists else []:
                own_list = block.features.lists[name][at : at + 1]
                pairs = list(zip(own_list.weights, own_list.ids, strict=True))
                best_9 = sorted(own[name], key=lambda x: (-x[0], x[1]))[:9]
                assert pairs == best_9, (text, name)
            if not common:
                assert [str(block.click[at]), str(block.conversion[at])] == values[1:3]
        unknown = [t for _, triples in rows for t in triples if t[0] not in single]
        unknown = [t for t in unknown if t[0] not in several]
        assert block.features.unknown == len(unknown)
    assert refused > 500
    assert parsed > 200


def test_a_weight_is_what_python_reads_rounded_once() -> None:
    dice = random.Random(0)
    texts = ["0.6931471805599453", "0" * 30 + ".5", "999999999999999", "1e-45", "0"]
    for _ in range(3_000):
        digits = str(dice.randrange(10 ** dice.randrange(1, 22)))
        point = dice.randrange(len(digits) + 1)
        text = f"{digits[:point]}.{digits[point:]}" if digits[point:] else digits
        text = f"0{text}" if text.startswith(".") else text
        texts.append(text + dice.choice(["", "", "", "e-7", "E12"]))
    lines = [f"{'0' * 16},1,205\x021\x03{text}\n".encode() for text in texts]
    block = np.frombuffer(EDGE + b"".join(lines) + EDGE, np.uint8)
    found = parse(block, COMMON_COLUMNS, Names(["205"], ["205"]))
    expected = np.array([float(text) for text in texts]).astype(np.float32)
    np.testing.assert_array_equal(found.weight, expected)
