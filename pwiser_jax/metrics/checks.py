"""Checks of labels, values and groups."""

import numpy as np
from numpy.typing import ArrayLike, NDArray


def binary_rows(
    labels: ArrayLike, values: ArrayLike, name: str
) -> tuple[NDArray[np.bool_], NDArray[np.floating]]:
    """Labels as bool [N] and values as float32 or float64 [N], checked.

    Raises:
        ValueError: another shape, a label other than 0 and 1, or a value that is NaN;
            `name` says which values.
    """
    labels, values = np.asarray(labels), np.asarray(values)
    if labels.ndim != 1 or values.shape != labels.shape:
        raise ValueError(
            f"labels and {name} must be vectors of one length, "
            f"not {labels.shape} and {values.shape}"
        )
    positive = labels.astype(bool)
    if labels.dtype != bool and not np.array_equal(labels, positive):
        row = int(np.flatnonzero(labels != positive)[0])
        raise ValueError(f"labels must be 0 or 1, row {row} has {labels[row]}")
    if values.dtype not in (np.float32, np.float64):
        values = values.astype(np.float64)
    missing = np.isnan(values)
    if missing.any():
        raise ValueError(f"{name} are NaN in row {int(np.argmax(missing))}")
    return positive, values


def group_codes(groups: ArrayLike, rows: int) -> NDArray[np.int64]:
    """Group of each row as an integer from 0 up, int [N]; some numbers may be unused.

    Identifiers in a small range are used directly, without a sort.

    Raises:
        ValueError: groups are not a vector of `rows` entries.
    """
    groups = np.asarray(groups)
    if groups.shape != (rows,):
        raise ValueError(f"groups must have shape ({rows},), not {groups.shape}")
    if rows and np.issubdtype(groups.dtype, np.integer):
        lowest, highest = int(groups.min()), int(groups.max())
        if highest - lowest < max(4 * rows, 1000):
            # Small signed types would wrap around in the subtraction.
            if np.issubdtype(groups.dtype, np.signedinteger):
                groups = groups.astype(np.int64, copy=False)
            shifted = groups - groups.dtype.type(lowest) if lowest else groups
            return shifted.astype(np.int64, copy=False)
    return np.unique(groups, return_inverse=True)[1]
