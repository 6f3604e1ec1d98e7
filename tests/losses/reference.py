"""Definitions of the losses in float64 NumPy, as plain loops."""

import math
from itertools import pairwise

import numpy as np


def softplus(x):
    """log(1 + e^x)."""
    return max(x, 0.0) + math.log1p(math.exp(-abs(x)))


def sigmoid(x):
    return math.exp(-softplus(-x))


PHI = {
    "squared_hinge": lambda x: max(x, 0.0) ** 2,
    "hinge": lambda x: max(x, 0.0),
    "logistic": softplus,
    "literal": lambda x: x**2,
}
PHI_SLOPE = {
    "squared_hinge": lambda x: 2 * max(x, 0.0),
    "hinge": lambda x: 1.0,
    "logistic": sigmoid,
    "literal": lambda x: 2 * x,
}


def row_weights(size, where=None, weights=None):
    """A row's weight, 0 where it is masked."""
    w = np.ones(size) if weights is None else np.asarray(weights, np.float64)
    return w if where is None else np.where(where, w, 0.0)


def pair_list(
    scores,
    levels,
    margins,
    *,
    surrogate="squared_hinge",
    gate="margin",
    where=None,
    weights=None,
    segments=None,
    precision=np.float32,
):
    """Every pair of a term: (term, i, j, weight, x or None where the pair is idle)."""
    size = len(scores)
    w = row_weights(size, where, weights)
    rounded = np.asarray(scores).astype(precision)
    for (hi, lo), margin in margins.items():
        m = precision(margin)
        for i in range(size):
            for j in range(size):
                if levels[i] != hi or levels[j] != lo or w[i] == 0 or w[j] == 0:
                    continue
                if segments is not None and segments[i] != segments[j]:
                    continue
                # Whether a pair is active is decided in the precision of the loss.
                difference = rounded[i] - rounded[j]
                active = difference < (-m if gate == "literal" else m)
                x = float(m) - (float(rounded[i]) - float(rounded[j]))
                idle = surrogate != "logistic" and not active
                yield (hi, lo), i, j, w[i] * w[j], None if idle else x


def ladder_terms(scores, levels, margins, **options):
    """{term: (numerator, sum of pair weights)}."""
    name = shape_name(options)
    sums = dict.fromkeys(margins, (0.0, 0.0))
    for term, _, _, weight, x in pair_list(scores, levels, margins, **options):
        value = 0.0 if x is None else PHI[name](x)
        numerator, pairs = sums[term]
        sums[term] = numerator + weight * value, pairs + weight
    return sums


def shape_name(options):
    literal = options.get("gate") == "literal"
    return "literal" if literal else options.get("surrogate", "squared_hinge")


def term_divisors(scores, levels, margins, normalize="pairs", **options):
    """What each term is divided by."""
    sums = ladder_terms(scores, levels, margins, **options)
    w = row_weights(len(scores), options.get("where"), options.get("weights"))
    divisors = {}
    for (hi, lo), (_, pairs) in sums.items():
        negatives = sum(w[j] for j in range(len(scores)) if levels[j] == lo)
        of = {"pairs": pairs, "negatives": negatives, "none": 1.0}
        divisors[hi, lo] = of[normalize]
    return divisors


def ladder_loss(
    scores, levels, margins, *, normalize="pairs", term_weights=None, **options
):
    sums = ladder_terms(scores, levels, margins, **options)
    divisors = term_divisors(scores, levels, margins, normalize, **options)
    factors = dict.fromkeys(margins, 1.0) | (term_weights or {})
    return sum(
        factors[term] * numerator / divisors[term]
        for term, (numerator, _) in sums.items()
        if divisors[term] != 0
    )


def ladder_gradient(
    scores, levels, margins, *, normalize="pairs", term_weights=None, **options
):
    """By the scores; x falls with the score of the higher row."""
    name = shape_name(options)
    divisors = term_divisors(scores, levels, margins, normalize, **options)
    factors = dict.fromkeys(margins, 1.0) | (term_weights or {})
    gradient = np.zeros(len(scores))
    for term, i, j, weight, x in pair_list(scores, levels, margins, **options):
        if x is not None and divisors[term] != 0:
            slope = factors[term] * weight * PHI_SLOPE[name](x) / divisors[term]
            gradient[i] -= slope
            gradient[j] += slope
    return gradient


def pwiser_levels(clicks, conversions):
    """2 for a conversion, clicked or not; 1 for a click only; 0 for neither."""
    return np.array(
        [2 if v else 1 if c else 0 for c, v in zip(clicks, conversions, strict=True)]
    )


