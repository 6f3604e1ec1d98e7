"""Generated raw files of AliExpress Search: realistic columns, random rows.

A search has one row in the user file and about `PER_SEARCH` in the item file; search
ids restart in test. Columns are drawn independently from the marginals below; labels
depend on a few numerical columns, so that models can learn.
"""

from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from pwiser_jax.data.datasets.aliexpress import (
    FIELD_SIZES,
    ITEM_COLUMNS,
    RAW_CATEGORICAL,
    RAW_NUMERICAL,
    USER_COLUMNS,
)

# Country: train rows in millions, clicks and conversions of a million rows.
RATES = {
    "nl": (12.2, 20_500, 730),
    "fr": (18.2, 18_700, 495),
    "us": (20.0, 14_500, 350),
    "es": (22.3, 25_600, 578),
}
TEST_SHARE = 0.3
PER_SEARCH = 12
BLOCK_SEARCHES = 20_000

# Categorical column: its most frequent id and that id's share; the rest fall off.
FREQUENT = (
    *((7, 1.0), (0, 0.92), (0, 0.81), (0, 0.72), (7, 0.72), (4, 0.9), (25, 0.16)),
    *((0, 0.73), (0, 0.46), (1, 0.71), (0, 0.72), (0, 0.78), (0, 0.88), (0, 0.91)),
    *((1, 0.54), (0, 0.996)),
)
# Numerical column: share of zeros; quantiles 0, 0.1, 0.5, 0.9 and 1 of the others.
LEVELS = (0.0, 0.1, 0.5, 0.9, 1.0)
QUANTILES = (
    (0.47, 0.023, 0.23, 1, 1, 1),
    (0.47, 0.042, 0.17, 1, 1, 1),
    (0.76, 0.047, 0.11, 0.63, 1, 1),
    (0.47, 0.091, 0.18, 0.67, 1, 1),
    (0.46, 0.091, 0.25, 0.75, 1, 1),
    (0.44, 0.091, 0.2, 0.6, 1, 1),
    (0.51, 0.045, 0.2, 0.7, 1, 1),
    (0.59, 0.071, 0.17, 0.64, 1, 1),
    (0.094, 0.01, 0.1, 0.21, 0.4, 0.73),
    (0.094, 0.01, 0.078, 0.13, 0.17, 0.32),
    (0.094, 0.011, 0.07, 0.1, 0.16, 0.24),
    (0.094, 0.016, 0.062, 0.091, 0.13, 0.69),
    (0.094, 0.02, 0.044, 0.084, 0.1, 0.27),
    (0.094, 0.016, 0.028, 0.075, 0.1, 0.34),
    (0.094, 0.01, 0.033, 0.067, 0.1, 0.27),
    (0.094, 0.01, 0.024, 0.061, 0.089, 0.31),
    (0.094, 0.012, 0.019, 0.054, 0.097, 0.29),
    (0.094, 0.01, 0.01, 0.053, 0.1, 0.21),
    (0.16, 0.077, 0.23, 0.39, 0.51, 0.75),
    (0.4, 0.17, 0.23, 0.4, 0.58, 0.89),
    (0.73, 0.17, 0.3, 0.43, 0.56, 0.77),
    (0.16, 0.00043, 0.097, 0.5, 0.98, 1),
    (0.54, 0.14, 0.19, 0.31, 0.49, 0.75),
    (0.37, 0.029, 0.083, 0.14, 0.2, 0.36),
    (0.76, 0.041, 0.087, 0.17, 0.33, 1),
    (0.48, 0.057, 0.14, 0.24, 0.41, 0.95),
    (0.22, 0.0061, 0.057, 0.15, 0.35, 1),
    (0.029, 0.25, 0.5, 0.64, 0.75, 0.91),
    (0.12, 0.05, 0.11, 0.3, 0.49, 0.99),
    (0.005, 0.00063, 0.056, 0.34, 0.88, 1),
    (0.22, 0.23, 0.41, 0.63, 0.78, 0.96),
    (0.34, 0.00055, 0.003, 0.011, 0.047, 0.33),
    (0.45, 0.0025, 0.017, 0.091, 0.24, 0.55),
    (0.075, 0.23, 0.48, 0.59, 0.67, 0.83),
    (0.0065, 0.021, 0.16, 0.5, 0.66, 1),
    (0.0095, 0.012, 0.034, 0.046, 0.061, 0.98),
    (0.34, 0.021, 0.023, 0.023, 0.023, 1),
    (0.45, 0.032, 0.18, 0.3, 0.43, 0.88),
    (0.45, 0.026, 0.18, 0.4, 0.8, 1),
    (0.45, 0.14, 0.41, 0.62, 0.83, 1),
    (0.6, 0.014, 0.15, 0.38, 0.66, 0.97),
    (0.88, 0.0011, 0.0044, 0.0067, 0.028, 0.3),
    (0.67, 0.00043, 0.0021, 0.01, 0.044, 0.22),
    (0.73, 0.5, 0.9, 1, 1, 1),
    (0.88, 0.5, 0.9, 1, 1, 1),
    (0.94, 0.05, 0.1, 0.2, 0.2, 0.3),
    (0.25, 0.029, 0.19, 0.52, 0.73, 0.99),
    (0.47, 0.093, 0.22, 0.35, 0.49, 0.88),
    (0.47, 0.001, 0.035, 0.089, 0.23, 0.94),
    (0.47, 0.028, 0.2, 0.41, 0.66, 0.94),
    (0.29, 1e-05, 0.0078, 0.26, 0.94, 1),
    (0, 0.062, 0.24, 0.43, 0.57, 0.85),
    (0, 0.0026, 0.066, 0.32, 0.6, 0.99),
    (0.15, 0.01, 0.052, 0.12, 0.29, 0.82),
    (0.12, 0.093, 0.15, 0.22, 0.31, 0.56),
    (0.12, 0.057, 0.2, 0.51, 0.79, 1),
    (0.12, 0.0097, 0.039, 0.11, 0.2, 0.54),
    *[(1, 0, 0, 0, 0, 0)] * 3,
    (0.26, 0.037, 0.073, 0.39, 0.99, 1),
    (0.67, 0.022, 0.12, 0.36, 0.54, 0.73),
    (0.67, 0.09, 0.25, 0.39, 0.61, 0.84),
)
CATEGORIES = dict(
    zip(RAW_CATEGORICAL, zip(FIELD_SIZES, FREQUENT, strict=True), strict=True)
)
NUMBERS = dict(zip(RAW_NUMERICAL, QUANTILES, strict=True))
LEARNABLE = ("item_29", "item_30", "item_35")  # the labels depend on these


