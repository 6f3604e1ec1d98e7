"""How far do more machines help: a study on workers, a run on processes, and on paper.

    python -m experiments.bench.cluster --work /tmp/cluster

Study: `pwiser sweep --cluster` trains one study on Ray nodes with one CPU each. Run:
`pwiser train` in several processes, each with as many rows of a batch. The processes
are pinned to cores in turn, so that more of them than cores share these. Exchange: the
bytes that devices exchange in a step, counted in the compiled programs of 2 and 4
devices (`experiments.bench.exchange`); from these the time of a step on 8, 64 and 512
accelerators, with the links assumed below and the step of an H200 as measured
(experiments/results/training_h200.csv). It needs the extra [cluster].
"""

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import mean, median
from typing import Any, Literal, get_args

import polars as pl

from experiments.bench.exchange import KINDS
from experiments.bench.tables import origin, write_results
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.models import MODELS
from pwiser_jax.options import Parser, PositiveInt
from pwiser_jax.reports.tables import to_markdown
from pwiser_jax.training.run.metrics import read_metrics

MEASURED = Path(__file__).parents[1] / "results" / "training_h200.csv"
LAMBDAS = (0, 0.03, 0.1, 0.3)
# Bytes a second that an accelerator sends, and seconds until a collective begins, by
# the number of accelerators: NVLink within 8, 400 Gb/s each beyond.
LINKS = {8: (450e9, 10e-6), 64: (50e9, 30e-6), 512: (50e9, 60e-6)}
PartName = Literal["study", "run", "exchange"]
UNOPTIMISED = "--xla_backend_optimization_level=0"
SMALL = (
    "--model.name=shared_bottom",
    "--model.embedding_dim=8",
    "--model.bottom=[64,32]",
    "--model.tower=[16]",
)


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        work: a new folder, for data and runs.
        output: path of the results, without a suffix.
        parts: what to measure.
        workers: numbers of workers of the study.
        seeds: seeds of the study: it has four times as many runs.
        part: runs of a part.
        rows: rows of the synthetic funnel.
        epochs: epochs of a run of the study.
        processes: numbers of processes of the run.
        batch: rows of a batch in each process.
        models: models whose exchange is counted.
    """

    work: Path
    output: Path = Path("experiments/results/cluster")
    parts: tuple[PartName, ...] = get_args(PartName)
    workers: tuple[PositiveInt, ...] = (1, 2, 4)
    seeds: PositiveInt = 16
    part: PositiveInt = 8
    rows: PositiveInt = 60_000
    epochs: PositiveInt = 2
    processes: tuple[PositiveInt, ...] = (1, 2, 4)
    batch: PositiveInt = 512
    models: tuple[str, ...] = tuple(MODELS)


@contextmanager
def pinned(number: int) -> Iterator[None]:
    """Processes that start within the context run on one core, in turn by number."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[number % len(cores)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, set(cores))


def environment(options: Options, devices: int = 1, *flags: str) -> dict[str, str]:
    """Of every process: so many CPU devices, compiled programs in the work folder."""
    given = {k: v for k, v in os.environ.items() if not k.startswith("JAX_COMPILATION")}
    return given | {
        "JAX_PLATFORMS": "cpu",
        "RAY_worker_niceness": "0",
        "XLA_FLAGS": " ".join(
            (f"--xla_force_host_platform_device_count={devices}", *flags)
        ),
        "PWISER_COMPILATION_CACHE": str(options.work / "compiled"),
        "PYTHONPATH": str(Path(__file__).parents[2]),
    }


# The study


def study(options: Options) -> list[dict[str, Any]]:
    """A line per number of workers; an unmeasured part before it warms caches up."""
    lines = []
    for workers in options.workers:
        with nodes(options, workers) as address:
            if workers == options.workers[0]:
                sweep(options, address, options.work / "warm_up", seeds=2)
            folder = options.work / f"study_{workers}"
            begun = time.time()
            sweep(options, address, folder, options.seeds)
            seconds = time.time() - begun
        plan = json.loads((folder / ".plan.json").read_text())
        parts = [_span([folder / name for name in part]) for part in plan["parts"]]
        lines.append(
            {
                "workers": workers,
                "runs": sum(map(len, plan["parts"])),
                "seconds": seconds,
                "start": min(begin for begin, _ in parts) - begun,
                "part_seconds": mean(end - begin for begin, end in parts),
                "in_parts": sum(end - begin for begin, end in parts),
            }
        )
    return lines