def pwiser_margins(margins):
    """{(2, 1): m1, (2, 0): m2}, without those that are None."""
    terms = zip([(2, 1), (2, 0)], margins, strict=True)
    return {term: margin for term, margin in terms if margin is not None}


def bce_loss(logits, labels, *, where=None, weights=None):
    """Mean of -y log p - (1 - y) log(1 - p), with -log p = log(1 + e^-z)."""
    w = row_weights(len(logits), where, weights)
    total = 0.0
    for i, (z, y) in enumerate(zip(logits, labels, strict=True)):
        if w[i] != 0:
            z, y = float(z), float(y)
            total += w[i] * (y * softplus(-z) + (1 - y) * softplus(z))
    return total / w.sum() if w.sum() else 0.0


def bce_gradient(logits, labels, *, where=None, weights=None):
    w = row_weights(len(logits), where, weights)
    gradient = np.zeros(len(logits))
    for i, z in enumerate(logits):
        if w[i] != 0:
            y = float(labels[i])
            slope = (1 - y) * sigmoid(float(z)) - y * sigmoid(-float(z))
            gradient[i] = w[i] * slope / w.sum()
    return gradient


def gradient(loss, x):
    """The slope of a smooth definition by each entry, to about 1e-9 of the largest."""
    x = np.asarray(x, np.float64)
    step = 1e-5 * max(1.0, np.abs(x).max())
    slopes = np.zeros(x.shape)
    for entry in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[entry] += step
        down[entry] -= step
        slopes[entry] = (loss(up) - loss(down)) / (2 * step)
    return slopes


def focal_bce_loss(logits, labels, *, gamma=2.0, alpha=None, where=None, weights=None):
    """Mean of -(1 - p)^gamma log p of the label's probability p, balanced by alpha."""
    w = row_weights(len(logits), where, weights)
    of_one, of_zero = (1, 1) if alpha is None else (alpha, 1 - alpha)
    total = 0.0
    for i, (z, y) in enumerate(zip(logits, labels, strict=True)):
        if w[i] != 0:
            z, y = float(z), float(y)
            one = sigmoid(-z) ** gamma * softplus(-z)
            zero = sigmoid(z) ** gamma * softplus(z)
            total += w[i] * (of_one * y * one + of_zero * (1 - y) * zero)
    return total / w.sum() if w.sum() else 0.0


def ranknet_terms(
    scores,
    labels,
    *,
    surrogate="logistic",
    margin=1.0,
    where=None,
    weights=None,
    segments=None,
):
    """(sum of costs, sum of pair weights) over pairs of a higher and a lower label."""
    margin = 0.0 if surrogate == "logistic" else margin
    size = len(scores)
    w = row_weights(size, where, weights)
    numerator = denominator = 0.0
    for i in range(size):
        for j in range(size):
            if w[i] == 0 or w[j] == 0 or not labels[i] > labels[j]:
                continue
            if segments is None or segments[i] == segments[j]:
                difference = float(scores[i]) - float(scores[j])
                numerator += w[i] * w[j] * PHI[surrogate](margin - difference)
                denominator += w[i] * w[j]
    return numerator, denominator


def ranknet_loss(scores, labels, *, normalize="pairs", **options):
    numerator, denominator = ranknet_terms(scores, labels, **options)
    if normalize == "none":
        return numerator
    return numerator / denominator if denominator else 0.0


def jrc_loss(logits, labels, *, alpha=0.5, where=None, weights=None, segments=None):
    """Mean of -log softmax over a row's two logits, and over its context's rows."""
    size = len(labels)
    w = row_weights(size, where, weights)
    f = np.asarray(logits, np.float64)
    total = 0.0
    for i in range(size):
        if w[i] == 0:
            continue
        context = [
            j
            for j in range(size)
            if w[j] != 0 and (segments is None or segments[j] == segments[i])
        ]
        for label in (0, 1):
            share = float(labels[i]) if label else 1 - float(labels[i])
            by_row = softplus(f[i, 1 - label] - f[i, label])
            top = max(f[j, label] for j in context)
            among = sum(w[j] * math.exp(f[j, label] - top) for j in context)
            by_context = top - f[i, label] + math.log(among)
            total += w[i] * share * (alpha * by_row + (1 - alpha) * by_context)
    return total / w.sum() if w.sum() else 0.0


def label_constraint_loss(probabilities, *, where=None, weights=None):
    """Mean over rows of what each step's probability exceeds the one before it by."""
    w = row_weights(len(probabilities), where, weights)
    total = 0.0
    for i, row in enumerate(probabilities):
        if w[i] != 0:
            steps = [float(p) for p in row]
            for earlier, later in pairwise(steps):
                total += w[i] * max(later - earlier, 0.0)
    return total / w.sum() if w.sum() else 0.0
