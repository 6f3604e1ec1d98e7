"""How long do evaluation, prediction and the small commands take?

    python -m experiments.bench.evaluation --work /tmp/bench --rows 40000000

"measures": what `pwiser evaluate` computes once it has the scores of `--rows` synthetic
rows: the measures of CTR, CTCVR and CVR, split by part, and the peak memory of their
process. "predict": `pwiser predict` of a prepared folder of AliExpress-shaped rows,
against reading its rows alone and the model on rows in memory alone. "commands": from
the command to its end; `prepare kuairand` and `inspect` of its output with the raw
files in `--kuairand`, the report from the result tables of the repository. Each round
measures everything once, each in its own process.
"""

import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import polars as pl
from rich.console import Console

from experiments.bench.tables import origin, spread, write_results
from experiments.lib.measure import run
from pwiser_jax import evaluation, metrics
from pwiser_jax.host import prepare_host
from pwiser_jax.options import Parser, PositiveInt
from pwiser_jax.reports.tables import to_markdown, to_rich

What = Literal["measures", "predict", "commands"]
ROWS_OF_A_GROUP = 20
# The parts of the measures, by the functions of `metrics` that `evaluation` calls.
PARTS = {
    "score_order": "sort",
    "auc_interval": "AUC and intervals",
    "grouped_auc": "GAUC",
    "log_loss_from_logits": "log loss",
    "log_loss": "log loss",
    "predicted_over_observed": "calibration",
    "expected_calibration_error": "calibration",
}
REPORT = Path(__file__).parents[1] / "results" / "kuairand"


@dataclass(frozen=True)
class Options:
    """Options of the benchmark.

    Args:
        work: a folder for the generated files; existing ones are used again.
        output: path of the results, without a suffix.
        parts: which of measures, predict and commands.
        rows: rows of the measures.
        predict_rows: about so many rows to predict.
        model: the model that predicts.
        kuairand: the folder of KuaiRand's raw files; without it they are left out.
        rounds: number of measurements of each.
    """

    work: Path
    output: Path = Path("experiments/results/evaluation")
    parts: tuple[What, ...] = get_args(What)
    rows: PositiveInt = 1_000_000
    predict_rows: PositiveInt = 500_000
    model: str = "mmoe"
    kuairand: Path | None = None
    rounds: PositiveInt = 3


Seconds = dict[str, float]


def measures(rows: int) -> Seconds:
    """Seconds of all measures, and of each part."""
    prepare_host()
    logits, labels, groups = scored(rows)
    parts = dict.fromkeys(PARTS.values(), 0.0)

    def timed(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments)
            parts[part] += time.perf_counter() - started
            return result

        return call

    for name, part in PARTS.items():
        setattr(metrics, name, timed(part, getattr(metrics, name)))
    started = time.perf_counter()
    evaluation.evaluate(
        logits,
        labels,
        groups,
        label_names=("click", "conversion"),
        space="ctcvr",
        split="test",
    )
    whole = time.perf_counter() - started
    return {"all": whole, **parts, "rest": whole - sum(parts.values())}


