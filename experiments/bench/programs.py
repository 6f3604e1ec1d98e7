"""Counts what the loss and the training steps launch, without running them.

    JAX_PLATFORMS=cpu python -m experiments.bench.programs

A kernel is an instruction of the compiled program that computes or copies something;
its bytes are those of its operands and results. Programs are compiled for the CPU and,
where jax's CUDA plugin is installed (`pip install jax-cuda12-plugin jax-cuda12-pjrt`),
for an H100, which takes no GPU.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import polars as pl
from rich.console import Console

from experiments.bench.losses import MARGINS
from experiments.bench.tables import origin, write_results
from experiments.bench.training import MODELS
from experiments.bench.training_cell import Cell, batches, step_parts
from experiments.lib.kernels import work
from pwiser_jax.losses import pwiser_loss
from pwiser_jax.losses.pairs import FORMS
from pwiser_jax.losses.positives import PACKS
from pwiser_jax.options import Parser, PositiveInt
from pwiser_jax.reports.tables import to_markdown
from pwiser_jax.training.devices.several import several_steps
from pwiser_jax.training.step import state_shapes, train_step

SIZES = (1024, 4096, 16_384, 65_536)
BATCH = 2048  # rows of a step
MUST_MOVE = 4 + 4 + 1 + 1  # bytes a row of the loss: score, gradient, two labels
# The compiler's options. The CPU's leaves the instructions as they are: the code made
# of them is slower, and sooner there. For a GPU that is absent nothing can be tuned.
CPU = {"xla_backend_optimization_level": 0}
GPU = {"xla_gpu_autotune_level": 0}
# What the compiler must know of an H100.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: 233472
  threads_per_core_limit: 2048
  core_count: 132
  fpus_per_core: 128
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000
  l2_cache_size: 52428800
  clock_rate_ghz: 1.98
  device_memory_size: 84942979072
  shared_memory_per_block_optin: 232448
  cuda_compute_capability { major: 9 }
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""

Program = tuple[Callable[..., Any], tuple[Any, ...]]  # and the shapes of its arguments
Row = dict[str, Any]


def devices() -> dict[str, tuple[Any, dict[str, Any]]]:
    """The devices to compile for, each with the compiler's options."""
    found: dict[str, tuple[Any, dict[str, Any]]] = {"CPU": (jax.devices("cpu")[0], CPU)}
    if find_spec("jax_plugins") and find_spec("jax_plugins.xla_cuda12"):
        from jax.experimental.topologies import get_topology_desc

        # A topology of one device, which need not be there.
        h100 = get_topology_desc("h100", "cuda", topology="1x1x1", target_config=H100)
        found["H100"] = (h100.devices[0], GPU)
    return found


def loss_program(form: str, rows: int) -> Program:
    """PWiseR, forward and backward."""
    options: dict[str, Any] = {"margins": MARGINS, "pairs": form}
    kinds = (jnp.float32, jnp.bool_, jnp.bool_)
    shapes = tuple(jax.ShapeDtypeStruct((rows,), kind) for kind in kinds)
    return jax.value_and_grad(partial(pwiser_loss, **options)), shapes


def choices(rows: int) -> dict[str, int]:
    """The pack that each share of conversions takes; see `work`."""
    packed = rows >= min(PACKS.values())
    return {"0.5%": 0 if packed else -1, "50%": -1}


def step_program(cell: Cell) -> Program:
    """A training step, in the loop of a call."""
    spec, hyper = step_parts(cell)
    batch = jax.tree.map(lambda array: array[None], batches(cell)[0])
    arguments = (state_shapes(spec), batch, np.int32(1), hyper)
    shapes = jax.eval_shape(lambda *x: x, *arguments)
    return several_steps(partial(train_step, spec)), shapes


def lowered(program: Program, device: Any, donate: bool = False) -> Any:
    """A program, traced for a device and ready to be compiled.

    Args:
        program: the program.
        device: the device, or one of a topology.
        donate: whether the first argument may be overwritten, as a step's state is.
    """
    function, shapes = program
    place = jax.sharding.SingleDeviceSharding(device)
    placed = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), shapes
    )
    jitted = jax.jit(function, donate_argnums=(0,) if donate else ())
    return jitted.lower(*placed)


