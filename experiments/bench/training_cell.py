"""A training step to be measured, in a process of its own.

    echo | python -m experiments.bench.training_cell '{"engine": "jax"}'

prints a JSON object, the work in a step of ours, as soon as all is compiled; then, for
each line that it reads, the median seconds of a step.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from itertools import cycle
from typing import Any, NamedTuple

import numpy as np

from experiments.bench.plain.plain_forms import FORMS, WITHOUT, plain_model
from experiments.lib.measure import median_seconds, on_accelerator, product_operations
from pwiser_jax.config import Config, DataConfig, LossConfig, OptimizerConfig
from pwiser_jax.data.batches.batches import Batch
from pwiser_jax.models.config import ModelConfig
from pwiser_jax.schema import CategoricalField, NumericalField, Schema

# Fields of the published data; Ali-CCP's are those with ids seen more than 10 times.
ALIEXPRESS = (11, 4, 7, 2, 33, 7, 50, 8, 8, 2, 2, 2, 2, 2, 2, 2)
ALICCP = (238_635, 98, 14, 3, 8, 4, 4, 3, 5, 467_298, 6_929, 263_942, 106_399)
ALICCP += (5_888, 104_830, 51_878, 37_148, 4)
NUMERICAL = {"aliexpress": 63, "aliccp": 0}
# Fields with fewer ids keep their size when the number of ids is varied.
FEW = 1000
CLICKS, CONVERSIONS = 0.04, 0.1  # a conversion is one of the clicks

WARM_UP = 3  # steps
BUDGET = 1.0  # seconds
SHORT_BUDGET = 0.3  # of an accelerator, whose steps are short


@dataclass(frozen=True)
class Cell:
    """One measurement.

    Args:
        engine: "jax": this library; "torch": the plain PyTorch network; "loss": this
            library's loss alone, on given logits; "product" and "copy": what the device
            does at its best, a large matrix product and a large array read and written.
        model: a name in the table of models.
        data: the dataset whose fields are used.
        dim: width of an embedded field.
        batch: rows of a step.
        embedding: optimizer of the tables, ours or PyTorch's.
        ids: about so many ids in all; 0: as published.
        allocator: glibc's "usual" one, or one set to "keep" freed memory.
        lambda_: the weight of PWiseR.
        changes: options of the model's config that differ from the defaults.
        runs: number of runs in one program of a sweep.
        steps: number of steps per call of the program.
        plain: the part in plain form, if any: see `plain_forms`.
    """

    engine: str = "jax"
    model: str = "shared_bottom"
    data: str = "aliexpress"
    dim: int = 128
    batch: int = 2048
    embedding: str = "adam"
    ids: int = 0
    allocator: str = "usual"
    lambda_: float = 0.0
    changes: str = "{}"
    runs: int = 1
    steps: int = 1
    plain: str = ""

    def schema(self) -> Schema:
        sizes = ALIEXPRESS if self.data == "aliexpress" else ALICCP
        few = sum(size for size in sizes if size < FEW)
        scale = (self.ids - few) / (sum(sizes) - few) if self.ids else 1
        return Schema(
            categorical=tuple(
                CategoricalField(f"c{i}", n if n < FEW else round(n * scale))
                for i, n in enumerate(sizes)
            ),
            numerical=tuple(
                NumericalField(f"n{i}") for i in range(NUMERICAL[self.data])
            ),
        )

    @property
    def memory(self) -> int:
        """Bytes that its process may use: tables, gradients, moments, the rest."""
        tables = 2 if self.model == "single_task" else 1
        rows = sum(field.rows for field in self.schema().categorical)
        return 16 * rows * self.dim * tables * self.runs + 2**30

    def model_config(self) -> ModelConfig:
        form = self.plain if self.plain in FORMS | WITHOUT else ""
        name = plain_model(self.model, form) if form else self.model
        config = ModelConfig(name=name, embedding_dim=self.dim)
        changes = json.loads(self.changes).items()
        return replace(
            config, **{k: tuple(v) if isinstance(v, list) else v for k, v in changes}
        )


def batches(cell: Cell) -> list[Batch]:
    """A few batches of skewed ids: P(one of the first k of n) = sqrt(k / n)."""
    rng, schema, rows = np.random.default_rng(0), cell.schema(), cell.batch
    drawn = []
    for _ in range(8 if rows < 10_000 else 2):
        sizes = np.array(schema.field_sizes)
        ids = (sizes * rng.random((rows, len(sizes))) ** 2).astype(np.int32)
        click = rng.random(rows) < CLICKS
        conversion = click & (rng.random(rows) < CONVERSIONS)
        numbers = rng.random((rows, len(schema.numerical)), np.float32)
        drawn.append(
            Batch(
                {"categorical": ids, "numerical": numbers},
                np.stack([click, conversion], axis=1).astype(np.int8),
                np.ones(rows, bool),
                np.arange(rows, dtype=np.uint32),
                np.ones(rows, np.float32),
            )
        )
    return drawn


class Compiled(NamedTuple):
    """A cell of ours: state = place(draw(0)); state, _ = program(state, *batch, *rest)
    for each batch in turn."""

    draw: Any
    place: Callable[[Any], Any]
    program: Any
    batches: list[tuple[Any, ...]]
    rest: tuple[Any, ...]
    work: dict[str, float]


def step_parts(cell: Cell) -> tuple[Any, Any]:
    """The spec of a cell's training step, and its numbers."""
    from pwiser_jax.training import objective as objectives
    from pwiser_jax.training import step

    config = Config(
        DataConfig(batch_size=cell.batch),
        cell.model_config(),
        LossConfig(ranking="pwiser", lambdas=cell.lambda_),
        OptimizerConfig(embedding=cell.embedding),  # pyright: ignore[reportArgumentType]
    )
    schema = cell.schema()
    objective, weights = objectives.build(config.loss, schema.labels, "ctcvr")
    spec = step.step_spec(config, schema, objective)
    return spec, step.hyper(config, weights, 1)


