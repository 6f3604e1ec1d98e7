"""Calls of one function as tasks of a Ray cluster."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pwiser_jax.data.prepared.folder import Each
from pwiser_jax.errors import UserError, first_line
from pwiser_jax.training.cluster.connect import checked_nodes, connected

RETRIES = 3


@contextmanager
def calls_on(address: str, output: Path) -> Iterator[Each]:
    """Yields a function that makes calls on a cluster, each a task with one CPU.

    Args:
        address: see `connected`.
        output: what the calls write lies beside it, on a path that all nodes share.

    Raises:
        UserError: Ray is absent, the cluster cannot be reached, or a node is not like
            this machine.
    """
    with connected(address) as ray:
        place = Path(os.path.abspath(output)).parent
        place.mkdir(parents=True, exist_ok=True)
        checked_nodes(ray, place, set())
        yield partial(_make, ray)


def _make(
    ray: Any, function: Callable[..., None], calls: Sequence[tuple[Any, ...]]
) -> None:
    """Makes the calls and waits for all; raises the error of the first that failed."""
    stored: dict[int, Any] = {}

    def once(value: Any) -> Any:
        """A large argument is sent once, not with each call."""
        if id(value) not in stored:
            stored[id(value)] = ray.put(value)
        return stored[id(value)]

    task = ray.remote(num_cpus=1, max_retries=RETRIES)(_call)
    answers = [task.remote(function, *map(once, arguments)) for arguments in calls]
    try:
        for answer in answers:
            ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, UserError):
            raise UserError(str(error.cause)) from None
        raise
    except ray.exceptions.RayError as error:
        raise UserError(
            f"a task's process was lost {RETRIES + 1} times ({first_line(error)}); the "
            "same command goes on"
        ) from None
    finally:
        for answer in answers:
            ray.cancel(answer, force=True)


def _call(function: Callable[..., None], *arguments: Any) -> None:
    function(*arguments)
