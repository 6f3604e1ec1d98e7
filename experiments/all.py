"""Runs the experiments and writes one report: questions, answers, commands.

    python -m experiments.all --output runs/experiments      (at most 45 minutes)
    python -m experiments.all --quick --output runs/quick    (minutes; to try it)
    python -m experiments.all --full --only comparison --output runs/comparison
    python -m experiments.all --only noise terms --output runs/experiments

The same command resumes after a stop: finished runs are not trained again. report.html
is rewritten after each experiment; effect.png is its first picture, findings.md holds
the answers, and results/ each number with its run folder, seed and config hash.
Commands may share --runs. --tables DIR writes the report from such result tables,
without training.
"""

import atexit
import gc
import os
import shlex
import sys

# Imported modules are not garbage: collections, with the last one at the exit, would
# take a fifth of a report from tables.
if __name__ == "__main__":
    gc.set_threshold(500_000)
    atexit.register(gc.freeze)

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import polars as pl
from jsonargparse import Namespace
from rich.console import Console
from rich.text import Text

from experiments.lib.arms import arm_titles, chosen_arms
from experiments.lib.commands import prepare_jax, run_command
from experiments.lib.datasets import Dataset, given, industrial, kuairand, synthetic
from experiments.lib.measure import machine
from experiments.lib.study import SCALES, Experiment, Finding, Scale, Study
from pwiser_jax.atomic import locked, write_whole
from pwiser_jax.errors import UserError, did_you_mean, listed
from pwiser_jax.options import Parser
from pwiser_jax.reports.html import Picture, Report, Section, TableBlock, Verdict
from pwiser_jax.reports.plots import differences, to_png
from pwiser_jax.reports.tables import to_markdown, to_rich
from pwiser_jax.training.run.protocol import CHOSEN, LEARNED, NAMES, TRAINED_ON, note

# In the order of the report. Each is the EXPERIMENT of the module of its name, which is
# imported where the experiment is chosen: a report from tables loads no jax.
EXPERIMENTS = (
    "comparison",
    "interplay",
    "growth",
    "noise",
    "revenue",
    "paper_table",
    "terms",
    "significance",
    "ladders",
    "drift",
    "nightly",
    "calibration",
    "classical",
)

VERDICT = ("comparison", "paper_table", "significance")

UNOPTIMISED = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)


def _parser() -> Parser:
    parser = Parser(prog="experiments.all", description=__doc__)
    add = parser.add_argument
    add("--output", type=Path, required=True, help="the folder of report and tables")
    add("--runs", type=Path | None, help="the folder of runs; default: OUTPUT/cells")
    add(
        "--tables",
        type=Path | None,
        help="a folder of result tables to write the report from",
    )
    add("--only", nargs="+", choices=EXPERIMENTS, help="these experiments")
    add(
        "--quick",
        type=bool,
        default=False,
        help="tiny runs, to check that everything works",
    )
    add("--full", type=bool, default=False, help="the size of the committed results")
    add(
        "--data",
        type=Path,
        nargs="+",
        help="prepared folders, instead of the built-in data",
    )
    add(
        "--configs",
        type=Path | None,
        help="a folder with configs for --data",
    )
    add("--kuairand", type=Path | None, help="KuaiRand-Pure's files, as further data")
    add("--datasets", nargs="+", type=str, help="these of the datasets, by name")
    add("--seeds", type=int | None, help="seeds of each experiment; default: by size")
    add("--arms", nargs="+", type=str, help="arms of the comparison; see its plan")
    add("--growth_rows", nargs="+", type=int, help="rows of the funnels of growth")
    add("--batch_sizes", nargs="+", type=int, help="batch sizes of growth")
    add("--models", nargs="+", type=str, help="models of the paper's table")
    add("--split", choices=["valid", "test"], default="test", help="to measure on")
    add(
        "--protocol",
        choices=list(LEARNED),
        default="default",
        help="see pwiser train --help",
    )
    add(
        "--cluster",
        type=str | None,
        help="train grids of runs on a Ray cluster: local (this machine), auto (the one"
        " that this machine belongs to) or HOST:PORT of its head; streams and measures"
        " of rows stay in this process, on its CPU",
    )
    add("--set", type=str, nargs="+", help="options of every run: train.epochs=3 ...")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    parser = _parser()
    arguments = sys.argv[1:] if argv is None else list(argv)
    options = parser.parse(arguments)
    if options.quick:
        # Tiny runs spend their time compiling; read when jax is first used.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {UNOPTIMISED}"

    def work() -> None:
        study = _study(options)
        names = options.only or EXPERIMENTS
        if options.tables is not None and not options.only:
            names = [name for name in names if study.table(name).frame.height]
        if options.tables is not None and "ladders" in names:
            prepare_jax()  # it times the loss, from tables too
        chosen = [experiment_of(name) for name in names]
        _check(study, chosen)
        with _joined(study.cluster):
            study.output.mkdir(parents=True, exist_ok=True)
            with locked(study.output, "writing a report"):
                report(study, chosen, _command(arguments))

    return run_command(parser.prog, work, computes=options.tables is None)


