"""`prepare synthetic`: the funnel of `funnel.py` as prepared data."""

from itertools import pairwise
from pathlib import Path

import polars as pl

from pwiser_jax.data.datasets.funnel import LADDERS, Disturbances, funnel, true_name
from pwiser_jax.data.prepared.folder import check_output, write
from pwiser_jax.data.prepared.manifest import Manifest
from pwiser_jax.data.raw.flat import FlatSpec, FlatTable
from pwiser_jax.data.raw.split import split_by_group

CATEGORICAL = (
    "user_id",
    "segment",
    "city",
    "device",
    "item_id",
    "category",
    "brand",
    "hour",
    "position",
)
NUMERICAL = (
    "activity",
    "budget",
    "price",
    "picture",
    "reviews",
    "affinity",
    "visits",
    "discount",
)


def _spec(labels: int, *more: str) -> FlatSpec:
    names = LADDERS[labels]
    above = (true_name(label, before, labels) for before, label in pairwise(names))
    return FlatSpec(
        CATEGORICAL,
        NUMERICAL,
        labels={name: name for name in names},
        group="session_id",
        time="second",
        extra=("true_ctr", *above, "noise_click", *more),
        min_count=2,
    )


def prepare_synthetic(
    output: Path,
    *,
    rows: int = 200_000,
    seed: int = 0,
    click_rate: float = 0.1,
    conversion_rate: float = 0.08,
    click_noise: float = 0.0,
    users: int = 4_000,
    items: int = 1_000,
    labels: int = 2,
    accidents: float = 0.0,
    bots: float = 0.0,
    position_bias: float = 0.0,
    delayed: float = 0.0,
    conversion_noise: float = 0.0,
    order_values: bool = False,
    valid: float = 0.1,
    test: float = 0.1,
    extend: Path | None = None,
    overwrite: bool = False,
) -> Manifest:
    """A shop's funnel with known click and conversion probabilities.

    Args:
        output: the new folder.
        rows: exposures over all splits.
        seed: the same seed gives the same rows.
        click_rate: genuine clicks over exposures.
        conversion_rate: rows with the last label over genuine clicks.
        click_noise: share of the observed clicks that are not genuine, half of them
            accidents and half of them bots; they never convert.
        users: number of users.
        items: number of items.
        labels: 2: click, conversion; 3: click, cart, order; 4: click, favourite, cart,
            order; 5: a review beyond the order.
        accidents: share of the clicks of users other than bots that are accidents, on
            any row; they never convert.
        bots: share of the users that are bots, which click everything and buy nothing.
        position_bias: exponent b. A row is looked at with probability (1 + position)^-b
            and else neither clicked nor bought; the true probabilities are those of a
            row that is looked at.
        delayed: share of the conversions that come after the end of the log and are
            labelled 0, the more the later the click.
        conversion_noise: share of the conversions that are not genuine: other clicked
            rows.
        order_values: adds the column order_value, the item's price, for
            loss.pair_value and revenue.
        valid: share of the sessions held out for validation.
        test: share of the sessions held out for testing.
        extend: a run's folder: rows get the ids and the scales of its data, and values
            that are new to it further ids; for `train --warm-start`.
        overwrite: replace a prepared folder.
    """
    check_output(output, overwrite=overwrite)
    options = {
        "rows": rows,
        "seed": seed,
        "click_rate": click_rate,
        "conversion_rate": conversion_rate,
        "click_noise": click_noise,
        "users": users,
        "items": items,
        "labels": labels,
        "valid": valid,
        "test": test,
    }
    disturbances = Disturbances(
        accidents, bots, position_bias, delayed, conversion_noise
    )
    # Options of their own defaults are left out: manifests stay as they were.
    options |= {name: x for name, x in disturbances._asdict().items() if x}
    options |= {"order_values": True} if order_values else {}
    frame = funnel(
        rows,
        seed=seed,
        click_rate=click_rate,
        conversion_rate=conversion_rate,
        click_noise=click_noise,
        users=users,
        items=items,
        labels=labels,
        disturbances=disturbances,
    )
    more = ("order_value",) if order_values else ()
    frame = frame.with_columns(pl.col("price").alias(name) for name in more)
    fractions = {"valid": valid, "test": test}
    splits = split_by_group(frame.lazy(), "session_id", fractions=fractions, seed=seed)
    flat = FlatTable("synthetic", _spec(labels, *more), splits, options=options)
    return write(flat, output, overwrite=overwrite, extend=extend)
