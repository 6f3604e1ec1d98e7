"""Bytes that the devices exchange in a training step, from its compiled program.

    XLA_FLAGS=--xla_force_host_platform_device_count=4 \\
        python -m experiments.bench.exchange --model mmoe

prints a JSON object. Operands of collectives are counted, by what they serve: the sum
of the gradients ("gradient"), statistics of batch normalisation ("statistics"), losses
and their pairs ("losses"), and sharded tables ("tables"). Diagnostics, which only
logged steps compute, are left out.
"""

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.bench.training_cell import Cell, batches
from pwiser_jax.config import Config, DataConfig, LossConfig, OptimizerConfig
from pwiser_jax.options import Parser

KINDS = ("gradient", "statistics", "losses", "tables")
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s64": 8, "f64": 8}
COLLECTIVE = re.compile(
    r"= (?P<shapes>.*?) (?P<name>all-reduce|all-gather|reduce-scatter)(-start)?\("
    r'.*op_name="(?P<scope>[^"]*)"'
)


@dataclass(frozen=True)
class Options:
    """Options of the count.

    Args:
        model: a name in the table of models.
        rows: rows of a step on each device.
        sharded: Ali-CCP's large tables, sharded; else AliExpress' small ones.
    """

    model: str = "shared_bottom"
    rows: int = 2048
    sharded: bool = False


def program_text(options: Options) -> tuple[str, int]:
    """The compiled program of a step, and its rows where tables are sharded, else 0."""
    import jax

    from pwiser_jax.training import objective as objectives
    from pwiser_jax.training.devices import programs
    from pwiser_jax.training.devices.shards import map_tables
    from pwiser_jax.training.step import hyper, state_shapes, step_spec

    devices = jax.device_count()
    cell = Cell(model=options.model, batch=options.rows * devices)
    if options.sharded:
        cell = Cell(model=options.model, batch=cell.batch, data="aliccp", dim=16)
    config = Config(
        DataConfig(batch_size=cell.batch),
        cell.model_config(),
        LossConfig(ranking="pwiser", lambdas=0.1),
        OptimizerConfig(
            embedding="lazy_adam" if options.sharded else "adam",
            shard_tables=options.sharded,
        ),
    )
    schema = cell.schema()
    objective, weights = objectives.build(config.loss, schema.labels, "ctcvr")
    spec = step_spec(config, schema, objective)

    def shards(table: Any) -> Any:
        shape = (devices, -(-table.shape[0] // devices), *table.shape[1:])
        return jax.ShapeDtypeStruct(shape, table.dtype)

    shapes = state_shapes(spec)
    if options.sharded:
        shapes = map_tables(shards, lambda leaf: leaf, shapes)
    batch = programs.stacked(batches(cell)[:1], 1)
    program = jax.jit(programs.train_program(spec))
    numbers = hyper(config, weights, 1)
    text = program.lower(shapes, batch, np.int32(1), numbers).compile().as_text() or ""
    return text, cell.batch if options.sharded else 0


def exchanged(text: str, rows: int, devices: int) -> dict[str, dict[str, float]]:
    """Bytes by kind and collective, and the collectives of each kind.

    An all-gather counts with its result, all others with their operand.

    Args:
        text: the compiled program.
        rows: longer arrays, of several ids a row, serve sharded tables; 0: none do.
        devices: the number of devices.
    Returns:
        By kind: bytes by name of the collective, and "count".
    """
    sums = {kind: {"reduce": 0.0, "gather": 0.0, "count": 0.0} for kind in KINDS}
    for line in text.splitlines():
        match = COLLECTIVE.search(line)
        if match is None or "/cond/" in match["scope"]:
            continue
        seen = set()
        for shape, size in _arrays(match["shapes"]):
            kind = _kind(match["scope"], shape, rows)
            name = "reduce" if match["name"] == "all-reduce" else "gather"
            times = devices if match["name"] == "reduce-scatter" else 1
            sums[kind][name] += times * size
            seen.add(kind)
        for kind in seen:
            sums[kind]["count"] += 1
    return sums


def _arrays(text: str) -> Iterator[tuple[tuple[int, ...], int]]:
    """The shapes and bytes of the arrays in a line of a program."""
    for dtype, dimensions in re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", text):
        shape = tuple(int(n) for n in dimensions.split(",") if n)
        yield shape, BYTES.get(dtype, 4) * math.prod(shape)


def _kind(scope: str, shape: tuple[int, ...], rows: int) -> str:
    if rows and shape and shape[0] > rows:
        return "tables"
    if "/norm_" in scope:
        return "statistics"
    return "gradient" if re.search(r"/body/\(?psum", scope) else "losses"


def main(argv: Sequence[str] | None = None) -> int:
    import jax

    parser = Parser(prog="experiments.bench.exchange", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(argv))))
    text, rows = program_text(options)
    print(json.dumps(exchanged(text, rows, jax.device_count())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
