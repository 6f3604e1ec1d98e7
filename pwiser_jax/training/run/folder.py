"""A run's folder: everything that its numbers can be traced to.

config.yaml             the resolved configuration
data/                   manifest.json and vocabulary.parquet of the prepared data
checkpoints/            see `checkpoint`
metrics.jsonl           one line every few steps, one an evaluation, and timings
tensorboard/            the same numbers as event files
profile/                the trace of `train --profile`
result.json             written at the end: the best epoch and the AUCs that chose it
evaluation_SPLIT.json   what `evaluate` found
"""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import yaml

from pwiser_jax.atomic import write_whole
from pwiser_jax.config import Config
from pwiser_jax.errors import UserError

CONFIG = "config.yaml"
RESULT = "result.json"
DATA_FILES = ("manifest.json", "vocabulary.parquet")

# Options that a run's numbers do not depend on.
FREE = (
    ("data", "path"),
    ("data", "rows_from"),
    ("optimizer", "shard_tables"),
    ("train", "steps_per_call"),
)


def write_json(path: Path, tree: Any) -> None:
    write_whole(path, json.dumps(tree, indent=2, allow_nan=False) + "\n")


def config_tree(config: Config) -> dict[str, Any]:
    """The configuration in JSON's types."""
    return json.loads(json.dumps(config.to_dict()))


def config_hash(config: Config) -> str:
    """Twelve hex digits that name a configuration, but for its `FREE` options."""
    tree = config_tree(config)
    for section, name in FREE:
        tree[section].pop(name)
    text = json.dumps(tree, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def open_run(output: Path, config: Config, data: Path) -> None:
    """Makes the folder of a new run, or checks that it is the same run again.

    Raises:
        UserError: the folder holds other things, a run of another configuration, or a
            run on other data.
    """
    tree = config_tree(config)
    if (output / CONFIG).is_file():
        _same_config(output / CONFIG, tree)
        for name in DATA_FILES:
            if (output / "data" / name).read_bytes() != (data / name).read_bytes():
                raise UserError(
                    f"{output} holds a run on other data than {data} ({name} differs); "
                    "name another --output"
                )
        return
    # The config comes last: a folder with data/ alone is a run that was cut off there.
    if output.exists() and not (
        output.is_dir()
        and all(p.name in ("data", f".{CONFIG}.partial") for p in output.iterdir())
    ):
        raise UserError(f"{output} exists and holds no run; name another --output")
    folder = output / "data"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name in DATA_FILES:
            shutil.copyfile(data / name, folder / name)
        write_whole(output / CONFIG, yaml.safe_dump(tree, sort_keys=False))
    except OSError as error:
        shutil.rmtree(output, ignore_errors=True)
        raise UserError(f"cannot write the run folder {output}: {error}") from None


def _same_config(path: Path, tree: dict[str, Any]) -> None:
    old, new = _flatten(yaml.safe_load(path.read_text())), _flatten(tree)
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