def compiled(
    program: Program, device: Any, options: dict[str, Any], donate: bool = False
) -> Any:
    """A program, compiled for a device with the compiler's options; see `lowered`."""
    return lowered(program, device, donate).compile(compiler_options=options)


def rows_of(
    name: str, rows: int, program: Program, packs: dict[str, int], donate: bool = False
) -> Iterator[Row]:
    """A row for each device and each pack."""
    for device, (place, options) in devices().items():
        one = compiled(program, place, options, donate)
        for share, pack in packs.items():
            found = work(one.as_text(), pack)
            yield {
                "program": name,
                "rows": rows,
                "conversions": share,
                "device": device,
                "kernels": found.kernels,
                "bytes": found.bytes,
                "loops": found.loops,
                "sorts": len(found.sorts),
                "sorted": sum(found.sorts),
                "scatters": found.scatters,
            }


def loss_table(rows: Sequence[Row]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "Form": row["program"],
            "rows": f"{row['rows']:,}",
            "conversions": row["conversions"],
            "kernels": f"{row['kernels']:,}",
            "loops": str(row["loops"]),
            "sorted": f"{row['sorted']:,}" if row["sorts"] else "-",
            "scatters": str(row["scatters"]),
            "MB": _megabytes(row),
            "times what must move": f"{row['bytes'] / row['rows'] / MUST_MOVE:,.1f}",
        }
        for row in rows
    )


def step_table(rows: Sequence[Row]) -> pl.DataFrame:
    return pl.DataFrame(
        {
            "Model": row["program"],
            "kernels": f"{row['kernels']:,}",
            "MB": _megabytes(row),
        }
        for row in rows
    )


def _megabytes(row: Row) -> str:
    return f"{row['bytes'] / 1e6:,.2f}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.bench.programs", description=__doc__)
    parser.add_argument(
        "--output", type=Path, default=Path("experiments/results/programs")
    )
    parser.add_argument("--sizes", type=list[PositiveInt], default=list(SIZES))
    parser.add_argument("--batch", type=PositiveInt, default=BATCH)
    options = parser.parse(argv)
    console = Console(stderr=True, highlight=False)
    made = origin("programs", ("jax", "jax-cuda12-pjrt"))

    def counted(rows: Iterator[Row]) -> list[Row]:
        found = list(rows)
        for row in found:
            console.print(*row.values())
        return found

    losses = [
        row
        for form in FORMS
        for n in options.sizes
        for row in counted(rows_of(form, n, loss_program(form, n), choices(n)))
    ]
    steps = [
        row
        for model in MODELS
        for row in counted(
            rows_of(
                model,
                options.batch,
                step_program(Cell(model=model, batch=options.batch)),
                {"": 0},
                donate=True,
            )
        )
    ]
    sections = ["# What programs launch", f"{note()} {made}"]
    for device in devices():
        parts = [
            [row for row in rows if row["device"] == device] for rows in (losses, steps)
        ]
        sections += [
            f"## The loss, compiled for the {device}",
            to_markdown(loss_table(parts[0])).rstrip(),
            f"## A step of {options.batch:,} rows, compiled for the {device}",
            to_markdown(step_table(parts[1])).rstrip(),
        ]
    rows = pl.DataFrame(losses + steps)
    write_results(options.output, rows, "\n\n".join(sections))
    return 0


def note() -> str:
    introduction = " ".join((__doc__ or "").split("\n\n")[2].split())
    return (
        f"{introduction} Nothing was run: these are no times. The loss is PWiseR, "
        "forward and backward. From 4,096 rows on 0.5% conversions fit into a pack, "
        "50% do not. Of 'blocked', all tiles of a pack count, also those that hold no "
        "conversion. 'loops': loops entered, whose kernels count as often as they run; "
        "'sorted': keys sorted, of which the conversions must be; 'what must move': a "
        "score, a gradient and two labels, 10 bytes a row. A step has AliExpress' "
        "sizes and cross-entropy. Run it with JAX_PLATFORMS=cpu."
    )


if __name__ == "__main__":
    sys.exit(main())
