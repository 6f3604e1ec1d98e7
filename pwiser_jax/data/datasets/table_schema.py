"""The schema file of an own table: what each column means, and how to split.

categorical: [user_id, item_id, category]
numerical: [price, age]
multi_valued:                                  # optional: several categories in a row
  tags: {separator: "|"}                       #   text, cut at each separator
  brands: {max_values: 10, pool: sum}          #   lists; the defaults are 20 and mean
labels: {click: clicked, conversion: bought}   # label: column, lowest rung first
group: session_id                              # kept whole by the split
time: day                                      # optional
weight: importance                             # optional: what a row counts in the loss
split: {by: group, valid: 0.1, test: 0.1}      # or by: time, or by: column
min_count: 5                                   # optional: rarer values share an id
vocabulary:                                    # optional: the same by column
  item_id: {min_count: 50}
  user_id: {buckets: 1000000}                  #   hashed into so many ids instead
standardize: true                              # optional: scale the numericals
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from pathlib import Path
from typing import Any, get_args

from pwiser_jax.data.raw.columns import written
from pwiser_jax.data.raw.flat import ListColumn
from pwiser_jax.errors import UserError, did_you_mean, listed
from pwiser_jax.schema import Pool
from pwiser_jax.typed import read_yaml

SPLIT_KEYS = {
    "group": ("valid", "test", "seed"),
    "time": ("train_until", "valid_until"),
    "column": ("column",),
}


@dataclass(frozen=True)
class SplitRule:
    """How rows are split, and the options of that way."""

    by: str
    options: Mapping[str, Any]


@dataclass(frozen=True)
class TableSchema:
    """A schema file, checked; its columns are not compared with a table yet."""

    split: SplitRule
    labels: Mapping[str, str]
    categorical: tuple[str, ...] = ()
    numerical: tuple[str, ...] = ()
    multi_valued: Mapping[str, ListColumn] = field(default_factory=dict)
    group: str | None = None
    time: str | None = None
    weight: str | None = None
    min_count: int = 1
    min_counts: Mapping[str, int] = field(default_factory=dict)
    buckets: Mapping[str, int] = field(default_factory=dict)
    standardize: bool = True
    raw: Mapping[str, Any] = field(default_factory=dict)


KEYS = (
    *("categorical", "numerical", "multi_valued", "labels", "group", "time", "weight"),
    *("split", "min_count", "vocabulary", "standardize"),
)


def read_table_schema(path: Path) -> TableSchema:
    """A schema file; raises a UserError that names the file and the key."""
    tree = _mapping(read_yaml(path, what="the YAML file of --schema"), str(path))
    _refuse_unknown(tree, KEYS, str(path))
    for key in ("labels", "split"):
        if key not in tree:
            raise UserError(f"{path} has no key {key!r}, which every table needs")
    known: dict[str, Any] = {}
    for key in ("categorical", "numerical"):
        known[key] = _columns(tree.get(key) or [], f"{path}: {key}")
    known["multi_valued"] = _multi_valued(tree.get("multi_valued"), str(path))
    labels = _mapping(tree["labels"], f"{path}: labels")
    names = _columns(list(labels), f"{path}: labels")
    columns = _columns(list(labels.values()), f"{path}: labels")
    if not names or len(set(columns)) < len(columns):
        raise UserError(f"{path}: labels needs a column of its own for each label")
    known["labels"] = dict(zip(names, columns, strict=True))
    for key in ("group", "time", "weight"):
        if tree.get(key) is not None:
            known[key] = _columns([tree[key]], f"{path}: {key}")[0]
    known["min_count"] = _count(tree.get("min_count", 1), f"{path}: min_count")
    options = _vocabulary(tree.get("vocabulary"), known, str(path))
    known["min_counts"] = {n: o["min_count"] for n, o in options if "min_count" in o}
    known["buckets"] = {n: o["buckets"] for n, o in options if "buckets" in o}
    known["standardize"] = scale = tree.get("standardize", True)
    if type(scale) is not bool:
        raise UserError(
            f"{path}: standardize is {written(scale)}; expected true or false"
        )
    known["split"] = _split(tree, str(path))
    return TableSchema(**known, raw=tree)


def _multi_valued(tree: Any, path: str) -> dict[str, ListColumn]:
    """Columns with several categories: a list of names, or names with options."""
    where = f"{path}: multi_valued"
    if isinstance(tree, list):
        tree = dict.fromkeys(_columns(tree, where))
    columns = {}
    for name, options in _mapping(tree or {}, where).items():
        _columns([name], where)
        options = _mapping(options or {}, f"{where}: {name}")
        known = tuple(field.name for field in fields(ListColumn))
        _refuse_unknown(options, known, f"{where}: {name}")
        separator = options.get("separator")
        if separator is not None and (not isinstance(separator, str) or not separator):
            raise UserError(f"{where}: {name}: separator must be text, such as '|'")
        if options.get("pool", "mean") not in get_args(Pool):
            raise UserError(
                f"{where}: {name}: pool is {written(options['pool'])}; expected "
                f"{listed(get_args(Pool))}"
            )
        _count(options.get("max_values", 1), f"{where}: {name}: max_values")
        columns[name] = ListColumn(**options)
    return columns


def _vocabulary(
    tree: Any, known: Mapping[str, Any], path: str
) -> list[tuple[str, dict[str, int]]]:
    """Options of single columns' vocabularies."""
    where = f"{path}: vocabulary"
    fields = (*known["categorical"], *known["multi_valued"])
    options_by_name = list(_mapping(tree or {}, where).items())
    _refuse_unknown(dict(options_by_name), fields, where)
    for name, options in options_by_name:
        _mapping(options, f"{where}: {name}")
        _refuse_unknown(options, ("min_count", "buckets"), f"{where}: {name}")
        for key, value in options.items():
            _count(value, f"{where}: {name}: {key}")
        if len(options) != 1:
            raise UserError(f"{where}: {name} needs one of min_count and buckets")
    return options_by_name


