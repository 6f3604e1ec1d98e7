"""Builds dataclasses from plain values (YAML, JSON, Python), checked by type.

Error messages name the option by its path, show the value as YAML would, and describe
the expected type in words.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

import yaml

from pwiser_jax.errors import UserError, did_you_mean, first_line, listed

T = TypeVar("T")

# A YAML file of options has a few kilobytes. Aliases can expand exponentially.
MOST_BYTES, MOST_ALIASES = 1 << 20, 100
INT_LIMIT = 2**31

NAMES = {
    bool: ("true or false", "true or false"),
    int: ("a whole number", "whole numbers"),
    float: ("a number", "numbers"),
    str: ("text", "texts"),
    Path: ("a path", "paths"),
    NoneType: ("null", "nulls"),
}


def words(hint: Any, *, plural: bool = False) -> str:
    """A type in words: `tuple[int, ...]` is "a list of whole numbers"."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return listed(args)
    if origin in (Union, UnionType):
        return listed(words(arg, plural=plural) for arg in args)
    if origin in (tuple, list):
        return f"{'lists' if plural else 'a list'} of {words(args[0], plural=True)}"
    if origin is dict:
        return f"{words(args[1], plural=True)} by name, such as {{NAME: VALUE}}"
    if hint in NAMES:
        return NAMES[hint][plural]
    if isinstance(hint, type) and is_dataclass(hint):
        return "options with values, such as {NAME: VALUE}"
    return getattr(hint, "__name__", str(hint))


def shown(value: Any) -> str:
    """A value as a user would write it in YAML or on the command line, shortened."""
    try:
        text = value if isinstance(value, str) and value else json.dumps(value)
    except (TypeError, ValueError):
        text = str(value)
    text = " ".join(text.split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def build(kind: type[T], tree: Any, where: str = "") -> T:
    """Builds a dataclass from a mapping of its fields; nested mappings give
    dataclasses.

    Missing fields have their defaults; an empty section has all defaults.

    Args:
        kind: the dataclass.
        tree: plain values by field.
        where: path of the option that holds the tree, for messages.

    Raises:
        UserError: an unknown field, a value of another type, or one that the
            dataclass refuses with a ValueError.
    """
    if not isinstance(tree, Mapping):
        if tree is not None:
            raise UserError(
                f"{where or 'the configuration'} is {shown(tree)}; "
                f"expected {words(kind)}"
            )
        tree = {}
    hints = get_type_hints(kind)
    names = [field.name for field in fields(kind)]  # pyright: ignore[reportArgumentType]
    values = {}
    for key, value in tree.items():
        path = f"{where}.{key}" if where else str(key)
        if key not in names:
            raise UserError(
                f"there is no option {path}"
                + (did_you_mean(key, names) or f"; known here: {', '.join(names)}")
            )
        values[key] = _converted(hints[key], value, path)
    try:
        return kind(**values)
    except ValueError as error:
        raise UserError(str(error)) from None


def _converted(hint: Any, value: Any, path: str) -> Any:
    if isinstance(hint, type) and is_dataclass(hint):
        return build(hint, value, path)
    try:
        return _fit(hint, value)
    except (ValueError, OverflowError):
        raise UserError(mismatch(path, value, hint)) from None


def mismatch(option: str, value: Any, hint: Any) -> str:
    """The sentence for a value that does not fit the type of an option."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    expected = words(hint)
    if isinstance(value, float) and not math.isfinite(value):
        expected = f"{expected}, and finite"
    elif number and abs(value) >= INT_LIMIT:
        expected = f"{expected} below {INT_LIMIT}"
    text = f"{option} is {shown(value)}; expected {expected}"
    return text + did_you_mean(value, _choices(hint))


def _choices(hint: Any) -> list[str]:
    """The texts that a type names one by one."""
    if get_origin(hint) is Literal:
        return [str(arg) for arg in get_args(hint)]
    if get_origin(hint) in (Union, UnionType):
        return [choice for arg in get_args(hint) for choice in _choices(arg)]
    return []


def _fit(hint: Any, value: Any) -> Any:
    """The value as a type, or a ValueError."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        if isinstance(value, str | int) and value in args:
            return value
    elif origin in (Union, UnionType):
        for arg in args:
            try:
                return _fit(arg, value)
            except (ValueError, OverflowError):
                pass
    elif origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(_fit(args[0], item) for item in value)
    elif origin is dict:
        if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
            return {key: _fit(args[1], item) for key, item in value.items()}
    elif hint is NoneType:
        if value is None:
            return None
    elif hint is float:
        # YAML reads 1e-3, without a point, as text.
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            number = float(value)
            if math.isfinite(number):
                return number
    elif hint is int:
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and abs(value) < INT_LIMIT
        ):
            return value
    elif isinstance(value, hint):
        return value
    raise ValueError


class _Loader(yaml.SafeLoader):
    """Refuses a key that a mapping has twice, of which YAML would drop the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys = [(key.tag, key.value) for key, _ in node.value]
        for at, (key, _) in enumerate(node.value):
            if isinstance(key, yaml.ScalarNode) and keys[at] in keys[:at]:
                problem = f"the key {key.value} is there twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
        return super().construct_mapping(node, deep=deep)


def read_yaml(path: Path, *, what: str = "a YAML file") -> Any:
    """The tree of a small YAML file.

    Args:
        path: the file.
        what: what the file should be, for the message that it is missing.

    Raises:
        UserError: no such file, too large, too many aliases, or not YAML.
    """
    try:
        if path.is_dir():
            raise UserError(f"{path} is a folder; expected {what}")
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than 1 MB; expected {what}")
        text = path.read_text(encoding="utf-8")
        events = yaml.parse(text, Loader=yaml.SafeLoader)
        if sum(isinstance(event, yaml.AliasEvent) for event in events) > MOST_ALIASES:
            raise UserError(f"{path} has more than {MOST_ALIASES} YAML aliases")
        return yaml.load(text, Loader=_Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; expected {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f", line {mark.line + 1}" if mark else ""
        raise UserError(f"{path}{line}: not YAML ({error.problem})") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: not YAML ({first_line(error)})") from None
