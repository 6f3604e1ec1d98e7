"""The hash functions, against their definitions in Python integers."""

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pwiser_jax.data.raw import hashing
from pwiser_jax.data.raw.hashing import (
    group_fraction,
    group_hash,
    hash_integers,
    hash_strings,
)
from pwiser_jax.errors import UserError

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def fnv1a(data: bytes) -> int:
    state = 0xCBF29CE484222325
    for byte in data:
        state = ((state ^ byte) * 0x100000001B3) & MASK
    return state


def seeded(x: int, seed: int) -> int:
    return mix(((x ^ mix((seed + GOLDEN) & MASK)) + GOLDEN) & MASK)


def test_the_definitions_give_the_published_values():
    # splitmix64 from state 0 (Vigna's splitmix64.c) and FNV-1a (Noll's test vectors).
    assert mix(GOLDEN) == 0xE220A8397B1DCDAF
    assert mix(2 * GOLDEN & MASK) == 0x6E789E6AA1B965F4
    assert fnv1a(b"") == 0xCBF29CE484222325
    assert fnv1a(b"a") == 0xAF63DC4C8601EC8C
    assert fnv1a(b"foobar") == 0x85944171F73967E8


@settings(deadline=None)
@given(
    st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=20),
    st.integers(0, 2**40),
)
def test_integers(values: list[int], seed: int):
    expected = [seeded(value & MASK, seed) for value in values]
    assert hash_integers(np.array(values, np.int64), seed).tolist() == expected


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.uint32, np.uint64])
def test_integers_do_not_depend_on_their_width(dtype: type):
    values = np.array([0, 1, 7, 127])
    np.testing.assert_array_equal(
        hash_integers(values.astype(dtype)), hash_integers(values)
    )


def test_floats_are_no_integers():
    with pytest.raises(TypeError, match="integers"):
        hash_integers(np.array([1.0]))


@settings(deadline=None)
@given(
    st.lists(st.text(st.characters(codec="utf-8"), max_size=12), min_size=1),
    st.integers(0, 9),
)
def test_strings(values: list[str], seed: int):
    expected = [seeded(fnv1a(value.encode()), seed) for value in values]
    assert hash_strings(pl.Series(values, dtype=pl.String), seed).tolist() == expected


def test_strings_in_chunks(monkeypatch: pytest.MonkeyPatch):
    values = pl.Series([f"user {at}" * (at % 4) for at in range(50)])
    whole = hash_strings(values)
    monkeypatch.setattr(hashing, "CHUNK", 7)
    np.testing.assert_array_equal(hash_strings(values), whole)
    assert hash_strings(values.clear()).tolist() == []


def test_a_group_is_one_number_whatever_its_type():
    values = [3, 0, 3, -12]
    expected = group_hash(pl.Series(values))
    for dtype in (pl.Int8, pl.Int32, pl.Float64):
        np.testing.assert_array_equal(
            group_hash(pl.Series(values, dtype=dtype)), expected
        )
    text = pl.Series(["a", "b", "a"])
    np.testing.assert_array_equal(
        group_hash(text.cast(pl.Categorical)), hash_strings(text)
    )
    days = pl.Series([19000, 19001]).cast(pl.Date)
    np.testing.assert_array_equal(
        group_hash(days), hash_integers(np.array([19000, 19001]))
    )


def test_fractions_are_uniform_and_independent_between_seeds():
    groups = pl.Series(range(100_000))
    first, second = group_fraction(groups, 0), group_fraction(groups, 1)
    assert first.min() >= 0
    assert first.max() < 1
    counts = np.histogram(first, bins=50, range=(0, 1))[0]
    # Chi-square with 49 degrees of freedom: 99.9% lie below 86.
    assert ((counts - 2000) ** 2 / 2000).sum() < 86
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.015


def test_an_empty_group_is_refused():
    with pytest.raises(UserError, match="group column 'user' has empty values"):
        group_hash(pl.Series("user", [1, None]))