def _count(value: Any, where: str) -> int:
    if type(value) is not int or not 1 <= value < 2**31:
        raise UserError(
            f"{where} is {written(value)}; expected a whole number, 1 or more"
        )
    return value


def _mapping(tree: Any, where: str) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise UserError(f"{where}: expected keys with values, such as 'group: user_id'")
    return tree


def _columns(names: Any, where: str) -> tuple[str, ...]:
    if not isinstance(names, list):
        raise UserError(f"{where}: expected a list of columns, such as [price, age]")
    for name in names:
        if not isinstance(name, str) or not name:
            raise UserError(
                f"{where}: {written(name)} is no column's name; expected text (in "
                "quotes where YAML reads it as something else, such as a number or yes)"
            )
    return tuple(names)


def _refuse_unknown(
    tree: Mapping[str, Any], known: tuple[str, ...], where: str
) -> None:
    for key in tree:
        if key not in known:
            hint = did_you_mean(key, known) or f"; known: {', '.join(known)}"
            raise UserError(f"{where} has an unknown key {key!r}{hint}")


def _split(tree: Mapping[str, Any], path: str) -> SplitRule:
    where = f"{path}: split"
    options = dict(_mapping(tree["split"], where))
    by = options.pop("by", None)
    if not isinstance(by, str) or by not in SPLIT_KEYS:
        raise UserError(
            f"{where}: by is {written(by)}; expected {', '.join(SPLIT_KEYS)}"
        )
    _refuse_unknown(options, SPLIT_KEYS[by], f"{where} by {by}")
    if by in ("group", "time") and tree.get(by) is None:
        raise UserError(f"{where} by {by}: the key {by!r} must name a column")
    needed = {"group": ("valid",), "time": SPLIT_KEYS["time"], "column": ("column",)}
    for key in needed[by]:
        if key not in options:
            raise UserError(f"{where} by {by} needs the key {key!r}")
    kinds = {"valid": (int, float), "test": (int, float), "seed": int, "column": str}
    for key, value in options.items():
        kind = kinds.get(key, (int, date))
        if not isinstance(value, kind) or isinstance(value, bool):
            raise UserError(f"{where}: {key} cannot be {written(value)}")
    return SplitRule(by, options)