def scored(rows: int) -> tuple[dict[str, np.ndarray], np.ndarray, np.ndarray]:
    """Logits of both heads, labels drawn from them, and groups."""
    rng = np.random.default_rng(0)
    ctr, cvr = (rng.standard_normal(rows, np.float32) + at for at in (-3, -2))
    click = rng.random(rows, np.float32) < 1 / (1 + np.exp(-ctr))
    conversion = click & (rng.random(rows, np.float32) < 1 / (1 + np.exp(-cvr)))
    labels = np.stack([click, conversion], axis=1).astype(np.int8)
    groups = rng.integers(0, max(rows // ROWS_OF_A_GROUP, 1), rows, np.int32)
    return {"ctr": ctr, "ctcvr": ctr + cvr - 1}, labels, groups


def predicting(run_folder: str, data: str, output: str) -> Seconds:
    """Seconds of reading alone, the model alone, and both as `predict` has them."""
    from pwiser_jax.inference.predict import Predicted, Scorer, predict_file

    prepare_host()
    scorer, source = Scorer(Path(run_folder)), Path(data)

    def seconds(call: Callable[[], Any]) -> float:
        started = time.perf_counter()
        call()
        return time.perf_counter() - started

    with scorer.read(source, (), Predicted()) as parts:
        chunks = [rows for _, rows in parts]
    scorer.predict(chunks[0])  # compiles

    def read() -> None:
        with scorer.read(source, (), Predicted()) as parts:
            for _ in parts:
                pass

    reading = seconds(read)
    model = seconds(lambda: [scorer.predict(rows) for rows in chunks])
    both = seconds(lambda: list(scorer.tables(source, (), Predicted())))
    target = Path(output)
    written = seconds(
        lambda: predict_file(Path(run_folder), source, target, overwrite=True)
    )
    return {
        "reading": reading,
        "model": model,
        "predict": both,
        "over the slower of reading and model": both / max(reading, model),
        "with loading the run and writing the file": written,
    }


def trained(work: Path, rows: int, model: str) -> tuple[Path, Path]:
    """A run of one short epoch and the prepared folder that it predicts; made once."""
    raw, data, output = work / f"raw_{rows}", work / f"data_{rows}", work / model
    if not data.is_dir():
        options = [f"--rows={rows}", f"--output={raw}"]
        run("experiments.bench.raw.make_raw", "aliexpress", *options)
        places = [f"--source={raw}", f"--output={data}"]
        run("pwiser_jax", "prepare", "aliexpress", *places)
    if not (output / "evaluation_valid.json").is_file():
        config = Path(__file__).parents[2] / "configs" / "aliexpress" / f"{model}.yaml"
        options = [f"--data.path={data}", f"--output={output}", "--train.epochs=1"]
        run("pwiser_jax", "train", f"--config={config}", *options)
    return output, data


def commands(options: Options) -> dict[str, tuple[str, ...]]:
    """The commands by name, in their order."""
    data, report = options.work / "kuairand", options.work / "report"
    every: dict[str, tuple[str, ...]] = {}
    if options.kuairand is not None:
        places = (f"--source={options.kuairand}", f"--output={data}", "--overwrite")
        every["prepare kuairand"] = ("pwiser_jax", "prepare", "kuairand", *places)
        every["inspect"] = ("pwiser_jax", "inspect", str(data))
    tables = ("--full", f"--tables={REPORT}", f"--output={report}")
    every["the report"] = ("experiments.all", *tables)
    return every


def bench(options: Options) -> pl.DataFrame:
    """All measurements of all rounds, one row each."""
    lines: list[dict[str, Any]] = []
    options.work.mkdir(parents=True, exist_ok=True)
    places: tuple[Path, ...] = ()
    if "predict" in options.parts:
        places = trained(options.work, options.predict_rows, options.model)

    def note(turn: int, what: str, parts: Seconds, peak: float) -> None:
        for part, value in parts.items():
            line = {"what": what, "part": part, "round": turn, "value": value}
            lines.append(line | {"peak_mib": peak})
            Console(stderr=True).print(lines[-1])

    def child(*arguments: str) -> tuple[Seconds, float]:
        cost = run("experiments.bench.evaluation", "--measure", *arguments)
        return json.loads(cost.output), cost.peak_mib

    for turn in range(options.rounds):
        if "measures" in options.parts:
            name = f"measures of {options.rows:,} rows"
            note(turn, name, *child("measures", str(options.rows)))
        if places:
            output = options.work / "predicted.parquet"
            name = f"predict {options.predict_rows:,} rows, {options.model}"
            note(turn, name, *child("predict", *map(str, (*places, output))))
        if "commands" in options.parts:
            for name, command in commands(options).items():
                cost = run(*command)
                note(turn, "commands", {name: cost.seconds}, cost.peak_mib)
    return pl.DataFrame(lines)


def formatted(table: pl.DataFrame) -> pl.DataFrame:
    """Medians of the rounds, and in brackets minimum and maximum."""
    lines = []
    for (what, part), of in table.group_by("what", "part", maintain_order=True):
        lines.append(
            {
                "What": what,
                "Part": part,
                "Seconds, or a ratio": spread(of["value"].to_list()),
                "Peak MiB": f"{of['peak_mib'].max():,.0f}",
            }
        )
    return pl.DataFrame(lines)


def main(argv: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if argv is None else list(argv)
    if arguments[:1] == ["--measure"]:
        what, *rest = arguments[1:]
        found = measures(int(rest[0])) if what == "measures" else predicting(*rest)
        print(json.dumps(found))
        return 0
    parser = Parser(prog="experiments.bench.evaluation", description=__doc__)
    parser.add_class_arguments(Options, as_group=False)
    options = Options(**vars(parser.instantiate(parser.parse(arguments))))
    sizes = f"--rows={options.rows} --predict_rows={options.predict_rows}"
    raw = " --kuairand=DIR" if options.kuairand else ""
    command = f"evaluation --work DIR {sizes}{raw}"
    made = origin(command, ("numpy", "scipy", "polars", "jax"), rounds=options.rounds)
    table = bench(options)
    texts = formatted(table)
    text = f"# Evaluation\n\n{__doc__}\n{made}\n\n{to_markdown(texts)}"
    write_results(options.output, table, text)
    Console().print(to_rich(texts, "Evaluation"))
    return 0


if __name__ == "__main__":
    sys.exit(main())