def compiled(cell: Cell) -> Compiled:
    """A cell of ours with its programs compiled."""
    import jax

    from pwiser_jax.training.devices import programs as parallel
    from pwiser_jax.training.devices import stacked
    from pwiser_jax.training.devices.stack import filled, stack, stack_hypers
    from pwiser_jax.training.state import new_state
    from pwiser_jax.training.step import state_shapes

    spec, hyper = step_parts(cell)

    several, k = batches(cell), cell.steps
    calls = [
        [several[i % len(several)] for i in range(at, at + k)]
        for at in range(0, len(several), k)
    ]
    shapes: Any = state_shapes(spec)
    program: Any
    cut: list[Any]
    rest: tuple[Any, ...]
    place: Any = parallel.replicated
    if cell.runs == 1:
        program = parallel.train_program(spec)
        rest = (parallel.replicated(hyper),)
        cut = [parallel.stacked(call, k) for call in calls]
    else:
        size = stacked.stack_size(cell.runs)
        at_once = stacked.runs_at_once(cell.runs)
        program = stacked.sweep_program(spec, at_once)

        def of_all(state: Any) -> Any:
            return stacked.shard_runs(stack([jax.device_get(state)] * size))

        place = of_all
        orders, active = np.zeros(size, np.int32), np.ones(size, bool)
        rest = (stack_hypers([hyper] * size), orders, active)
        whole = [[parallel.split_rows(batch, 1) for batch in call] for call in calls]
        cut = [jax.device_put(filled(stack(call), k)) for call in whole]
        shapes = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct((size, *x.shape), x.dtype), shapes
        )
    cut = [(call, np.int32(k)) for call in cut]
    lowered = program.lower(shapes, *cut[0], *rest)
    compiled_program = lowered.compile()
    traced = jax.make_jaxpr(program)(shapes, *cut[0], *rest)
    work = {
        "flops": product_operations(traced.jaxpr),
        "bytes": (compiled_program.cost_analysis() or {}).get("bytes accessed"),
    }
    return Compiled(partial(new_state, spec), place, compiled_program, cut, rest, work)


def jax_step(
    cell: Cell, program: Compiled | None = None
) -> tuple[Callable[[], Any], dict[str, float]]:
    """A training step as the training loop calls it, and the work in one."""
    import jax

    from pwiser_jax import host

    if cell.plain == "threads":
        host.keep_freed_memory()
    elif cell.plain == "memory":
        jax.config.update("jax_cpu_enable_async_dispatch", False)
    else:
        host.prepare_host()
    parts = program or compiled(cell)
    state, turn = parts.place(parts.draw(0)), cycle(parts.batches)

    def step() -> None:
        nonlocal state
        state, values = parts.program(state, *next(turn), *parts.rest)
        jax.block_until_ready((state, values))

    return step, parts.work


