"""How long a training step takes to trace and to compile, in a process of its own.

    python -m experiments.bench.compiling '{"model": "ple"}'

prints a JSON object of seconds.
"""

import json
import sys
import time

import jax

from experiments.bench.programs import lowered, step_program
from experiments.bench.training_cell import Cell


def step_seconds(cell: Cell) -> dict[str, float]:
    """Seconds of tracing and of compiling a cell's step for this machine."""
    program, device = step_program(cell), jax.devices()[0]
    times = [time.perf_counter()]
    step = lowered(program, device, donate=True)
    times.append(time.perf_counter())
    step.compile()
    times.append(time.perf_counter())
    return {"tracing": times[1] - times[0], "compiling": times[2] - times[1]}


if __name__ == "__main__":
    print(json.dumps(step_seconds(Cell(**json.loads(sys.argv[1])))))