def experiment_of(name: str) -> Experiment:
    """The experiment of a name of EXPERIMENTS."""
    return import_module(f"experiments.{name}").EXPERIMENT


def _check(study: Study, chosen: Sequence[Experiment]) -> None:
    """Refuses what cannot run, before a folder is created."""
    if study.tables is None:
        from pwiser_jax.config import load_config

        for dataset in study.datasets:
            if dataset.make is None:
                dataset.ready()
            for model in study.scale.models:
                load_config(dataset.configs / f"{model}.yaml", study.options(dataset))
    for experiment in chosen:
        if experiment.check is not None:
            experiment.check(study)


def _joined(cluster: str | None) -> AbstractContextManager[Any]:
    """The cluster, joined once for all experiments."""
    if cluster is None:
        return nullcontext()
    from pwiser_jax.training.cluster.connect import connected

    return connected(cluster)


def _study(options: Namespace) -> Study:
    if options.quick and options.full:
        raise UserError("--quick and --full are two sizes; choose one")
    name = "quick" if options.quick else "full" if options.full else "standard"
    scale = SCALES[name]
    if options.seeds is not None:
        if options.seeds < 1:
            raise UserError(f"--seeds is {options.seeds}; expected 1 or more")
        seeds = options.seeds
        scale = replace(scale, seeds=seeds, pairs=seeds, finals=seeds)
    if options.models:
        _check_models(options.models)
        scale = replace(scale, models=tuple(options.models))
    for name in ("growth_rows", "batch_sizes"):
        sizes = getattr(options, name)
        if sizes:
            if min(sizes) < 1:
                raise UserError(f"--{name} has {min(sizes)}; expected 1 or more")
            scale = replace(scale, **{name: tuple(sizes)})
    chosen_arms(options.arms or [])
    if note(options.protocol, options.split) == TRAINED_ON:
        raise UserError("protocol mtreclib trains on valid; measure --split test")
    if (options.data is None) != (options.configs is None):
        raise UserError("--data and --configs belong together; give both or none")
    if options.tables is not None and options.cluster is not None:
        raise UserError("--tables trains nothing: leave out --cluster")
    datasets = _datasets(options, scale)
    if options.tables is not None:
        datasets = _recorded(options.tables, datasets)
    return Study(
        output=options.output,
        runs=options.runs or options.output / "cells",
        scale=scale,
        datasets=datasets,
        split=options.split,
        protocol=options.protocol,
        kuairand=options.kuairand,
        overrides=tuple(f"--{item}" for item in options.set or ()),
        arms=tuple(options.arms or ()),
        tables=options.tables,
        cluster=options.cluster,
    )


def _check_models(names: Sequence[str]) -> None:
    from pwiser_jax.models import MODELS  # loads jax

    for name in names:
        if name not in MODELS:
            hint = did_you_mean(name, MODELS)
            raise UserError(f"--models is {name}; expected {listed(MODELS)}{hint}")


def _recorded(tables: Path, datasets: list[Dataset]) -> list[Dataset]:
    """Selects the datasets of the result tables."""
    files = sorted(tables.glob("*.parquet"))
    if not files:
        raise UserError(f"{tables} holds no result tables (--tables)")
    names = set(
        pl.concat(pl.read_parquet(f, columns=["dataset"]) for f in files)["dataset"]
    )
    return [dataset for dataset in datasets if dataset.name in names]


def _datasets(options: Namespace, scale: Scale) -> list[Dataset]:
    if options.data:
        datasets = [given(folder, options.configs) for folder in options.data]
    else:
        place = options.output / "data"
        datasets = [synthetic(place, scale.rows), industrial(place, scale.rows)]
    source = options.kuairand
    if source is not None and not source.exists():
        raise UserError(f"{source}: no such folder or zip (--kuairand)")
    if options.tables is not None:
        source = source or Path("KUAIRAND_DIR")  # is not read
    if source is not None:
        datasets += [
            replace(
                kuairand(
                    options.output / "data", source, conversion, scale.kuairand_rows
                ),
                overrides=scale.kuairand,
            )
            for conversion in ("like", "long_view")
        ]
    names = [dataset.name for dataset in datasets]
    for name in options.datasets or ():
        if name not in names:
            raise UserError(f"--datasets: no {name!r}; there are {'; '.join(names)}")
    if options.datasets:
        datasets = [each for each in datasets if each.name in options.datasets]
    return datasets