@contextmanager
def nodes(options: Options, workers: int) -> Iterator[str]:
    """The address of a cluster of nodes with one CPU each, and a head without."""
    cluster_utils = import_module("ray.cluster_utils")
    local = {"node_ip_address": "127.0.0.1", "object_store_memory": 100_000_000}
    head = {"num_cpus": 0, "include_dashboard": False, **local}
    before = dict(os.environ)
    os.environ.update(environment(options))
    cluster: Any = cluster_utils.Cluster(initialize_head=True, head_node_args=head)
    try:
        for number in range(workers):
            with pinned(number):
                cluster.add_node(num_cpus=1, **local)
        yield cluster.address
    finally:
        cluster.shutdown()
        os.environ.clear()
        os.environ.update(before)


def sweep(options: Options, address: str, folder: Path, seeds: int) -> None:
    words = [
        *("--over", f"loss.lambdas={','.join(map(str, LAMBDAS))}"),
        *(f"--seeds={seeds}", f"--part-size={options.part}", f"--cluster={address}"),
        "--loss.ranking=pwiser",
        f"--train.epochs={options.epochs}",
    ]
    _finish(
        [_start(options, "sweep", folder, f"--data.batch_size={options.batch}", *words)]
    )


def _span(runs: Sequence[Path]) -> tuple[float, float]:
    """When the first run of a part began, and the last was evaluated."""
    begun = min((run / "config.yaml").stat().st_mtime for run in runs)
    return begun, max((run / "evaluation_valid.json").stat().st_mtime for run in runs)


