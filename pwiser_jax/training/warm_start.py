"""Warm starts: a run begins from the best checkpoint of another on newer rows.

The rows of embedding tables are carried over by field and value, wherever the newer
vocabulary has them, and so are their optimizer's states. Rows of values that the other
run does not have begin as in a fresh table, with moments of zero; so do the moments of
a field that has grown from the table `small` into `large`, if that has an optimizer of
its own. All else is kept: weights, batch statistics, moments and Adam's count of steps.
The run's own step count begins at 0: the order of rows, dropout, learning-rate schedule
and ramps are those of a new run. Banks are kept where the objective has the same.
"""

from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import polars as pl

from pwiser_jax.config import Config
from pwiser_jax.data.prepared.encoder import Encoder
from pwiser_jax.data.prepared.folder import manifest_of_run
from pwiser_jax.data.prepared.manifest import Manifest, read_manifest
from pwiser_jax.errors import UserError
from pwiser_jax.inference.load import load_best
from pwiser_jax.models.layout import Field, Layout, layout
from pwiser_jax.training.devices.shards import is_table
from pwiser_jax.training.run.folder import run_config
from pwiser_jax.training.step import TrainState

# Options of a model that change no parameter.
FREE = ("small_rows", "dropout", "compute")


def check_warm_start(config: Config) -> None:
    """Refuses a run whose weights do not fit a configuration and its data.

    Raises:
        UserError: `config.warm_start` is no run, has another model or optimizer of
            tables, or its data have other fields, labels or scales.
    """
    if config.warm_start is None:
        return
    run = Path(config.warm_start)
    before = run_config(run)
    ours, theirs = asdict(config.model), asdict(before.model)
    for name in ours:
        if name not in FREE and ours[name] != theirs[name]:
            raise UserError(
                f"warm_start: {run} has model.{name} {theirs[name]}, not {ours[name]}"
            )
    if config.loss.task_weights != before.loss.task_weights:
        raise UserError(
            f"warm_start: {run} has loss.task_weights {before.loss.task_weights}, not "
            f"{config.loss.task_weights}"
        )
    if config.optimizer.embedding != before.optimizer.embedding:
        raise UserError(
            f"warm_start: {run} has optimizer.embedding {before.optimizer.embedding}, "
            f"not {config.optimizer.embedding}"
        )
    folder = Path(config.data.path)
    old, new = _encoding(manifest_of_run(run)), _encoding(read_manifest(folder))
    for name in {**old, **new}:
        if old.get(name) != new.get(name):
            raise UserError(
                f"warm_start: {folder} was prepared with another {name} than the data "
                f"of {run}: prepare it with --extend {run}"
            )


def _encoding(manifest: Manifest) -> dict[str, Any]:
    """What must be equal in the data of both runs, by its name in messages."""
    schema, spec = manifest.schema, manifest.spec
    parts: dict[str, Any] = {
        "list of labels": schema.labels,
        "list of fields": (
            [field.name for field in schema.categorical],
            [field.name for field in schema.multi_valued],
            [field.name for field in schema.numerical],
        ),
    }
    for field in schema.embedded:
        own_ids = field.size if field.name in {*spec.sizes, *spec.buckets} else None
        parts[f"number of ids of {field.name!r}"] = own_ids
    for field in schema.multi_valued:
        parts[f"pool of {field.name!r}"] = field.pool
    for field in schema.numerical:
        fill = manifest.fill.get(field.name)
        parts[f"scale of {field.name!r}"] = field.mean, field.scale, fill
    return parts


def warm_started(config: Config, fresh: TrainState) -> TrainState:
    """The state at step 0 of a run: `fresh`, or with the weights of `warm_start`.

    Args:
        config: the run's configuration.
        fresh: its state as drawn from the seed; tables are whole.

    Raises:
        UserError: as `check_warm_start`, or there is no checkpoint that can be read.
    """
    if config.warm_start is None:
        return fresh
    check_warm_start(config)
    run = Path(config.warm_start)
    before, old, new = (
        run_config(run),
        Encoder.load(run / "data"),
        Encoder.load(Path(config.data.path)),
    )
    rows = {
        field.name: _old_rows(
            fields[field.name],
            field,
            old.values.get(field.name),
            new.values.get(field.name),
        )
        for fields in [{field.name: field for field in old.schema.embedded}]
        for field in new.schema.embedded
    }
    return carried(
        load_best(run, before, old.schema),
        layout(before.model, old.schema),
        fresh,
        layout(config.model, new.schema),
        rows,
    )


def _old_rows(
    old: Field, new: Field, known: pl.Series | None, values: pl.Series | None
) -> np.ndarray:
    """For each row of a field's table, its row in the table before, or -1.

    Args:
        old, new: the field before and now.
        known, values: its vocabularies; None: values are ids or hash buckets.
    """
    ids = np.arange(new.size)
    if known is not None and values is not None:
        place = values[: new.size].cast(pl.Enum(known[: old.size]), strict=False)
        ids = place.to_physical().cast(pl.Int64).fill_null(-1).to_numpy()
    return np.concatenate([ids, [old.missing, old.unseen, old.rare]])


def carried(
    old: TrainState,
    old_layout: Layout,
    fresh: TrainState,
    new_layout: Layout,
    rows: dict[str, np.ndarray],
) -> TrainState:
    """`fresh` with the arrays of `old`, tables row by row.

    Args:
        old: the state before.
        old_layout: of its tables.
        fresh: the state to fill.
        new_layout: of its tables.
        rows: by field, for each row of the table its row before, or -1.
    """
    before: dict[Any, np.ndarray] = {}
    for path, leaf in jax.tree.leaves_with_path(old):
        array = np.asarray(leaf)
        for name, cut in _parts(path, old_layout):
            before[name] = array[cut]

    def fill(path: Any, leaf: Any) -> np.ndarray:
        array = np.array(leaf)
        for name, cut in _parts(path, new_layout):
            part, found = array[cut], before.get(name)
            if isinstance(name, tuple):
                source = rows[name[1]]
                if found is not None:
                    part[source >= 0] = found[source[source >= 0]]
            elif found is not None and found.shape == part.shape:
                array = found
            elif not name.startswith("banks/"):
                raise ValueError(f"the checkpoint has no such {name}")
        return array

    filled = jax.tree.map_with_path(fill, jax.device_get(fresh))
    return filled._replace(step=np.zeros_like(filled.step))


def _parts(path: Any, tables: Layout) -> list[tuple[Any, Any]]:
    """The parts of an array of a state: (name, index); a field's is (name, field).

    A part has the same name in every layout: the array's path without its table's.
    """
    keys = [str(getattr(key, "key", getattr(key, "name", key))) for key in path]
    if not is_table(path) and "small" not in keys:
        return [("/".join(keys), ...)]
    name = "/".join(key for key in keys if key not in ("small", "large"))
    parts = []
    for field in tables.large if is_table(path) else tables.small:
        start = tables.places[field.name]
        parts.append(((name, field.name), slice(start, start + field.rows)))
    return parts