def make_aliexpress(folder: Path, rows: int, *, country: str, seed: int) -> None:
    """Writes {cc}_{user,item}_{train,test}.csv with `rows` train exposures, or a few
    more, and `TEST_SHARE` as many of test."""
    for at, split in enumerate(("train", "test")):
        rng = np.random.default_rng([seed, at])
        wanted = rows if split == "train" else max(int(rows * TEST_SHARE), 1)
        with (
            (folder / f"{country}_user_{split}.csv").open("wb") as users,
            (folder / f"{country}_item_{split}.csv").open("wb") as items,
        ):
            first = 1
            while wanted > 0:
                searches = min(BLOCK_SEARCHES, -(-wanted // PER_SEARCH))
                ids = first + rng.permutation(searches)
                wanted -= _block(rng, ids, users, items, country)
                first += searches


def _block(
    rng: np.random.Generator,
    ids: np.ndarray,
    users: BinaryIO,
    items: BinaryIO,
    country: str,
) -> int:
    """Appends searches to both files; returns the number of their exposures."""
    frame = _columns(rng, USER_COLUMNS[1:], len(ids))
    frame.insert_column(0, pl.Series(USER_COLUMNS[0], ids))
    frame.write_csv(users, include_header=False)
    counts = 1 + rng.poisson(PER_SEARCH - 1, len(ids))
    frame = _columns(rng, ITEM_COLUMNS[1:-1], int(counts.sum()))
    frame.insert_column(0, pl.Series(ITEM_COLUMNS[0], np.repeat(ids, counts)))
    level = pl.Series(ITEM_COLUMNS[-1], _levels(rng, frame, country))
    frame.with_columns(level).write_csv(items, include_header=False)
    return frame.height


def _columns(
    rng: np.random.Generator, names: tuple[str, ...], rows: int
) -> pl.DataFrame:
    columns = {}
    for name in names:
        if name in CATEGORIES:
            size, (frequent, share) = CATEGORIES[name]
            others = (rng.exponential(size / 8, rows).astype(np.int32) + 1) % size
            columns[name] = np.where(rng.random(rows) < share, frequent, others)
        else:
            zeros, *quantiles = NUMBERS[name]
            values = np.interp(rng.random(rows), LEVELS, quantiles)
            values[rng.random(rows) < zeros] = 0
            columns[name] = values.round(6)
    return pl.DataFrame(columns)


def _levels(rng: np.random.Generator, frame: pl.DataFrame, country: str) -> np.ndarray:
    """0 exposure, 1 click, 2 conversion, at the country's rates."""
    _, clicks, conversions = RATES[country]
    taste = np.exp(2 * sum(frame[name].to_numpy() for name in LEARNABLE))
    taste /= taste.mean()
    draw = rng.random(frame.height)
    return (draw < taste * clicks / 1e6) * 1 + (draw < taste * conversions / 1e6)
