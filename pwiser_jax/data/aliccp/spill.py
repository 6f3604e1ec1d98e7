"""Columns of rows in pieces of an exact size, in memory or spilled to files."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np

from pwiser_jax.data.raw.ragged import Ragged

Columns = Mapping[str, np.ndarray | Ragged]
PARTS = ("counts", "ids", "weights")


def array(columns: Columns, name: str) -> np.ndarray:
    return cast(np.ndarray, columns[name])


def ragged_of(columns: Columns, name: str) -> Ragged:
    return cast(Ragged, columns[name])


def height(columns: Columns) -> int:
    return len(next(iter(columns.values())))


def select(columns: Columns, index: slice | np.ndarray) -> Columns:
    """Some rows, by a slice or a mask."""
    return {name: column[index] for name, column in columns.items()}


def concat(parts: Sequence[Columns]) -> Columns:
    first = parts[0]
    if len(parts) == 1:
        return first
    return {
        name: Ragged.concat([ragged_of(part, name) for part in parts])
        if isinstance(column, Ragged)
        else np.concatenate([array(part, name) for part in parts])
        for name, column in first.items()
    }


class Pieces:
    """Regroups rows into pieces of `size` rows; the last one may be smaller."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._waiting: list[Columns] = []
        self._count = 0

    def add(self, columns: Columns) -> Iterator[Columns]:
        self._waiting.append(columns)
        self._count += height(columns)
        while self._count >= self._size:
            whole = concat(self._waiting)
            yield select(whole, slice(0, self._size))
            self._waiting = [select(whole, slice(self._size, None))]
            self._count -= self._size

    def rest(self) -> Iterator[Columns]:
        if self._count:
            yield concat(self._waiting)
        self._waiting, self._count = [], 0


class Spill:
    """Pieces in the files of a folder, in order."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._paths: list[Path] = []

    def add(self, columns: Columns) -> None:
        path = self._folder / f"{self._name}-{len(self._paths):06}.npz"
        arrays: dict[str, np.ndarray] = {}
        for name, column in columns.items():
            if isinstance(column, Ragged):
                arrays |= {f"{name}/{part}": getattr(column, part) for part in PARTS}
            else:
                arrays[name] = column
        with path.open("xb") as file:
            np.savez(file, allow_pickle=False, **arrays)
        self._paths.append(path)

    def pieces(self) -> Iterator[Columns]:
        for path in self._paths:
            with np.load(path) as arrays:
                columns: dict[str, np.ndarray | Ragged] = {}
                for key in arrays.files:
                    name, _, part = key.partition("/")
                    if not part:
                        columns[name] = arrays[key]
                    elif part == PARTS[0]:
                        lists = (arrays[f"{name}/{part}"] for part in PARTS)
                        columns[name] = Ragged(*lists)
            yield columns
