"""Detects leaks: measures how well each feature alone predicts a label.

A column that is filled only after the event (an order number, a payment, the seconds
spent on the page) gives an AUC near 1, which no model reaches in production. Copies of
a label are refused before (`data.raw.leaks`); here each feature of the prepared rows is
measured against each label on a sample of train:

- by its value: numbers as they are, up or down, and a multi-valued field's length;
- by whether it is missing (a number counts as missing where it is train's fill value);
- by its category, or a multi-valued field's heaviest: the label's rate for that id in
  the other four fifths of the sample.

A feature is refused where the sample has FEWEST rows of either class of the label; with
MEASURED to FEWEST rows it is a warning, and with fewer the label is left out. AUC does
not depend on the share of the classes, so that SAMPLE rows of each are enough. They
come from at most SHARDS shards, spread over train, or from more where a class is too
rare there. The price: reading these shards, and some 3 ms for each feature and label.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from pwiser_jax.data.prepared.manifest import Manifest
from pwiser_jax.data.raw.frames import scan_parquet
from pwiser_jax.errors import UserError, did_you_mean
from pwiser_jax.metrics.auc import auc, auc_interval
from pwiser_jax.schema import COMMON, LIST_WEIGHTS, Schema

SAMPLE = 5_000
FEWEST, MEASURED = 100, 20
SHARDS = 8
FOLDS = 5
REFUSED = 0.99
WARNED = 0.9


class LeakWarning(UserWarning):
    """A feature that alone predicts a label suspiciously well."""


@dataclass(frozen=True)
class FeatureAuc:
    """How well a feature alone predicts a label on a sample of train.

    Args:
        feature, label: their names.
        by: the score: "value", "missing" or "category".
        auc: the larger of AUC and 1 - AUC; for categories the AUC itself.
        low: the lower end of its 95% interval; 1 where all pairs are in order, and
            equal to `auc` where that is too low to matter.
        rows: number of rows of the smaller class in the sample.
    """

    feature: str
    label: str
    by: str
    auc: float
    low: float
    rows: int


def refuse_leaks(folder: Path, manifest: Manifest) -> None:
    """Refuses, or warns of, features that predict a label on their own.

    Args:
        folder: holds the Parquet files of train.
        manifest: manifest of the folder; `allow_leaks` names allowed features.

    Raises:
        UserError: a feature's lower bound is above REFUSED on FEWEST rows or more of
            either class, or `allow_leaks` names what is no feature.

    Warns:
        LeakWarning: its lower bound is above WARNED.
    """
    schema = manifest.schema
    names = [f.name for f in (*schema.embedded, *schema.numerical)]
    allowed = manifest.options.get("allow_leaks", ())
    for name in allowed:
        if name not in names:
            hint = did_you_mean(name, names)
            raise UserError(f"--allow-leaks names {name!r}, which is no feature{hint}")
    suspects = [each for each in feature_aucs(folder, manifest) if each.low > WARNED]
    for each in sorted(suspects, key=lambda each: -each.low):
        if each.feature in allowed:
            continue
        how = "whether it is missing" if each.by == "missing" else f"its {each.by}"
        sentence = (
            f"feature {each.feature!r} alone predicts the label {each.label!r} with an "
            f"AUC of {each.auc:.4f} by {how}"
        )
        if each.low > REFUSED and each.rows >= FEWEST:
            raise UserError(
                f"{sentence}: it seems to be known only after the event; leave it out, "
                f"or allow it with --allow-leaks {each.feature}"
            )
        warnings.warn(f"{sentence}: is it known at the exposure?", LeakWarning, 3)


def feature_aucs(folder: Path, manifest: Manifest) -> list[FeatureAuc]:
    """For each label and feature, the score with the highest lower bound.

    Labels with fewer than MEASURED rows of either class in train are left out.
    """
    schema = manifest.schema
    samples, frame = _sample(folder, manifest)
    fills = {
        f.name: np.float32((manifest.fill.get(f.name, f.mean) - f.mean) / f.scale)
        for f in schema.numerical
    }
    best = []
    for label, rows in samples.items():
        truth = frame[label].to_numpy()[rows]
        for name in (f.name for f in (*schema.embedded, *schema.numerical)):
            ways = _scores(frame, schema, name, rows, truth, fills)
            each = [_measured(name, label, by, truth, s) for by, s in ways]
            best.append(max(each, key=lambda one: one.low))
    return best


def _measured(
    feature: str, label: str, by: str, truth: np.ndarray, scores: np.ndarray
) -> FeatureAuc:
    value = auc(truth, scores)
    if by != "category" and value < 0.5:
        value, scores = 1 - value, -scores
    low = value
    if WARNED < value < 1:
        interval = auc_interval(truth, scores)
        low = value if np.isnan(interval.low) else interval.low
    rows = int(min(truth.sum(), len(truth) - truth.sum()))
    return FeatureAuc(feature, label, by, value, low, rows)


def _scores(
    frame: pl.DataFrame,
    schema: Schema,
    name: str,
    rows: np.ndarray,
    truth: np.ndarray,
    fills: Mapping[str, np.float32],
) -> Iterator[tuple[str, np.ndarray]]:
    """The scores of a feature for the label, f[rows] by name."""
    column = frame[name]
    if name in fills:
        values = column.to_numpy()[rows]
        yield "value", values
        yield "missing", (values == fills[name]).astype(np.float32)
        return
    if column.dtype == pl.List:
        lengths = column.list.len().to_numpy()[rows].astype(np.float32)
        yield "value", lengths
        yield "missing", (lengths == 0).astype(np.float32)
        ids = column.list.first().fill_null(-1).to_numpy()[rows]
    else:
        ids = column.to_numpy()[rows]
        (field,) = (f for f in schema.categorical if f.name == name)
        yield "missing", (ids == field.missing).astype(np.float32)
    yield "category", _rates(ids, truth)


def _rates(ids: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """The smoothed rate of label 1 for each row's id in the other folds."""
    _, codes = np.unique(ids, return_inverse=True)
    fold = np.arange(len(ids)) % FOLDS
    cells = codes * FOLDS + fold
    size = FOLDS * (int(codes.max()) + 1)
    count = np.bincount(cells, minlength=size).reshape(-1, FOLDS)
    ones = np.bincount(cells, truth, minlength=size).reshape(-1, FOLDS)
    count, ones = (table.sum(1, keepdims=True) - table for table in (count, ones))
    return ((ones + truth.mean()) / (count + 1))[codes, fold]


