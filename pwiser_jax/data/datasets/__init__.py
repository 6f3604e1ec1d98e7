"""The datasets that `prepare` reads: one function each."""

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
"""By name, the function that prepares it, or the module of `prepare_NAME`."""


def register_dataset(name: str, function: Callable[..., Any]) -> None:
    """Adds a dataset: `prepare NAME` has the function's arguments as its options."""
    DATASETS[name] = function


def preparer(name: str) -> Callable[..., Any]:
    """The function that prepares a dataset; imports its module."""
    entry = DATASETS[name]
    if isinstance(entry, str):
        return getattr(import_module(entry), f"prepare_{name}")
    return entry
