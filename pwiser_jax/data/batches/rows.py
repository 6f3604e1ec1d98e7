"""The rows of a split as arrays, in memory or in mapped files.

A model's inputs are "categorical" int32[N, F] and "numerical" float32[N, M] in the
schema's order and, where the schema has multi-valued fields, "multi_ids" int32[N, W]
and "multi_weights" float32[N, W]: the fields side by side, each `width` columns wide,
padded with id 0 of weight 0.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import groupby
from typing import Protocol, TypeVar

import numpy as np
import polars as pl

from pwiser_jax.data.batches.groups import GroupIndex
from pwiser_jax.errors import UserError
from pwiser_jax.schema import (
    COMMON,
    GROUP,
    LIST_WEIGHTS,
    ROW_WEIGHT,
    TIME,
    CategoricalField,
    MultiValuedField,
    NumericalField,
    Schema,
)

Inputs = dict[str, np.ndarray]
Runs = Sequence[tuple[slice, slice]]
Field = TypeVar("Field", CategoricalField, NumericalField, MultiValuedField)


class Pages(Protocol):
    """The memory pages of an array in a mapped file."""

    def will_need(self, start: int, stop: int) -> None: ...

    def release(self) -> None: ...


@dataclass(frozen=True)
class Shared:
    """Fields shared by rows: row r has the fields of line `line[r]` of `inputs`.

    Args:
        line: int32[N].
        inputs: the shared columns by input, [lines, columns].
        own: input -> positions of the rows' own columns in the joined input.
        common: input -> positions of the shared columns.
        pages: the mapped files of `inputs`.
    """

    line: np.ndarray
    inputs: Inputs
    own: Mapping[str, Runs]
    common: Mapping[str, Runs]
    pages: tuple[Pages, ...] = ()


@dataclass(frozen=True)
class Rows:
    """The rows of a split.

    Args:
        inputs: the fields that are not shared.
        labels: int8[N, L].
        group: int64[N].
        time: int64[N], or None.
        extra: name -> float64[N].
        weight: float32[N], the column of row weights; None: all are 1.
        shared: the fields that several rows share.
        pages: the mapped files of all arrays but `shared.inputs`.
        group_codes: int32[N], see `with_pair_columns`; so is `pair_values`.
        pair_values: float32[N].
    """

    inputs: Inputs
    labels: np.ndarray
    group: np.ndarray
    time: np.ndarray | None = None
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    weight: np.ndarray | None = None
    shared: Shared | None = None
    pages: tuple[Pages, ...] = ()
    group_codes: np.ndarray | None = None
    pair_values: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.group)

    @property
    def categorical(self) -> np.ndarray:
        """int32[N, F] of all rows; a copy if rows share fields."""
        return self._whole("categorical")

    @property
    def numerical(self) -> np.ndarray:
        """float32[N, M] of all rows; a copy if rows share fields."""
        return self._whole("numerical")

    @cached_property
    def conversions(self) -> np.ndarray:
        """int64[C]: the rows with the highest label, ascending."""
        return np.flatnonzero(self.labels[:, -1])

    @cached_property
    def by_group(self) -> GroupIndex:
        return GroupIndex(self.group)

    def _whole(self, name: str) -> np.ndarray:
        if self.shared is None:
            return self.inputs[name]
        return self.take(slice(0, len(self)), (name,))[name]

    def take(
        self, index: np.ndarray | slice, names: Sequence[str] | None = None
    ) -> Inputs:
        """The inputs of some rows, shared fields included."""
        names = tuple(self.inputs) if names is None else names
        own = {name: take_rows(self.inputs[name], index) for name in names}
        if self.shared is None:
            return own
        line = take_rows(self.shared.line, index)
        return {name: _joined(name, own[name], line, self.shared) for name in names}

    def with_pair_columns(
        self, *, groups: bool = False, pair_value: str | None = None
    ) -> "Rows":
        """Adds the columns that ranking losses need to the rows, and so to batches.

        Args:
            groups: whether pairs are limited to one group.
            pair_value: extra column; pairs are weighted by its value in the higher row.

        Raises:
            UserError: there is no such column, or a value below 0 or not finite.
        """
        values = None
        if pair_value is not None:
            if pair_value not in self.extra:
                listed = ", ".join(self.extra) or "none"
                raise UserError(
                    f"loss.pair_value {pair_value!r} is no extra column of the data "
                    f"(it has {listed})"
                )
            # float64 values may overflow float32: that is an error below.
            with np.errstate(over="ignore"):
                values = self.extra[pair_value].astype(np.float32)
            refuse_bad_weights(f"loss.pair_value: column {pair_value!r}", values)
        codes = self.by_group.codes if groups else None
        return replace(self, group_codes=codes, pair_values=values)

    def will_need(self, start: int, stop: int) -> None:
        """Requests rows start .. stop - 1 from the disk, without waiting."""
        for pages in self.pages:
            pages.will_need(start, stop)

    def release(self) -> None:
        """Lets the system release the pages that have been read."""
        for pages in (*self.pages, *(self.shared.pages if self.shared else ())):
            pages.release()


def take_rows(array: np.ndarray, index: np.ndarray | slice) -> np.ndarray:
    """A copy of some rows; `np.take` is twice as fast here as `array[index]`."""
    if isinstance(index, slice):
        return np.array(array[index])
    return np.take(array, index, axis=0, mode="clip")


def _joined(name: str, own: np.ndarray, line: np.ndarray, shared: Shared) -> np.ndarray:
    common = take_rows(shared.inputs[name], line)
    if not own.shape[1]:
        return common
    if not common.shape[1]:
        return own
    joined = np.empty((len(own), own.shape[1] + common.shape[1]), own.dtype)
    for part, runs in ((own, shared.own[name]), (common, shared.common[name])):
        for source, target in runs:
            joined[:, target] = part[:, source]
    return joined


def join(
    schema: Schema, line: np.ndarray, inputs: Inputs, pages: tuple[Pages, ...] = ()
) -> Shared:
    """The `Shared` of a schema, with the fields of `schema.common` in `inputs`."""
    fields = {
        "categorical": [(field.name, 1) for field in schema.categorical],
        "numerical": [(field.name, 1) for field in schema.numerical],
        "multi_ids": [(field.name, field.width) for field in schema.multi_valued],
    }
    fields["multi_weights"] = fields["multi_ids"]
    places: dict[bool, dict[str, Runs]] = {False: {}, True: {}}
    for name in inputs:
        for common, where in places.items():
            columns = [
                (field in schema.common) == common
                for field, width in fields[name]
                for _ in range(width)
            ]
            where[name] = _runs(columns)
    return Shared(line, inputs, places[False], places[True], pages)


def _runs(columns: Sequence[bool]) -> Runs:
    """(source, target) slices that copy a matrix into the selected columns."""
    runs, source, target = [], 0, 0
    for true, group in groupby(columns):
        length = len(list(group))
        if true:
            runs.append(
                (slice(source, source + length), slice(target, target + length))
            )
            source += length
        target += length
    return runs


def feature_arrays(frame: pl.DataFrame, schema: Schema, *, common: bool) -> Inputs:
    """The inputs of the shared fields, or of the other fields."""

    def here(fields: Sequence[Field]) -> list[Field]:
        return [f for f in fields if (f.name in schema.common) == common]

    categorical = [field.name for field in here(schema.categorical)]
    numerical = [field.name for field in here(schema.numerical)]
    arrays = {
        "categorical": matrix(frame, categorical, np.int32),
        "numerical": matrix(frame, numerical, np.float32),
    }
    if schema.multi_valued:
        lists = here(schema.multi_valued)
        arrays["multi_ids"] = _padded_lists(frame, lists, "", np.int32)
        arrays["multi_weights"] = _padded_lists(frame, lists, LIST_WEIGHTS, np.float32)
    return arrays


def feature_rows(frame: pl.DataFrame, schema: Schema, common: Inputs | None) -> Rows:
    """Prepared columns as rows in memory, for prediction; features alone.

    Args:
        frame: the columns of the fields, and `common` where the schema shares fields.
        schema: the fields.
        common: the inputs of the shared fields; None without any.
    """
    count = frame.height
    return Rows(
        feature_arrays(frame, schema, common=False),
        labels=np.empty((count, 0), np.int8),
        group=np.zeros(count, np.int64),
        shared=None
        if common is None
        else join(schema, frame[COMMON].to_numpy(), common),
    )


def beside_arrays(frame: pl.DataFrame, schema: Schema) -> Inputs:
    """The other columns: "labels", "group", "time", "weight", "extra", "common".

    Those that the schema has; without label columns the labels are int8[N, 0].
    """
    labels = [name for name in schema.labels if name in frame.columns]
    arrays = {
        "labels": matrix(frame, labels, np.int8),
        "group": frame[GROUP].to_numpy(),
    }
    if TIME in frame.columns:
        arrays["time"] = frame[TIME].to_numpy()
    if schema.weight:
        arrays["weight"] = frame[ROW_WEIGHT].to_numpy()
    if schema.extra:
        arrays["extra"] = matrix(frame, list(schema.extra), np.float64)
    if schema.common:
        arrays["common"] = frame[COMMON].to_numpy()
    return arrays


def refuse_bad_weights(what: str, values: np.ndarray) -> None:
    """Raise a UserError for the first value that is negative or not finite."""
    bad = ~((values >= 0) & np.isfinite(values))
    if bad.any():
        row = int(bad.argmax())
        raise UserError(
            f"{what}, row {row + 1} of the split, is {values[row]:g} in "
            f"{values.dtype}; expected a finite number of at least 0"
        )


def matrix(frame: pl.DataFrame, names: Sequence[str], dtype: type) -> np.ndarray:
    """Columns as one matrix in C order, since batches gather whole rows."""
    values = np.empty((frame.height, len(names)), dtype)
    for at, name in enumerate(names):
        values[:, at] = frame[name].to_numpy()
    return values


def _padded_lists(
    frame: pl.DataFrame, fields: Sequence[MultiValuedField], suffix: str, dtype: type
) -> np.ndarray:
    """List columns side by side, each padded with 0 to `field.width`."""
    ends = np.cumsum([0, *(field.width for field in fields)])
    padded = np.zeros((frame.height, int(ends[-1])), dtype)
    for at, field_ in enumerate(fields):
        lists = frame[field_.name + suffix]
        lengths = lists.list.len().to_numpy().astype(np.int64)
        if (lengths != frame[field_.name].list.len().to_numpy()).any():
            raise UserError(f"{lists.name!r} and its ids differ in length")
        if (lengths > field_.width).any():
            raise UserError(f"{lists.name!r} has more than {field_.width} values")
        values = lists.filter(lists.list.len() > 0).explode().to_numpy()
        rows = np.repeat(np.arange(frame.height), lengths)
        first = np.cumsum(lengths) - lengths
        padded[rows, ends[at] + np.arange(len(values)) - first[rows]] = values
    return padded
