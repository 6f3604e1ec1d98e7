"""The schema file of an own table: which column means what, and how to split.

categorical: [user_id, item_id, category]
numerical: [price, age]
labels: {click: clicked, conversion: bought}   # label: column, lowest rung first
group: session_id                              # kept whole by the split
time: day                                      # optional
split: {by: group, valid: 0.1, test: 0.1}      # or by: time, or by: column
min_count: 5                                   # optional: rarer values share an id
standardize: true                              # optional: scale the numericals
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from datetime import date
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from pwiser_jax.errors import UserError

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
    """A schema file, checked; columns are not looked up yet."""

    split: SplitRule
    labels: Mapping[str, str]
    categorical: tuple[str, ...] = ()
    numerical: tuple[str, ...] = ()
    multi_valued: tuple[str, ...] = ()
    group: str | None = None
    time: str | None = None
    min_count: int = 1
    standardize: bool = True
    raw: Mapping[str, Any] = field(default_factory=dict)


KEYS = tuple(key.name for key in fields(TableSchema) if key.name != "raw")


def read_table_schema(path: Path) -> TableSchema:
    """A schema file; raises a UserError that names the file and the key."""
    tree = _mapping(_yaml(path), str(path))
    _refuse_unknown(tree, KEYS, str(path))
    for key in ("labels", "split"):
        if key not in tree:
            raise UserError(f"{path} has no key {key!r}, which every table needs")
    if tree.get("multi_valued"):
        raise UserError(
            f"{path}: multi_valued columns cannot be prepared yet: leave the key out, "
            "or give each value a column of its own"
        )
    found: dict[str, Any] = dict(tree)
    for key in ("categorical", "numerical", "multi_valued"):
        found[key] = _columns(tree.get(key) or [], f"{path}: {key}")
    labels = _mapping(tree["labels"], f"{path}: labels")
    names = _columns(list(labels), f"{path}: labels")
    columns = _columns(list(labels.values()), f"{path}: labels")
    if not names or len(set(columns)) < len(columns):
        raise UserError(f"{path}: labels needs a column of its own for each label")
    found["labels"] = dict(zip(names, columns, strict=True))
    for key in ("group", "time"):
        if tree.get(key) is not None:
            found[key] = _columns([tree[key]], f"{path}: {key}")[0]
    count, scale = tree.get("min_count", 1), tree.get("standardize", True)
    if type(count) is not int or count < 1:
        raise UserError(f"{path}: min_count is {count!r}; expected 1 or more")
    if type(scale) is not bool:
        raise UserError(f"{path}: standardize is {scale!r}; expected true or false")
    found["split"] = _split(tree, str(path))
    return TableSchema(**found, raw=tree)


def _yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; --schema names a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({error.problem})") from None
    except (yaml.YAMLError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: not YAML ({reason})") from None


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
                f"{where}: {name!r} is no column's name; expected text (in quotes "
                "where YAML reads it as something else, such as a number or yes)"
            )
    return tuple(names)


def _refuse_unknown(
    tree: Mapping[str, Any], known: tuple[str, ...], where: str
) -> None:
    for key in tree:
        if key not in known:
            near = get_close_matches(str(key), known, n=1)
            hint = (
                f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}"
            )
            raise UserError(f"{where} has an unknown key {key!r} ({hint})")


def _split(tree: Mapping[str, Any], path: str) -> SplitRule:
    where = f"{path}: split"
    options = dict(_mapping(tree["split"], where))
    by = options.pop("by", None)
    if by not in SPLIT_KEYS:
        raise UserError(f"{where}: by is {by!r}; expected {', '.join(SPLIT_KEYS)}")
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
            raise UserError(f"{where}: {key} cannot be {value!r}")
    return SplitRule(by, options)
