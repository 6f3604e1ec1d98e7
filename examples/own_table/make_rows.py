"""Writes rows.csv: 200 invented rows of a small shop."""

from pathlib import Path

import numpy as np
import polars as pl

rng = np.random.default_rng(0)
rows = 200
tags = np.array(["new", "sale", "gift", "eco"])
frame = pl.DataFrame(
    {
        "session": np.repeat(np.arange(rows // 4), 4),
        "user": np.repeat(rng.integers(25, size=rows // 4), 4),
        "item": rng.integers(30, size=rows),
        "tags": ["|".join(tags[rng.random(4) < 0.4]) for _ in range(rows)],
        "price": rng.lognormal(3, 0.5, rows).round(2),
        "weight": rng.choice([0.5, 1.0, 2.0], rows),
    }
).with_columns(clicked=pl.Series(rng.random(rows) < 0.5).cast(pl.Int8))
bought = (frame["clicked"] == 1) & pl.Series(rng.random(rows) < 0.5)
frame = frame.with_columns(bought=bought.cast(pl.Int8))
frame.write_csv(Path(__file__).parent / "rows.csv")