def _sample(
    folder: Path, manifest: Manifest
) -> tuple[dict[str, np.ndarray], pl.DataFrame]:
    """Label -> rows of the frame, shuffled: at most SAMPLE of either class."""
    labels = manifest.schema.labels
    files = manifest.splits["train"].files
    count = min(SHARDS, len(files))
    while True:
        at = np.unique(np.linspace(0, len(files) - 1, count).round().astype(int))
        chosen = [folder / files[k] for k in at]
        truth = scan_parquet(chosen).select(labels).collect().to_numpy()
        ones = truth.sum(axis=0, dtype=np.int64)
        fewer = np.minimum(ones, len(truth) - ones)
        if (fewer >= FEWEST).all() or count == len(files):
            break
        count = min(2 * count, len(files))
    random = np.random.default_rng(0)
    samples = {}
    for k in np.flatnonzero(fewer >= MEASURED):
        classes = [np.flatnonzero(truth[:, k] == value) for value in (0, 1)]
        picked = [random.permutation(rows)[:SAMPLE] for rows in classes]
        samples[labels[k]] = random.permutation(np.concatenate(picked))
    rows = np.unique(np.concatenate([*samples.values(), np.empty(0, np.int64)]))
    places = {label: np.searchsorted(rows, at) for label, at in samples.items()}
    return places, _read(folder, manifest, chosen, rows) if samples else pl.DataFrame()


def _read(
    folder: Path, manifest: Manifest, files: Sequence[Path], rows: np.ndarray
) -> pl.DataFrame:
    """Reads columns of rows, given by ascending indices into the concatenated files."""
    frames, start = [], 0
    for path in files:
        with path.open("rb") as file:
            shard = pl.read_parquet(file)
        local = rows[(rows >= start) & (rows < start + shard.height)] - start
        frames.append(shard[local])
        start += shard.height
    frame = pl.concat(frames)
    if manifest.common is None:
        return frame
    lines, at = np.unique(frame[COMMON].to_numpy(), return_inverse=True)
    shared = scan_parquet(folder / manifest.common.file).with_row_index("__line__")
    shared = shared.filter(pl.col("__line__").is_in(lines.tolist())).collect()
    names = [n for n in shared.columns if not n.endswith(LIST_WEIGHTS)]
    return frame.hstack(shared.select(names).drop("__line__")[at])
