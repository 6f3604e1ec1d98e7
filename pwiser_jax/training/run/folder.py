"""A run's folder: all inputs and outputs of the run.

config.yaml             the resolved configuration
data/                   manifest.json and vocabulary.parquet of the prepared data
checkpoints/            see `checkpoint`
metrics.jsonl           lines of training metrics, evaluations and timings
tensorboard/            the same numbers as event files, with the default logger
profile/                the trace of `train --profile`
result.json             written at the end: the best epoch and the AUCs that chose it
evaluation_SPLIT.json   written by `evaluate`
.lock                   exists while a process trains here; holds its id and host
"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pwiser_jax.atomic import LOCK, locked, write_whole
from pwiser_jax.config import Config, load_config
from pwiser_jax.errors import UserError
from pwiser_jax.training.run.record import TrainResult
from pwiser_jax.typed import read_yaml

CONFIG = "config.yaml"
RESULT = "result.json"
DATA_FILES = ("manifest.json", "vocabulary.parquet")

# Options that do not change a run's numbers.
FREE = (
    ("data", "path"),
    ("data", "rows_from"),
    ("optimizer", "shard_tables"),
    ("train", "steps_per_call"),
)


def write_json(path: Path, tree: Any) -> None:
    write_whole(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")


def config_tree(config: Config) -> dict[str, Any]:
    """The configuration as JSON types."""
    return json.loads(json.dumps(config.to_dict()))


def config_hash(config: Config) -> str:
    """Hash of a configuration without its `FREE` options: 12 hex digits."""
    tree = config_tree(config)
    for section, name in FREE:
        tree[section].pop(name)
    # Unset, as in versions without the option.
    if config.warm_start is None:
        tree.pop("warm_start")
    if config.optimizer.wide_l2 is None:
        tree["optimizer"].pop("wide_l2")
    text = json.dumps(tree, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def run_config(run: Path) -> Config:
    """The configuration of a run folder.

    Raises:
        UserError: the folder holds no run, or its config.yaml is damaged.
    """
    if not run.is_dir():
        raise UserError(f"{run}: {'not a' if run.exists() else 'no such'} folder")
    path = run / CONFIG
    if not path.is_file():
        raise UserError(f"{run} holds no run: {CONFIG} is missing")
    if read_yaml(path) is None:
        raise UserError(
            f"{path} is empty: copy the run's folder again, or train the run anew into "
            "another --output"
        )
    return load_config(path)


def check_run(output: Path, config: Config, data: Path) -> dict[str, Any] | None:
    """Checks that a run can start or resume in `output`; changes nothing.

    Returns:
        The tree of result.json where the run is finished, else None.
    Raises:
        UserError: the folder holds other files, a damaged run, a run with another
            configuration, or a run on other data.
    """
    if (output / CONFIG).is_file():
        _same_config(output / CONFIG, config_tree(config))
        for name in DATA_FILES:
            if _bytes(output / "data" / name) != _bytes(data / name):
                raise UserError(
                    f"{output} holds a run on other data than {data} ({name} differs); "
                    "name another --output"
                )
        return read_result(output).to_dict() if (output / RESULT).exists() else None
    # The config is written last: a folder with only data/ is an interrupted start.
    first_files = ("data", f".{CONFIG}.partial", LOCK)
    if os.path.lexists(output) and not (
        output.is_dir() and all(path.name in first_files for path in output.iterdir())
    ):
        raise UserError(f"{output} exists and holds no run; name another --output")
    return None


@contextmanager
def opened(output: Path, config: Config, data: Path) -> Iterator[None]:
    """Creates or reopens a run's folder, and holds its lock.

    Raises:
        UserError: as `check_run`; another process trains there; the folder cannot be
            written, or the disk is full.
    """
    with writing(output):
        output.mkdir(parents=True, exist_ok=True)
        with locked(output, "training"):
            make_run(output, config, data)
            yield


def make_run(output: Path, config: Config, data: Path) -> None:
    """Writes the missing files of a new run's folder."""
    check_run(output, config, data)
    if (output / CONFIG).is_file():
        return
    with writing(output):
        (output / "data").mkdir(parents=True, exist_ok=True)
        for name in DATA_FILES:
            shutil.copyfile(data / name, output / "data" / name)
        text = yaml.safe_dump(config_tree(config), sort_keys=False)
        write_whole(output / CONFIG, text)


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Turns an OSError within the context into a UserError."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(
            f"{error.filename or output} cannot be used: {reason}"
        ) from error


DAMAGE = (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError)


def read_result(output: Path) -> TrainResult:
    """The result of a finished run.

    Raises:
        UserError: the file is damaged.
    """
    path = output / RESULT
    try:
        return TrainResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except DAMAGE as error:
        raise UserError(
            f"{path} is damaged: remove it, and `train` writes it again from the last "
            "checkpoint"
        ) from error


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error


def _same_config(path: Path, tree: dict[str, Any]) -> None:
    try:
        old = _flatten(yaml.safe_load(_bytes(path)))
    except (yaml.YAMLError, AttributeError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is damaged: it is not a configuration in YAML"
        ) from error
    new = _flatten(tree)
    free = {".".join(path) for path in FREE}
    for name in sorted((old.keys() | new.keys()) - free):
        if old.get(name) != new.get(name):
            raise UserError(
                f"{path.parent} holds a run with {name} {old.get(name)}, not "
                f"{new.get(name)}; name another --output"
            )


def _flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
