"""History features: how often a user, a video or a pair was shown and liked before.

For a row of day d, only rows of days before d count, of any split, as in a service that
updates counts every night. So no label enters the features of its own row, or of rows
of the same day or earlier.
"""

from collections.abc import Mapping, Sequence

import polars as pl

EVERYTHING = "\0everything"  # no column of a file can have these names
COUNT = "\0count"
PRIOR = "\0prior_"
STRENGTH = 10.0
"""Weight of the prior rate in a smoothed rate, in exposures."""


def earlier_sums(
    rows: pl.DataFrame, key: Sequence[str], day: str, outcomes: Sequence[str]
) -> pl.DataFrame:
    """For each key and day in `rows`: exposures and outcomes of strictly earlier days.

    Columns: the key, the day, `COUNT` and the outcomes. Null is a key like any other.
    """
    sums = [pl.len().cast(pl.Int64).alias(COUNT)]
    sums += [pl.col(outcome).cast(pl.Int64).sum() for outcome in outcomes]
    daily = rows.group_by([*key, day]).agg(sums).sort(*key, day)
    counted = pl.col(COUNT, *outcomes)
    before = counted.cum_sum() - counted  # over all keys so far
    begins = pl.any_horizontal(pl.col(k).ne_missing(pl.col(k).shift()) for k in key)
    others = pl.when(begins).then(before).forward_fill().fill_null(0)
    return daily.with_columns(before - others)


def history(
    rows: pl.DataFrame,
    name: str,
    key: Sequence[str],
    *,
    day: str,
    outcomes: Mapping[str, str],
    first_day: Mapping[str, float],
) -> pl.DataFrame:
    """History features of one key for each row of `rows`, in order.

    With n exposures and c outcomes of the key on strictly earlier days, and p the
    outcome's rate over all rows of strictly earlier days:

        {name}_exposures = ln(1 + n)
        {name}_{outcome}_rate = (c + STRENGTH p) / (n + STRENGTH)

    Args:
        rows: exposures.
        name: prefix of the features' names.
        key: columns of the key.
        day: column of the day.
        outcomes: name -> column of 0 and 1.
        first_day: outcome -> p on the first day, which has none before it.
    """
    columns = list(outcomes.values())
    sums = earlier_sums(rows, key, day, columns)
    whole = rows.with_columns(pl.lit(0).alias(EVERYTHING))
    totals = earlier_sums(whole, [EVERYTHING], day, columns)
    rates = (
        pl.when(pl.col(COUNT) > 0)
        .then(pl.col(column) / pl.col(COUNT))
        .otherwise(first_day[outcome])
        .alias(PRIOR + outcome)
        for outcome, column in outcomes.items()
    )
    sums = sums.join(totals.select(day, *rates), on=day, how="left")
    smoothed = (
        (pl.col(column) + STRENGTH * pl.col(PRIOR + outcome))
        / (pl.col(COUNT) + STRENGTH)
        for outcome, column in outcomes.items()
    )
    features = sums.select(
        *key,
        day,
        pl.col(COUNT).log1p().alias(f"{name}_exposures"),
        *(
            rate.alias(f"{name}_{outcome}_rate")
            for rate, outcome in zip(smoothed, outcomes, strict=True)
        ),
    )
    keys = rows.select(*key, day)
    joined = keys.join(
        features, on=[*key, day], how="left", nulls_equal=True, maintain_order="left"
    )
    return joined.drop(*key, day)
