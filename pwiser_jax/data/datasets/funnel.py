"""A synthetic shop with known probabilities: exposures, clicks and conversions.

Users and items have latent factors. The probability of a click and that of a conversion
after it are different functions of them, with a part in common: taste (an inner product
of factors) affects both; clicks depend on the picture, the position and the user's
activity; conversions depend on price and budget, trust in the item and the device.
Interactions dominate, which a linear model on the same columns cannot express.
"""

from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from pwiser_jax.errors import UserError

FACTORS = 6
CATEGORIES = 40
BRANDS = 250
CITIES = 120
SEGMENTS = 12
SESSION_ROWS = 10
POSITIONS = 30
DAYS = 14
MISSING = 0.02
LIMIT = 2**31
CLICK_SPREAD = 1.2
CONVERSION_SPREAD = 1.4


# Labels by their number, lowest rung first.
LADDERS = {
    2: ("click", "conversion"),
    3: ("click", "cart", "order"),
    4: ("click", "favourite", "cart", "order"),
    5: ("click", "favourite", "cart", "order", "review"),
}


class Disturbances(NamedTuple):
    """What stands between intent and log; see `prepare_synthetic`. 0: nothing."""

    accidents: float = 0.0
    bots: float = 0.0
    position_bias: float = 0.0
    delayed: float = 0.0
    conversion_noise: float = 0.0


class Funnel(NamedTuple):
    """Logits before calibration, float64[N] each."""

    click: np.ndarray
    conversion: np.ndarray


def funnel(
    rows: int,
    *,
    seed: int = 0,
    click_rate: float = 0.1,
    conversion_rate: float = 0.08,
    click_noise: float = 0.0,
    users: int = 4_000,
    items: int = 1_000,
    labels: int = 2,
    disturbances: Disturbances = Disturbances(),  # noqa: B008  # immutable
) -> pl.DataFrame:
    """The rows of the funnel, in time order; arguments as in `prepare_synthetic`.

    `true_ctr` is the probability of a genuine click and `true_cvr` of a conversion
    given a click (with more labels: true_cart_given_click and so on); labels are drawn
    from these probabilities. `noise_click` is 1 where the click is not genuine.
    Disturbances change labels, never these probabilities.

    Between click and the last label, the logit of a label changes gradually from that
    of a click to that of a conversion.
    """
    if seed < 0:
        raise UserError(f"--seed is {seed}; expected 0 or more")
    _check(rows, users, items, labels, click_rate, conversion_rate, click_noise)
    _check_disturbances(disturbances)
    rng = np.random.default_rng(seed)
    columns, logits = _exposures(rng, rows, users, items)
    ctr = _calibrated(logits.click, click_rate, np.ones(rows), CLICK_SPREAD)
    click, *above = LADDERS[labels]
    reached = {click: rng.random(rows) < ctr}
    truth, joint = {"true_ctr": ctr}, ctr
    for step, (before, label) in enumerate(pairwise(LADDERS[labels]), start=1):
        part = step / len(above)
        logit = (1 - part) * logits.click + part * logits.conversion
        rate = conversion_rate ** (1 / len(above))
        rung = _calibrated(logit, rate, joint, CONVERSION_SPREAD)
        reached[label] = reached[before] & (rng.random(rows) < rung)
        joint = joint * rung
        truth[true_name(label, before, labels)] = rung
    # A generator of its own, so that the rest of the log is the same with them.
    more = np.random.default_rng([seed, 1])
    last = LADDERS[labels][-1]
    if disturbances.position_bias:
        chance = (1.0 + columns["position"]) ** -disturbances.position_bias
        seen = more.random(rows) < chance
        reached = {label: reached[label] & seen for label in reached}
    if disturbances.delayed:
        late = _late(more, columns["second"], reached[last], disturbances.delayed)
        reached[last] = reached[last] & ~late
    noise = _noise(rng, columns["session_id"], reached[click], click_noise)
    noise |= _bots(more, columns["user_id"], users, disturbances.bots)
    noise |= _some(
        more, reached[click] & ~noise, ~reached[click] & ~noise, disturbances.accidents
    )
    genuine = reached[last] & ~noise
    idle = reached[click] & ~noise & ~genuine
    bought = _some(more, genuine, idle, disturbances.conversion_noise)
    reached = {label: reached[label] | bought for label in reached}
    return pl.DataFrame(
        {
            **columns,
            click: (reached[click] | noise).astype(np.int8),
            **{label: (reached[label] & ~noise).astype(np.int8) for label in above},
            **truth,
            "noise_click": noise.astype(np.int8),
        }
    ).with_columns(
        # Some values are missing, to test models and tables.
        pl.when(pl.Series(rng.random(rows) >= MISSING)).then(pl.col(name)).alias(name)
        for name in ("city", "brand", "budget", "reviews")
    )


