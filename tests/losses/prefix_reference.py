"""The pair losses' definition for a million rows: prefix sums in extended precision.

Checked against the plain loops of `reference` on small batches.
"""

import numpy as np

Wide = np.longdouble


def pwiser_loss(scores, levels, margins, surrogate, gate):
    """(value, gradient by the scores) of PWiseR normalised by pairs."""
    scores = scores.astype(np.float32)
    loss, gradient = Wide(0), np.zeros(len(scores), Wide)
    positives = np.flatnonzero(levels == 2)
    positives = positives[np.argsort(scores[positives], kind="stable")]
    for level, margin in zip((1, 0), margins, strict=True):
        others = np.flatnonzero(levels == level)
        pairs = Wide(len(positives)) * len(others)
        if pairs == 0:
            continue
        t, s, m = scores[positives], scores[others], np.float32(margin)
        active = _active(t, s, -m if gate == "literal" else m)
        # About the positives' mean, so that the squares are not of large numbers.
        centre = t.astype(Wide).mean()
        t, y = t.astype(Wide) - centre, s.astype(Wide) - centre + Wide(m)
        sums, squares = _prefix(t), _prefix(t * t)
        order = np.argsort(active, kind="stable")
        first = np.searchsorted(active[order], np.arange(len(t)), side="right")
        count = len(others) - first
        if surrogate == "hinge":
            loss += np.sum(active * y - sums[active]) / pairs
            gradient[others] += active / pairs
            gradient[positives] -= count / pairs
        else:
            parts = active * y * y - 2 * y * sums[active] + squares[active]
            loss += np.sum(parts) / pairs
            gradient[others] += 2 * (active * y - sums[active]) / pairs
            above = _prefix(y[order][::-1])[::-1][first]
            gradient[positives] -= 2 * (above - count * t) / pairs
    return loss, gradient


def _active(t, s, threshold):
    """How many of the ascending t are active with each s, as float32 rounds it."""
    count = np.zeros(len(s), np.int64)
    for bit in reversed(range(len(t).bit_length())):
        ahead = count + (1 << bit)
        difference = t[np.minimum(ahead, len(t)) - 1] - s
        count = np.where((ahead <= len(t)) & (difference < threshold), ahead, count)
    return count


def _prefix(x):
    return np.concatenate([np.zeros(1, Wide), np.cumsum(x, dtype=Wide)])
