"""The datasets that `prepare` reads: one function each.

The command line, its help and the experiments take the names from `DATASETS`. Add your
own dataset from any module:

    register_dataset("mine", prepare_mine)

where `prepare_mine(output: Path, ...)` writes a prepared folder, for example by
`prepared.folder.write(FlatTable(...), output)`, and returns its manifest. Its arguments
are the options of `prepare mine`; its docstring is their help. `predict` reads its raw
rows as tables with the columns of the `FlatSpec`.
"""

from collections.abc import Callable
from importlib import import_module
from typing import Any

DATASETS: dict[str, str | Callable[..., Any]] = {
    "synthetic": "pwiser_jax.data.datasets.synthetic",
    "kuairand": "pwiser_jax.data.datasets.kuairand",
    "aliexpress": "pwiser_jax.data.datasets.aliexpress",
    "aliccp": "pwiser_jax.data.aliccp.prepare",
    "table": "pwiser_jax.data.datasets.table",
}
"""Dataset name -> the function that prepares it, or the module of `prepare_NAME`."""


def register_dataset(name: str, function: Callable[..., Any]) -> None:
    """Adds a dataset: `prepare NAME` has the function's arguments as its options.

    Raises:
        ValueError: the name is not an identifier, or is that of another function.
    """
    if not name.isidentifier():
        raise ValueError(f"{name!r} cannot be a dataset's name: use an identifier")
    if DATASETS.get(name, function) is not function:
        raise ValueError(f"there is a dataset {name!r} already")
    DATASETS[name] = function


def preparer(name: str) -> Callable[..., Any]:
    """The function that prepares a dataset; imports its module."""
    entry = DATASETS[name]
    if isinstance(entry, str):
        return getattr(import_module(entry), f"prepare_{name}")
    return entry


def rows_reader(name: str) -> Callable[..., Any] | None:
    """The function `rows_NAME` of a dataset's module; None if raw rows are tables.

    `rows_NAME(source, folder)` is a context manager for `predict`: it reads raw files
    as `prepare_NAME` does, encodes them as the prepared folder says, and yields an
    `encoder.EncodedRows`.
    """
    entry = DATASETS.get(name)
    if not isinstance(entry, str):
        return None
    return getattr(import_module(entry), f"rows_{name}", None)
