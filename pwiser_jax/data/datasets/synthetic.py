"""`prepare synthetic`: the funnel of `funnel.py` as prepared data."""

from itertools import pairwise
from pathlib import Path

from pwiser_jax.data.datasets.funnel import LADDERS, funnel, true_name
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


def _spec(labels: int) -> FlatSpec:
    names = LADDERS[labels]
    above = (true_name(label, before, labels) for before, label in pairwise(names))
    return FlatSpec(
        CATEGORICAL,
        NUMERICAL,
        labels={name: name for name in names},
        group="session_id",
        time="second",
        extra=("true_ctr", *above, "noise_click"),
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
    frame = funnel(
        rows,
        seed=seed,
        click_rate=click_rate,
        conversion_rate=conversion_rate,
        click_noise=click_noise,
        users=users,
        items=items,
        labels=labels,
    )
    fractions = {"valid": valid, "test": test}
    splits = split_by_group(frame.lazy(), "session_id", fractions=fractions, seed=seed)
    flat = FlatTable("synthetic", _spec(labels), splits, options=options)
    return write(flat, output, overwrite=overwrite, extend=extend)