def study_table(lines: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    first = lines[0]
    rate = {line["workers"]: line["runs"] / line["seconds"] for line in lines}
    return pl.DataFrame(
        [
            {
                "workers": str(line["workers"]),
                "runs an hour": f"{3600 * rate[line['workers']]:,.0f}",
                "efficiency": _share(
                    rate[line["workers"]]
                    / line["workers"]
                    * first["workers"]
                    / rate[first["workers"]]
                ),
                "start [s]": f"{line['start']:.1f}",
                "a part [s]": f"{line['part_seconds']:.1f}",
                "a part, over the first line's": (
                    f"{line['part_seconds'] / first['part_seconds']:.2f}"
                ),
                "workers' time in parts": _share(
                    line["in_parts"] / line["seconds"] / line["workers"]
                ),
            }
            for line in lines
        ]
    )


# A run


def run_on_processes(options: Options) -> list[dict[str, Any]]:
    """The seconds of a step, by the number of processes."""
    lines = []
    for count in options.processes:
        folder = options.work / f"run_{count}"
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        started = []
        for number in range(count):
            words = ["--train.epochs=4", "--train.log_every=8"]
            words.append("--train.steps_per_call=8")
            words.append(f"--data.batch_size={count * options.batch}")
            if count > 1:
                words += [f"--coordinator=127.0.0.1:{port}", f"--process-id={number}"]
                words.append(f"--num-processes={count}")
            with pinned(number):
                started.append(_start(options, "train", folder, *words))
        _finish(started)
        seconds = [
            line["step_seconds"]
            for line in read_metrics(folder, timing=True)
            if line["kind"] == "timing"
        ]
        # The first lines hold the compilation.
        lines.append({"processes": count, "step": median(seconds[len(seconds) // 2 :])})
    return lines


def run_table(options: Options, lines: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    first = lines[0]["step"]
    return pl.DataFrame(
        [
            {
                "processes": str(line["processes"]),
                "rows of a batch": f"{line['processes'] * options.batch:,}",
                "step [ms]": f"{1e3 * line['step']:.1f}",
                "rows/s": f"{line['processes'] * options.batch / line['step']:,.0f}",
                "efficiency": _share(first / line["step"]),
            }
            for line in lines
        ]
    )


def _start(options: Options, command: str, folder: Path, *words: str) -> Any:
    log = folder.with_suffix(".log")
    with log.open("a") as printed:
        return subprocess.Popen(
            [
                *(sys.executable, "-m", "pwiser_jax", command, *SMALL, *words),
                *(f"--data.path={options.work / 'data'}", f"--output={folder}"),
            ],
            env=environment(options),
            stdout=printed,
            stderr=subprocess.STDOUT,
        )


def _finish(started: Sequence[Any]) -> None:
    for process in started:
        if process.wait():
            raise RuntimeError(f"{' '.join(process.args)} ended with {process.wait()}")


# Exchange


def exchange(options: Options) -> list[dict[str, Any]]:
    """Bytes of a step by kind and collective, by model and number of devices."""
    lines = []
    for model in options.models:
        for sharded in (False, True):
            for devices in (2, 4):
                counted = subprocess.run(
                    [
                        *(sys.executable, "-m", "experiments.bench.exchange"),
                        *(f"--model={model}", f"--sharded={str(sharded).lower()}"),
                    ],
                    # Collectives do not depend on how the rest is optimised.
                    env=environment(options, devices, UNOPTIMISED),
                    stdout=subprocess.PIPE,
                    text=True,
                    check=True,
                )
                for kind, sums in json.loads(counted.stdout).items():
                    line = {"model": model, "sharded": sharded, "devices": devices}
                    lines.append(line | {"kind": kind} | sums)
    return lines


Exchange = Mapping[str, Mapping[str, float]]


def exchange_at(
    lines: Sequence[Mapping[str, Any]], model: str, sharded: bool, devices: int
) -> Exchange:
    """Bytes by kind at another number of devices: each is a + b * devices."""
    of = {
        (line["devices"], line["kind"]): line
        for line in lines
        if (line["model"], line["sharded"]) == (model, sharded)
    }

    def at(kind: str, name: str) -> float:
        two, four = of[2, kind][name], of[4, kind][name]
        return two + (four - two) / 2 * (devices - 2)

    return {
        kind: {n: at(kind, n) for n in ("reduce", "gather", "count")} for kind in KINDS
    }


def sent(sums: Mapping[str, float], devices: int) -> float:
    """Bytes that a device sends in a ring; an all-reduce is a scatter and a gather."""
    return (2 * sums["reduce"] + sums["gather"]) * (devices - 1) / devices


def exchange_table(lines: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    rows = []
    for model, sharded in dict.fromkeys((x["model"], x["sharded"]) for x in lines):
        sums = exchange_at(lines, model, sharded, 4)
        row = {"model": model, "data": "Ali-CCP, sharded" if sharded else "AliExpress"}
        row |= {f"{k} [kB]": f"{sent(sums[k], 4) / 1e3:,.0f}" for k in KINDS}
        count = sum(sums[k]["count"] for k in KINDS)
        rows.append(row | {"collectives": f"{count:.0f}"})
    return pl.DataFrame(rows)


def estimate(lines: Sequence[Mapping[str, Any]]) -> pl.DataFrame:
    """The time of a step on many accelerators, its parts one after another."""
    rows = []
    measured = pl.read_csv(MEASURED)
    counted = {(line["model"], line["sharded"]) for line in lines}
    for model, sharded, batch in (
        ("shared_bottom", False, 2048),
        ("shared_bottom", False, 65_536),
        ("mmoe", False, 2048),
        ("mmoe", False, 65_536),
        ("shared_bottom", True, 2048),
        ("mmoe", True, 2048),
    ):
        if (model, sharded) not in counted:
            continue
        compute = _measured_step(measured, model, sharded, batch)
        for devices, (speed, latency) in LINKS.items():
            sums = exchange_at(lines, model, sharded, devices)
            # What grows with the devices is of their rows, so it grows with these too.
            times = {
                kind: sent(sums[kind], devices)
                / speed
                * (batch / 2048 if kind in ("losses", "tables") else 1)
                + sums[kind]["count"] * latency
                for kind in KINDS
            }
            whole = compute + sum(times.values())
            rows.append(
                {
                    "model": model,
                    "data": "Ali-CCP, sharded" if sharded else "AliExpress",
                    "rows a device": f"{batch:,}",
                    "accelerators": str(devices),
                    "compute [ms]": f"{1e3 * compute:.2f}",
                    **{f"{kind} [ms]": f"{1e3 * times[kind]:.2f}" for kind in KINDS},
                    "efficiency": _share(compute / whole),
                    "largest": max(times, key=times.__getitem__),
                }
            )
    return pl.DataFrame(rows)


def _measured_step(
    measured: pl.DataFrame, model: str, sharded: bool, batch: int
) -> float:
    """Seconds of a step on one H200."""
    data, dim, embedding = "aliexpress", 128, "adam"
    if sharded:
        data, dim, embedding = "aliccp", 16, "lazy_adam"
    rows = measured.filter(
        engine="jax",
        model=model,
        data=data,
        dim=dim,
        batch=batch,
        embedding=embedding,
        lambda_=0.0,
        changes="{}",
        runs=1,
        steps=1,
    ).filter(pl.col("plain").is_null() | (pl.col("plain") == ""))
    return float(rows["seconds"].to_list()[0])


def _share(value: float) -> str:
    return f"{value:.0%}"


def _command(options: Options) -> str:
    every = options.parts == get_args(PartName)
    command = "" if every else f" --parts [{','.join(options.parts)}]"
    if options.models != tuple(MODELS):
        command += f" --models [{','.join(options.models)}]"
    return f"cluster --work DIR{command}"


def note(options: Options) -> str:
    about = " ".join((__doc__ or "").split("\n\n")[2].split())
    links = "; ".join(
        f"{speed / 1e9:.0f} GB/s and {1e6 * latency:.0f} us a collective on {count}"
        for count, (speed, latency) in LINKS.items()
    )
    return (
        f"{about}\n\nThe study has {len(LAMBDAS) * options.seeds} runs of "
        f"{options.epochs} epochs of a synthetic funnel of {options.rows:,} exposures, "
        f"{options.part} runs a part, in batches of {options.batch} rows. Links: "
        f"{links}."
    )


MEASURE: Mapping[PartName, Callable[[Options], list[dict[str, Any]]]] = {
    "study": study,
    "run": run_on_processes,
    "exchange": exchange,
}


TITLES = {
    "study": "Runs an hour of a study, by workers",
    "run": "A run with as many rows in each process",
    "exchange": "Sent by each of 4 devices in a step with 2,048 rows a device",
    "estimate": "A step on many accelerators, on paper",
}


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="experiments.bench.cluster", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(argv))))
    if options.work.exists():
        parser.error(f"--work {options.work} exists: name a new folder")
    made = origin(_command(options), ("jax", "ray"))
    options.work.mkdir(parents=True)
    prepare_synthetic(options.work / "data", rows=options.rows, seed=0)
    lines = {part: MEASURE[part](options) for part in options.parts}
    tables: dict[str, pl.DataFrame] = {}
    if "study" in lines:
        tables["study"] = study_table(lines["study"])
    if "run" in lines:
        tables["run"] = run_table(options, lines["run"])
    if "exchange" in lines:
        tables["exchange"] = exchange_table(lines["exchange"])
        tables["estimate"] = estimate(lines["exchange"])
    sections = [f"# Cluster\n\n{note(options)} {made}"]
    sections += [
        f"## {TITLES[name]}\n\n{to_markdown(table).rstrip()}"
        for name, table in tables.items()
    ]
    rows = [{"part": part} | line for part, each in lines.items() for line in each]
    table = pl.DataFrame(rows, infer_schema_length=None)
    write_results(options.output, table, "\n\n".join(sections))
    return 0


if __name__ == "__main__":
    sys.exit(main())