def report(study: Study, chosen: Sequence[Experiment], command: str) -> None:
    """Runs the experiments in turn; writes report and findings after each."""
    console = Console(stderr=True, highlight=False, markup=False)
    chosen_on = NAMES[CHOSEN[study.protocol]]
    source = "Numbers from recorded result tables; the page" if study.tables else "Made"
    titles = "; ".join(dataset.title for dataset in study.datasets)
    data = f"Data: {titles}. " if titles else ""  # a stream is no dataset
    introduction = (
        f"{data}AUC on {study.split}, of the epoch with the best mean AUC on "
        f"{chosen_on}. Runs of one seed share initial weights and batches; "
        "differences are paired by seed. "
        "Each number is in results/EXPERIMENT.parquet with its run folder, seed and "
        f"config hash. {source} on {machine()}."
    )
    page = Report("When does PWiseR help?", introduction)
    findings: dict[str, Finding] = {}
    for experiment in chosen:
        console.rule(Text(experiment.title))
        finding = findings[experiment.name] = experiment.find(study)
        title = study.titled(experiment.title)
        console.print(finding.answer)
        if finding.table is not None:
            terminal = Console()
            terminal.print(to_rich(finding.table, title, terminal.width))
            path = study.output / "results" / f"{experiment.name}.md"
            caution = note(study.protocol, study.split)
            head = "" if caution is None else f"{caution}\n\n"
            write_whole(path, head + to_markdown(finding.table))
        page.sections.append(
            Section(
                title=title,
                asked=experiment.asked,
                answer=f"{finding.answer} {finding.details}".strip(),
                blocks=finding.blocks,
                command=command,
                configuration=_configuration(study),
            )
        )
        if study.tables is None or experiment is chosen[-1]:  # else it takes seconds
            page.verdict = verdict(findings)
            page.write(study.output / "report.html")
            write_whole(study.output / "findings.md", _markdown(page))
    for picture in verdict(findings).pictures:  # the layout of the page's is fixed
        (study.output / "effect.png").write_bytes(to_png(picture.figure))
    print(study.output / "report.html")


def _markdown(page: Report) -> str:
    """The answers, the first one with the table of what to do below it."""
    answers = [f"- **{s.title.rstrip('?')}.** {s.answer}\n" for s in page.sections]
    tables = page.verdict.tables if page.verdict else ()
    texts = [f"\n{b.caption}:\n\n{to_markdown(b.table)}\n" for b in tables]
    return "".join([*answers[:1], *texts, *answers[1:]])


def verdict(findings: Mapping[str, Finding]) -> Verdict:
    """Three answers, the comparison first, and a picture of the first one's effects."""
    order = [*(name for name in VERDICT if name in findings), *findings]
    first = list(dict.fromkeys(order))[:3]
    effects = [
        finding.effects.filter(pl.col("low").is_not_null())
        for name in first
        if (finding := findings[name]).effects is not None
    ]
    pictures = []
    table = next((each for each in effects if each.height), None)
    if table is not None:
        pictures.append(
            Picture(
                differences(
                    table,
                    baseline="BCE",
                    rows=("loss", "dataset"),
                    titles=arm_titles(table["loss"]),
                ),
                "Effect of PWiseR on AUC, with intervals, by head, dataset and form.",
                "The effect on each head's AUC against BCE: 95% intervals over paired "
                "seeds. Right of 0 PWiseR is better.",
            )
        )
    return Verdict(
        [findings[name].answer for name in first], pictures, decision_blocks(findings)
    )


def decision_blocks(findings: Mapping[str, Finding]) -> list[TableBlock]:
    """What to do for which data, over all experiments that say so."""
    parts = [f.decisions for f in findings.values() if f.decisions is not None]
    if not parts:
        return []
    caption = (
        "If your data look like this, do that: of the arms that ran, the one with the "
        "best mean, minus tuned BCE, with 95% intervals over paired seeds. p is after "
        "Holm over the arms of a row; over the questions written down before the runs "
        "it is larger, see below"
    )
    return [TableBlock(pl.concat(parts), caption)]


def _configuration(study: Study) -> str:
    """The configuration files of the runs, and the options set on top of them."""
    files = {
        dataset.configs / f"{model}.yaml": None
        for dataset in study.datasets
        for model in study.scale.models
    }
    texts = [path.read_text(encoding="utf-8") for path in files]
    options = (*study.scale.overrides, *study.overrides)
    if options:
        texts.append(f"# every run: {' '.join(options)}\n")
    texts += [
        f"# every run on {dataset.title}: {' '.join(dataset.overrides)}\n"
        for dataset in study.datasets
        if dataset.overrides
    ]
    return "\n".join(texts)


def _command(arguments: Sequence[str]) -> str:
    """The command, with paths of raw files replaced."""
    shown, before = [], ""
    for text in arguments:
        name, equals, _ = text.partition("=")
        if before == "--kuairand":
            text = "KUAIRAND_DIR"
        elif name == "--kuairand" and equals:
            text = "--kuairand=KUAIRAND_DIR"
        shown.append(text)
        before = text
    return f"python -m experiments.all {shlex.join(shown)}"


if __name__ == "__main__":
    sys.exit(main())