def true_name(label: str, before: str, labels: int) -> str:
    """The column of the probability of a label given the rung before."""
    return "true_cvr" if labels == 2 else f"true_{label}_given_{before}"


def _check(
    rows: int,
    users: int,
    items: int,
    labels: int,
    click_rate: float,
    conversion_rate: float,
    click_noise: float,
) -> None:
    for name, count in {"rows": rows, "users": users, "items": items}.items():
        if not 1 <= count < LIMIT:
            raise UserError(f"--{name} is {count}; expected 1 to {LIMIT - 1}")
    if labels not in LADDERS:
        raise UserError(f"--labels is {labels}; expected 2 to {max(LADDERS)}")
    rates = {"click_rate": click_rate, "conversion_rate": conversion_rate}
    for name, rate in rates.items():
        if not 0 < rate < 1:
            option = name.replace("_", "-")
            raise UserError(f"--{option} is {rate}; expected a share between 0 and 1")
    if not 0 <= click_noise < 1:
        raise UserError(
            f"--click-noise is {click_noise}; expected 0 or more, and less than 1"
        )


def _check_disturbances(disturbances: Disturbances) -> None:
    for name, value in disturbances._asdict().items():
        option = f"--{name.replace('_', '-')}"
        if name == "position_bias":
            if not 0 <= value <= 10:
                raise UserError(f"{option} is {value}; expected 0 to 10")
        elif not 0 <= value < 1:
            raise UserError(f"{option} is {value}; expected 0 or more, and less than 1")


def _some(
    rng: np.random.Generator, of: np.ndarray, among: np.ndarray, share: float
) -> np.ndarray:
    """bool[N]: rows `among`, as many as make the share of `of` and themselves."""
    rows = np.zeros(len(of), bool)
    if share:
        wanted = min(round(share / (1 - share) * of.sum()), int(among.sum()))
        rows[rng.choice(np.flatnonzero(among), wanted, replace=False)] = True
    return rows


def _bots(
    rng: np.random.Generator, user: np.ndarray, users: int, share: float
) -> np.ndarray:
    """bool[N]: all rows of a share of the users."""
    bots = rng.permutation(users)[: round(share * users)]
    return np.isin(user, bots)


def _late(
    rng: np.random.Generator, second: np.ndarray, bought: np.ndarray, share: float
) -> np.ndarray:
    """bool[N]: conversions whose exponential delay ends after the log.

    The mean delay is such that the share of conversions is expected to be late.
    """
    from scipy.optimize import brentq

    left = (second[-1] - second).astype(float)
    if not bought.any():
        return bought

    def excess(log_mean: float) -> float:
        return float(np.exp(-left[bought] / np.exp(log_mean)).mean()) - share

    if excess(-20) >= 0:  # fewer conversions than the share stands for
        return bought & (left == 0)
    log_mean: Any = brentq(excess, -20, 40)
    mean = np.exp(log_mean)
    return bought & (rng.exponential(mean, len(left)) > left)


