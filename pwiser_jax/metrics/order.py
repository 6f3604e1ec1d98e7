"""The order of rows by score: one sort, which all measures of the rows share."""

import numpy as np
from numpy.typing import NDArray


def score_order(scores: NDArray[np.floating]) -> NDArray[np.integer] | slice:
    """Indices that sort rows by score, lowest first; all rows as they are if sorted.

    NumPy sorts numbers several times faster than it finds the order of rows. Scores of
    32 bits are therefore sorted together with their rows, as integers of 64 bits.

    Args:
        scores: f[rows], none NaN.
    """
    if (scores[1:] >= scores[:-1]).all():
        return slice(None)
    if scores.dtype != np.float32 or len(scores) > 2**32:
        return np.argsort(scores)
    packed = _ordered_bits(scores).astype(np.uint64)
    packed <<= np.uint64(32)
    packed |= np.arange(len(scores), dtype=np.uint32)
    packed.sort()
    return packed.astype(np.uint32)


def _ordered_bits(scores: NDArray[np.float32]) -> NDArray[np.uint32]:
    """Unsigned integers in the order of the scores.

    A float's bits are its sign and its size: of positive numbers the larger has the
    larger bits, of negative ones the smaller.
    """
    bits = scores.view(np.uint32)
    sign = np.uint32(1 << 31)
    return np.where(bits & sign, ~bits, bits | sign)