def loss_call(cell: Cell) -> tuple[Callable[[], Any], dict[str, float]]:
    """Value and gradient of the objective alone, on given logits."""
    import jax

    from pwiser_jax.training import objective as objectives
    from pwiser_jax.training.devices import programs as parallel

    labels = cell.schema().labels
    objective, weights = objectives.build(
        LossConfig(ranking="pwiser", lambdas=cell.lambda_), labels, "ctcvr"
    )
    rng, batch = np.random.default_rng(1), batches(cell)[0]
    logits = {
        task.name: rng.normal(-3, 1, cell.batch).astype(np.float32)
        for task in objective.tasks
    }
    program = jax.jit(jax.value_and_grad(objective, has_aux=True))
    whole = jax.tree.map(lambda x: x[0], parallel.split_rows(batch, 1))
    arguments = jax.device_put((logits, whole, weights))
    return lambda: jax.block_until_ready(program(*arguments)), {}


def torch_step(cell: Cell) -> tuple[Callable[[], Any], dict[str, float]]:
    """A step of the plain PyTorch network, with Adam or with SparseAdam's tables.

    Adam's L2 is `weight_decay`; SparseAdam has none. On an accelerator products are
    rounded as JAX rounds them there, to TensorFloat-32.
    """
    torch: Any = import_module("torch")
    from experiments.bench.plain.plain_torch import MODELS

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(0)
    device = "cpu"
    if on_accelerator():
        device = "cuda"
        torch.set_float32_matmul_precision("high")
    sparse = cell.embedding == "sparse_adam"
    network = MODELS[cell.model](cell.model_config(), cell.schema(), sparse)
    network.to(device)
    tables = [p for name, p in network.named_parameters() if "embedding" in name]
    others = [p for name, p in network.named_parameters() if "embedding" not in name]
    config = OptimizerConfig()
    dense = others if sparse else [*tables, *others]
    optimizers = [torch.optim.Adam(dense, config.learning_rate, weight_decay=config.l2)]
    if sparse:
        optimizers.append(torch.optim.SparseAdam(tables, config.learning_rate))
    turn = cycle(
        [
            tuple(
                torch.from_numpy(part).to(device)
                for part in (
                    batch.inputs["categorical"].astype(np.int64),
                    batch.inputs["numerical"],
                    batch.labels.astype(np.float32),
                )
            )
            for batch in batches(cell)
        ]
    )
    bce = torch.nn.BCEWithLogitsLoss()

    def step() -> None:
        ids, numbers, labels = next(turn)
        logits = network(ids, numbers)
        losses = [bce(z, labels[:, k]) for k, z in enumerate(logits)]
        loss = torch.stack(losses).mean()
        network.zero_grad()
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step, {}


def ceiling(cell: Cell) -> tuple[Callable[[], Any], dict[str, float]]:
    """A matrix product, or an array read and written: far larger than caches."""
    import jax
    import jax.numpy as jnp

    n = 8192 if on_accelerator() else 2048
    x = jax.random.normal(jax.random.key(0), (n, n))
    if cell.engine == "product":
        program, work = jax.jit(lambda x: x @ x), {"flops": 2.0 * n**3}
    else:
        x = jnp.zeros(2**26)
        program, work = jax.jit(lambda x: x + 1), {"bytes": 2.0 * x.nbytes}
    return lambda: jax.block_until_ready(program(x)), work


ENGINES = {
    "jax": jax_step,
    "loss": loss_call,
    "torch": torch_step,
    "product": ceiling,
    "copy": ceiling,
}


def prepared(
    cell: Cell, *program: Compiled
) -> tuple[Callable[[], float], dict[str, float]]:
    """A function that measures the median seconds of a step, and the work in a step;
    `program` as by `compiled`."""
    step, work = ENGINES[cell.engine](cell, *program)
    for _ in range(WARM_UP):
        step()
    budget = SHORT_BUDGET if on_accelerator() else BUDGET
    return lambda: median_seconds(step, budget=budget) / cell.steps, work


if __name__ == "__main__":
    again, work = prepared(Cell(**json.loads(sys.argv[1])))
    print(json.dumps(work), flush=True)
    for _ in sys.stdin:
        print(again(), flush=True)
