"""Hash functions that are the same on every machine and in every version.

Splits and group ids must not move when Python, NumPy or Polars is upgraded, so none of
their own hashes is used. Integers go through the finaliser of splitmix64 (Steele, Lea
and Flood, 2014), which is a bijection of 64 bits; strings through FNV-1a over their
UTF-8 bytes and then the same finaliser.
"""

import numpy as np
import polars as pl

from pwiser_jax.errors import UserError

GOLDEN = np.uint64(0x9E3779B97F4A7C15)
FNV_OFFSET = np.uint64(0xCBF29CE484222325)
FNV_PRIME = np.uint64(0x00000100000001B3)
CHUNK = 1 << 20


def mix(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64: uint64[N] -> uint64[N], a bijection."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _start(seed: int) -> np.ndarray:
    """uint64[1] that spreads the bits of a seed."""
    return mix(np.array([seed % 2**64], np.uint64) + GOLDEN)


def hash_integers(values: np.ndarray, seed: int = 0) -> np.ndarray:
    """uint64[N] from integers of any width; -1 and 2^64 - 1 are the same 64 bits."""
    values = np.asarray(values)
    if not np.issubdtype(values.dtype, np.integer):
        raise TypeError(f"values must be integers, not {values.dtype}")
    if np.issubdtype(values.dtype, np.signedinteger):
        values = values.astype(np.int64)
    return mix((values.astype(np.uint64) ^ _start(seed)) + GOLDEN)


def hash_strings(values: pl.Series, seed: int = 0) -> np.ndarray:
    """uint64[N] from a string column without nulls."""
    parts = [
        _hash_chunk(values.slice(at, CHUNK), seed)
        for at in range(0, len(values), CHUNK)
    ]
    return np.concatenate(parts) if parts else np.empty(0, np.uint64)


def _hash_chunk(values: pl.Series, seed: int) -> np.ndarray:
    """FNV-1a, one byte position of all strings at a time, longest strings first."""
    data = np.frombuffer("".join(values.to_list()).encode(), np.uint8)
    lengths = values.str.len_bytes().to_numpy().astype(np.int64)
    order = np.argsort(-lengths, kind="stable")
    starts = (np.cumsum(lengths) - lengths)[order]
    lengths = lengths[order]
    state = np.full(len(values), FNV_OFFSET)
    for at in range(int(lengths[0])):
        alive = int(np.searchsorted(-lengths, -at, side="left"))
        byte = data[starts[:alive] + at].astype(np.uint64)
        state[:alive] = (state[:alive] ^ byte) * FNV_PRIME
    hashed = np.empty_like(state)
    hashed[order] = state
    return mix((hashed ^ _start(seed)) + GOLDEN)


def group_hash(column: pl.Series, seed: int = 0) -> np.ndarray:
    """uint64[N] from a group column without nulls: whole numbers, dates or text."""
    if column.null_count():
        raise UserError(f"group column {column.name!r} has empty values")
    if column.dtype == pl.String or column.dtype in (pl.Categorical, pl.Enum):
        return hash_strings(column.cast(pl.String), seed)
    if column.dtype.is_float() or column.dtype == pl.Boolean:
        column = column.cast(pl.Int64)
    return hash_integers(column.to_physical().to_numpy(), seed)


def group_fraction(column: pl.Series, seed: int = 0) -> np.ndarray:
    """float64[N] in [0, 1) from a group column: equal values give equal numbers."""
    return fraction(group_hash(column, seed))


def fraction(hashes: np.ndarray) -> np.ndarray:
    """float64[N] in [0, 1) from uint64[N]."""
    return (hashes >> np.uint64(11)) * 2.0**-53
