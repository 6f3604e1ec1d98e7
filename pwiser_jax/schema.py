"""The schema of a prepared folder: its columns.

A prepared folder holds

    manifest.json          the schema, the files, and where they came from
    train-00000.parquet    the rows of train; train-00001.parquet and so on follow, and
                           the same of valid and test (none where a split is empty)
    common.parquet         fields that rows share, where the schema has any
    vocabulary.parquet     the value behind each id: columns field, value, id
    cache/                 created on reading, and safe to delete

The columns of the rows:

    a categorical field    int32, an id
    a numerical field      float32, (x - mean) / scale
    a multi-valued field   NAME, a list of int32 ids, and NAME:weight, a list of float32
                           weights of the same length, heaviest first; an empty list is
                           a missing value
    a label                int8, 0 or 1
    group                  int64, a hash of the search, session or user
    time                   int64, if the source has one
    weight                 float32, the weight of the row, if the source has one
    an extra column        float64, kept beside the rows and never a feature
    common                 int32, the row of common.parquet with the shared fields, if
                           `Schema.common` names any (a user's features, for example,
                           are stored once)

A categorical field has the ids 0 .. size - 1 for its own values, and then three more:

    size        missing: the value is null or empty
    size + 1    unseen: train does not have the value
    size + 2    rare: train has the value, but fewer times than the minimum count

They come last so that embedding tables of other libraries, which have rows only for
values, can be loaded. A multi-valued field has the same ids, but marks a missing value
by an empty list.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

GROUP = "group"
TIME = "time"
COMMON = "common"
ROW_WEIGHT = "weight"
LIST_WEIGHTS = ":weight"
RESERVED_ROWS = 3


Pool = Literal["sum", "mean"]


@dataclass(frozen=True)
class _Vocabulary:
    """A field with `size` ids for its own values and three reserved ones."""

    name: str
    size: int

    @property
    def missing(self) -> int:
        return self.size

    @property
    def unseen(self) -> int:
        return self.size + 1

    @property
    def rare(self) -> int:
        return self.size + 2

    @property
    def rows(self) -> int:
        """Rows of the field's embedding table, reserved ids included."""
        return self.size + RESERVED_ROWS


@dataclass(frozen=True)
class CategoricalField(_Vocabulary):
    """One id per row."""


@dataclass(frozen=True)
class MultiValuedField(_Vocabulary):
    """At most `width` ids a row, each with a weight w.

    Models pool the ids' vectors e: "sum" is sum w e, "mean" is sum w e / sum w. Without
    any id, or where all weights are 0, the result is 0.
    """

    width: int
    pool: Pool = "sum"


@dataclass(frozen=True)
class NumericalField:
    """A numerical field, stored as (x - mean) / scale, with mean and scale of train."""

    name: str
    mean: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Schema:
    """The columns of prepared rows.

    Args:
        categorical, numerical, multi_valued: the fields.
        labels: the ladder, lowest rung first.
        extra: columns that are kept but never features.
        common: fields of common.parquet, by name.
        weight: whether rows have weights.
    """

    categorical: tuple[CategoricalField, ...]
    numerical: tuple[NumericalField, ...] = ()
    labels: tuple[str, ...] = ("click", "conversion")
    extra: tuple[str, ...] = ()
    multi_valued: tuple[MultiValuedField, ...] = ()
    common: tuple[str, ...] = ()
    weight: bool = False

    @property
    def field_sizes(self) -> tuple[int, ...]:
        return tuple(field.size for field in self.categorical)

    @property
    def embedded(self) -> tuple[CategoricalField | MultiValuedField, ...]:
        """The fields with ids, in the order of their rows in the embedding table."""
        return (*self.categorical, *self.multi_valued)

    @property
    def multi_width(self) -> int:
        """The widths of all multi-valued fields, summed."""
        return sum(field.width for field in self.multi_valued)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, tree: Mapping[str, Any]) -> "Schema":
        return cls(
            categorical=tuple(CategoricalField(**f) for f in tree["categorical"]),
            numerical=tuple(NumericalField(**f) for f in tree["numerical"]),
            labels=tuple(tree["labels"]),
            extra=tuple(tree["extra"]),
            # Folders of earlier versions do not have these.
            multi_valued=tuple(
                MultiValuedField(**f) for f in tree.get("multi_valued", ())
            ),
            common=tuple(tree.get("common", ())),
            weight=tree.get("weight", False),
        )
