"""Generated raw files of Ali-CCP: its formats, rates, cardinalities and long tails.

A user has a few common lines; a common line has consecutive rows. Ids have a long tail:
P(one of the first k of n ids) = sqrt(k / n). Clicks depend on the user and the item's
category, so that models can learn.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from pwiser_jax.data.raw.hashing import hash_integers

# Published: rows, common lines, clicks, conversions after a click and without one.
TRAIN_ROWS, TRAIN_LINES = 42_300_135, 730_600
TEST_ROWS, TEST_LINES = 43_016_840, 884_212
CONVERSIONS_OF_CLICKS = 8_802 / 1_644_256
CONVERSIONS_WITHOUT_CLICK = 230 / 42_300_135
FIRST_CTR, LAST_CTR = 0.047, 0.032

LINES_PER_USER = 1.75
MOST_TRIPLES = 2_700
BLOCK_LINES = 4_000


@dataclass(frozen=True)
class Field:
    """Ids first .. first + size - 1; `share` of lines have one, or all `mean`."""

    name: str
    first: int
    size: int
    share: float = 1.0
    mean: float = 1.0
    values: str = "one"


USER_FIELDS = (
    Field("101", 1, 440_000),
    Field("121", 3_438_657, 98, 0.98),
    Field("122", 3_438_755, 14, 0.98),
    Field("124", 3_438_769, 3, 0.97),
    Field("125", 3_438_772, 6, 0.97),
    Field("126", 3_438_778, 4, 0.7),
    Field("127", 3_438_782, 4, 0.97),
    Field("128", 3_864_885, 3, 0.97),
    Field("129", 3_864_888, 5, 0.97),
    Field("109_14", 445_000, 12_300, mean=62, values="count"),
    Field("110_14", 458_000, 2_980_000, mean=195, values="count"),
    Field("127_14", 3_439_000, 420_000, mean=118, values="count"),
    Field("150_14", 3_864_900, 100_000, mean=142, values="fraction"),
)
ITEM_FIELDS = (
    Field("205", 4_000_000, 4_300_000),
    Field("206", 8_310_000, 12_000),
    Field("207", 8_330_000, 900_000, 0.92),
    Field("216", 9_240_000, 300_000, 0.74),
    Field("301", 9_550_000, 4),
    Field("508", 9_560_000, 9_000, 0.8, values="count"),
    Field("509", 9_570_000, 300_000, 0.28, values="count"),
    Field("702", 9_880_000, 150_000, 0.36, values="count"),
    Field("853", 10_040_000, 90_000, 0.29, values="fraction"),
    Field("210", 10_140_000, 100_000, mean=5.7),
)
COUNTS = 1 + np.minimum(np.random.default_rng(0).geometric(0.45, 4_000) ** 2, 500)
TEXTS = {
    "one": ["1.0"],
    "count": [repr(round(float(x), 5)) for x in np.log(COUNTS)],
    "fraction": [
        repr(round(float(x), 5))
        for x in np.random.default_rng(1).gamma(2.5, 0.8, 20_000)
    ],
}
OFFSETS = dict(zip(TEXTS, np.cumsum([0, *map(len, TEXTS.values())])[:-1], strict=True))
TEXT = pl.Series([text for texts in TEXTS.values() for text in texts])


def make_aliccp(
    folder: Path, rows: int, *, seed: int, lines: int | None, test_rows: int | None
) -> None:
    """Writes the four files with `rows` train rows and, by default, the published
    numbers of test rows and common lines in proportion."""
    train_lines = lines or max(round(rows * TRAIN_LINES / TRAIN_ROWS), 1)
    test = round(rows * TEST_ROWS / TRAIN_ROWS) if test_rows is None else test_rows
    test_lines = max(round(test * train_lines / rows * TEST_LINES / TRAIN_LINES), 1)
    for at, (split, count, common) in enumerate(
        (("train", rows, train_lines), ("test", test, test_lines))
    ):
        with (
            (folder / f"common_features_{split}.csv").open("wb") as users,
            (folder / f"sample_skeleton_{split}.csv").open("wb") as skeleton,
        ):
            maker = _Maker(np.random.default_rng([seed, at]), users, skeleton)
            done = 0
            for first in range(0, common, BLOCK_LINES):
                last = min(first + BLOCK_LINES, common)
                share = round(count * last / common) - done
                ids = np.arange(first, last) + (at << 40)
                maker.block(ids, share, done, count)
                done += share


@dataclass(frozen=True)
class _Maker:
    rng: np.random.Generator
    users: BinaryIO
    skeleton: BinaryIO

    def block(self, lines: np.ndarray, rows: int, done: int, total: int) -> None:
        """Appends common lines and `rows` rows of them to both files."""
        keys = pl.Series([f"{key:016x}" for key in hash_integers(lines, 7).tolist()])
        user = (lines & ((1 << 40) - 1)) / LINES_PER_USER
        user = hash_integers(user.astype(np.int64), 8)
        given = {"101": (user % np.uint64(USER_FIELDS[0].size)).astype(np.int64)}
        activity = self.rng.lognormal(-0.32, 0.8, len(lines))
        order = self.rng.permutation(len(lines))
        features, counts = self._features(USER_FIELDS, len(lines), given, activity)
        self._write(self.users, [keys, counts, features], order)

        share = self.rng.lognormal(-0.5, 1, len(lines))
        picked = self.rng.choice(len(lines), rows, p=share / share.sum())
        line = np.sort(picked)
        item = self._skewed(ITEM_FIELDS[0].size, rows)
        given = {"205": item} | {
            field.name: (hash_integers(item, at) % np.uint64(field.size)).astype("i8")
            for at, field in enumerate(ITEM_FIELDS[1:4])
        }
        features, counts = self._features(ITEM_FIELDS, rows, given, np.ones(rows))
        taste = np.exp(_effect(user[line]) + _effect(given["206"]))
        ctr = np.linspace(FIRST_CTR, LAST_CTR, total)[done : done + rows]
        click = self.rng.random(rows) < ctr * taste / taste.mean()
        bought = self.rng.random(rows) < np.where(
            click, CONVERSIONS_OF_CLICKS, CONVERSIONS_WITHOUT_CLICK
        )
        columns = [
            pl.Series(np.arange(done + 1, done + rows + 1)),
            pl.Series(click).cast(pl.Int8),
            pl.Series(bought).cast(pl.Int8),
            keys.gather(line),
            counts,
            features,
        ]
        self._write(self.skeleton, columns, None)

    def _skewed(self, size: int, rows: int) -> np.ndarray:
        return (size * self.rng.random(rows) ** 2).astype(np.int64)

    def _features(
        self,
        fields: tuple[Field, ...],
        lines: int,
        given: dict[str, np.ndarray],
        activity: np.ndarray,
    ) -> tuple[pl.Series, pl.Series]:
        """The text of each line's triples, and their numbers.

        Args:
            fields: the fields of the lines, in any order.
            lines: number of lines.
            given: ids from 0 of the fields that are not drawn.
            activity: scales the number of values of multi-valued fields.
        """
        parts = []
        for at in self.rng.permutation(len(fields)).tolist():
            field = fields[at]
            if field.mean == 1:
                line = np.flatnonzero(self.rng.random(lines) < field.share)
                ids = given.get(field.name)
                ids = self._skewed(field.size, len(line)) if ids is None else ids[line]
            else:
                line, ids = self._lists(field, activity)
            texts = len(TEXTS[field.values])
            text = OFFSETS[field.values] + self.rng.integers(texts, size=len(line))
            ids = field.first + (ids * 7_919) % field.size
            parts.append((line, np.full(len(line), at), ids, text))
        line, at, ids, text = (
            np.concatenate(part) for part in zip(*parts, strict=True)
        )
        names = pl.Series([f"{field.name}\x02" for field in fields])
        frame = pl.DataFrame({"line": line.astype(np.int32), "id": ids}).select(
            "line",
            pl.concat_str(
                names.gather(at), pl.col("id"), pl.lit("\x03"), TEXT.gather(text)
            ).alias("text"),
        )
        joined = (
            frame.group_by("line")
            .agg(pl.col("text").str.join("\x01"), pl.len())
            .sort("line")
        )
        empty = pl.DataFrame({"line": np.arange(lines, dtype=np.int32)})
        joined = empty.join(joined, on="line", how="left", maintain_order="left")
        return joined["text"].fill_null(""), joined["len"].fill_null(0)

    def _lists(
        self, field: Field, activity: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Line and id of each value; the ids of a line are distinct."""
        most = field.mean * MOST_TRIPLES / 530
        counts = np.minimum(self.rng.poisson(field.mean * activity), int(most) + 30)
        line = np.repeat(np.arange(len(counts)), counts)
        rank = np.arange(len(line)) - np.repeat(np.cumsum(counts) - counts, counts)
        place = (rank + self.rng.random(len(line))) / counts[line]
        ids = (field.size * place**2).astype(np.int64)
        new = np.ones(len(line), bool)
        new[1:] = (ids[1:] != ids[:-1]) | (line[1:] != line[:-1])
        return line[new], ids[new]

    def _write(
        self, file: BinaryIO, columns: list[pl.Series], order: np.ndarray | None
    ) -> None:
        frame = pl.DataFrame({str(at): column for at, column in enumerate(columns)})
        frame = frame if order is None else frame[order]
        frame.write_csv(file, include_header=False, quote_style="never")


def _effect(ids: np.ndarray) -> np.ndarray:
    """Roughly normal, standard deviation 0.5, a function of the id."""
    parts = [hash_integers(ids, seed) * 2.0**-64 for seed in (20, 21, 22)]
    return np.sum(parts, axis=0) - 1.5
