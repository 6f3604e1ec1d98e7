"""`prepare synthetic`: the funnel of `funnel.py` as prepared data."""

from pathlib import Path

from pwiser_jax.data.flat import FlatSpec, FlatTable
from pwiser_jax.data.funnel import funnel
from pwiser_jax.data.manifest import Manifest
from pwiser_jax.data.prepared import check_output, write
from pwiser_jax.data.split import split_by_group

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
TRUTH = ("true_ctr", "true_cvr", "noise_click")
SPEC = FlatSpec(
    CATEGORICAL, NUMERICAL, group="session_id", time="second", extra=TRUTH, min_count=2
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
    valid: float = 0.1,
    test: float = 0.1,
    overwrite: bool = False,
) -> Manifest:
    """A shop's funnel with known click and conversion probabilities.

    Args:
        output: the new folder.
        rows: exposures over all splits.
        seed: the same seed gives the same rows.
        click_rate: genuine clicks over exposures.
        conversion_rate: conversions over genuine clicks.
        click_noise: share of the observed clicks that are not genuine, half of them
            accidents and half of them bots; they never convert.
        users: number of users.
        items: number of items.
        valid: share of the sessions that are kept for validation.
        test: share of the sessions that are kept for the test.
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
    )
    fractions = {"valid": valid, "test": test}
    splits = split_by_group(frame.lazy(), "session_id", fractions=fractions, seed=seed)
    flat = FlatTable("synthetic", SPEC, splits, options=options)
    return write(flat, output, overwrite=overwrite)