def _exposures(
    rng: np.random.Generator, rows: int, users: int, items: int
) -> tuple[dict[str, np.ndarray], Funnel]:
    """Columns of every exposure and the logits of its click and conversion."""
    starts = rng.random(rows) < 1 / SESSION_ROWS
    starts[0] = True
    session = np.cumsum(starts) - 1
    sessions = int(session[-1]) + 1
    depth = np.arange(rows) - np.flatnonzero(starts)[session]
    busy = 1.2 + np.sin((np.arange(24) - 14) / 24 * 2 * np.pi)
    hours = rng.integers(DAYS, size=sessions) * 24 + _choose(rng, busy, sessions)
    second = np.sort(hours * 3600 + rng.integers(3600, size=sessions))[session]
    hour = second // 3600 % 24

    # Users and items: long tails, and factors that come in segments and categories.
    user = rng.permutation(users)[_choose(rng, _tail(users, 20, 0.8), sessions)][
        session
    ]
    item = rng.permutation(items)[_choose(rng, _tail(items, 10, 1.0), rows)]
    segment = _choose(rng, _tail(SEGMENTS, 2, 1.0), users)
    taste = _around(rng, SEGMENTS, segment)
    category = _choose(rng, _tail(CATEGORIES, 2, 1.0), items)
    style = _around(rng, CATEGORIES, category)
    brand = _choose(rng, _tail(BRANDS, 3, 1.0), items)
    trust = 0.8 * rng.normal(size=BRANDS)[brand] + 0.6 * rng.normal(size=items)
    activity, budget = rng.normal(size=(2, users))
    picture, price = rng.normal(size=(2, items))
    device = _choose(rng, np.array([0.65, 0.27, 0.08]), sessions)[session]
    discount = np.maximum(rng.normal(size=rows) - 0.5, 0)

    match = np.einsum("nf,nf->n", taste[user], style[item]) / np.sqrt(FACTORS)
    unsuited = np.minimum(np.abs(price[item] - budget[user]), 3)
    at_desk = (device == 1) & (hour >= 9) & (hour < 18)
    click = (
        0.9 * match
        + 0.3 * activity[user]
        + 0.5 * picture[item] * np.tanh(1 + 2 * activity[user])
        - 0.3 * np.log1p(depth)
        + 0.3 * (hour >= 20) * (device == 0)
    )
    conversion = (
        0.8 * match
        - 1.4 * unsuited
        + 0.6 * trust[item] * (1 + 0.7 * np.tanh(price[item]))
        + 0.5 * discount * (budget[user] < 0)
        + 0.6 * at_desk
    )
    columns = {
        "session_id": session,
        "second": second,
        "user_id": user,
        "segment": segment[user],
        "city": _choose(rng, _tail(CITIES, 3, 1.2), users)[user],
        "device": device,
        "item_id": item,
        "category": category[item],
        "brand": brand[item],
        "hour": hour,
        "position": np.minimum(depth, POSITIONS - 1),
        "activity": (activity + 0.4 * rng.normal(size=users))[user],
        "budget": (budget + 0.4 * rng.normal(size=users))[user],
        "price": np.exp(0.5 * price)[item],
        "picture": (picture + 0.5 * rng.normal(size=items))[item],
        "reviews": (trust + 0.8 * rng.normal(size=items))[item],
        "affinity": match + 2 * rng.normal(size=rows),
        "visits": rng.poisson(np.exp(1 + 0.5 * activity))[user],
        "discount": discount,
    }
    return columns, Funnel(click, conversion)


def _tail(count: int, shift: int, power: float) -> np.ndarray:
    """Zipf's weights of the ranks 1 .. count, flattened at the head."""
    return (np.arange(count) + shift) ** -float(power)


def _choose(rng: np.random.Generator, weights: np.ndarray, count: int) -> np.ndarray:
    """int64[count] in 0 .. len(weights) - 1."""
    total = np.cumsum(weights)
    return np.searchsorted(total, rng.random(count) * total[-1], side="right")


def _around(rng: np.random.Generator, centres: int, of: np.ndarray) -> np.ndarray:
    """float64[len(of), FACTORS] of variance 1: own factors around those of a centre."""
    centre = rng.normal(size=(centres, FACTORS))[of]
    return 0.9 * centre + np.sqrt(0.19) * rng.normal(size=centre.shape)


def _calibrated(
    logits: np.ndarray, rate: float, weights: np.ndarray, spread: float
) -> np.ndarray:
    """Probabilities of logits, moved so that their weighted mean is the rate.

    Logits are scaled first, so that all shops are equally hard to predict.
    """
    # Imported here, since SciPy takes long to import and other readers do not need it.
    from scipy.optimize import brentq
    from scipy.special import expit

    logits = (logits - logits.mean()) / (logits.std() + 1e-9) * spread

    def excess(shift: float) -> float:
        return float(np.average(expit(logits + shift), weights=weights)) - rate

    return expit(logits + brentq(excess, -50, 50))


def _noise(
    rng: np.random.Generator, session: np.ndarray, click: np.ndarray, share: float
) -> np.ndarray:
    """bool[N]: the clicks of bots, on all rows of some sessions, and accidents."""
    noise = np.zeros(len(click), bool)
    target = share / (1 - share) * click.sum()
    if share:
        order = rng.permutation(session[-1] + 1)
        lengths = np.bincount(session)
        bots = order[np.cumsum(lengths[order]) <= target / 2]
        noise = np.isin(session, bots)
        # Bots have no genuine clicks, so fewer accidents are needed for the share.
        target = share / (1 - share) * (click & ~noise).sum()
        quiet = np.flatnonzero(~click & ~noise)
        accidents = min(max(round(target) - noise.sum(), 0), len(quiet))
        noise[rng.choice(quiet, accidents, replace=False)] = True
    return noise
