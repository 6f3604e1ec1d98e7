"""What the columns of prepared data are: the contract between data and models.

A prepared folder holds Parquet files and `manifest.json`, which holds a `Schema`.
Columns of the Parquet files: one int32 column a categorical field, one float32 column a
numerical field (already scaled), one int8 column a label, `group` (int64), and where
the source has them `time` (int64) and extra columns that are never features. A
multi-valued field is two list columns of equal lengths, its name (int32 ids) and
`NAME:weight` (float32), heaviest first; an empty list is a missing value.

Fields that many rows share (a user's) may be stored once for all of them: `common`
names them, `common.parquet` holds their columns, and a row's int32 column `common` is
the number of its row there.

A categorical field's own ids are 0 .. size - 1. Three reserved ids follow, so that
embedding tables of other libraries, which have its own rows only, can be loaded:

    size      missing: the value is null or empty
    size + 1  unseen:  a value that train does not have
    size + 2  rare:    a value that train has, fewer times than the minimum count

A multi-valued field has the same ones; it shows a missing value by its empty list.
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
    """A field whose values are `size` ids of its own and three reserved ones."""

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
        """Rows in an embedding table: own ids and reserved ones."""
        return self.size + RESERVED_ROWS


@dataclass(frozen=True)
class CategoricalField(_Vocabulary):
    """One id a row."""


@dataclass(frozen=True)
class MultiValuedField(_Vocabulary):
    """At most `width` ids a row, each with a weight w.

    With the ids' vectors e, `pool` "sum" is sum w e and "mean" is sum w e / sum w; no
    id, or weights of 0 alone, give zeros.
    """

    width: int
    pool: Pool = "sum"


@dataclass(frozen=True)
class NumericalField:
    """A numerical field, stored as (x - mean) / scale; mean and scale are train's."""

    name: str
    mean: float = 0.0
    scale: float = 1.0


@dataclass(frozen=True)
class Schema:
    """Fields, labels (the ladder, lowest rung first) and extra columns."""

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
        """The fields with ids, in the order in which an embedding table holds them."""
        return (*self.categorical, *self.multi_valued)

    @property
    def multi_width(self) -> int:
        """Columns of all multi-valued fields side by side."""
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
            # Folders of earlier versions lack these.
            multi_valued=tuple(
                MultiValuedField(**f) for f in tree.get("multi_valued", ())
            ),
            common=tuple(tree.get("common", ())),
            weight=tree.get("weight", False),
        )
