"""The training loop: one for a solo run and for a sweep, from top to bottom."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import jax

from pwiser_jax.config import Config
from pwiser_jax.data.batches.batches import paired_conversions, steps_per_epoch
from pwiser_jax.data.batches.prefetch import prefetched
from pwiser_jax.data.batches.rows import Rows
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.data.prepared.manifest import Manifest, refuse_other_data
from pwiser_jax.errors import UserError
from pwiser_jax.training import objective as objectives
from pwiser_jax.training.devices import processes
from pwiser_jax.training.devices.several import MOST_STEPS, Pace
from pwiser_jax.training.devices.signals import Interrupted, StopSignals
from pwiser_jax.training.devices.solo import Solo
from pwiser_jax.training.run import protocol
from pwiser_jax.training.run.checkpoint import BackgroundSaves
from pwiser_jax.training.run.folder import CONFIG, check_run, opened
from pwiser_jax.training.run.header import cautions, header
from pwiser_jax.training.run.loggers import check_logger
from pwiser_jax.training.run.progress import Reporter, Silent
from pwiser_jax.training.run.record import TrainResult, result
from pwiser_jax.training.run.stopwatch import Stopwatch
from pwiser_jax.training.run.store import RunStore
from pwiser_jax.training.run.trace import Trace
from pwiser_jax.training.runs import Runs
from pwiser_jax.training.schedule import Schedule
from pwiser_jax.training.warm_start import check_warm_start


def train(
    config: Config,
    output: Path,
    reporter: Reporter | None = None,
    *,
    stop_after: int | None = None,
    profile: bool = False,
    logger: str = "tensorboard",
) -> TrainResult:
    """Trains a run, or resumes it, and returns its result.

    jax's configuration stays as it is. What the commands set, call before jax is used:
    `host.prepare_host()` for faster steps on a CPU, `host.use_compilation_cache()`.

    Args:
        config: the configuration; `data.path` is a prepared folder.
        output: the run's folder; a run in it resumes from its last checkpoint.
        reporter: receives steps, epochs and lines to show; None: nothing is shown.
        stop_after: number of steps after which this call saves and stops.
        profile: writes a trace of a few steps into the run's folder `profile`.
        logger: gets the metrics: "tensorboard", "mlflow" or "wandb".
    Returns:
        What result.json holds.
    Raises:
        UserError: the data, the configuration or the folder do not fit, another process
            trains in the folder, or the loss is not finite.
        Interrupted: stopped by a signal or `stop_after`, after saving.
    """
    reporter = reporter or Silent()
    check_logger(logger)
    prepared = open_data(config)
    if config.data.batch_size % processes.count():
        raise UserError(
            f"data.batch_size {config.data.batch_size} cannot be shared evenly by "
            f"{processes.count()} processes"
        )
    labels, space = prepared.schema.labels, config.model.cvr_space
    objective, weights = objectives.build(config.loss, labels, space)
    # Process 0 writes the folder; the others only train.
    first, data = processes.first(), Path(config.data.path)
    finished = processes.from_first(check_run(output, config, data) if first else None)
    if finished:
        reporter.line(f"{output} is finished already")
        return TrainResult.from_dict(finished)
    if first and not (output / CONFIG).is_file():
        check_warm_start(config)
    with opened(output, config, data) if first else nullcontext():
        train_rows, valid_rows = split_rows([config], prepared)
        for text in group_notes(config, train_rows):
            reporter.line(text)
        steps = epoch_steps(config, train_rows)
        total = config.train.epochs * steps
        runs = Runs(
            [config],
            [output],
            [objective],
            Solo(config, prepared.schema, objective, weights, train_rows, total),
            RunStore(output),
            steps,
            valid_rows,
            reporter,
            logger,
        )
        trace = Trace(output / "profile" if profile and first else None)
        train_runs(runs, prepared.manifest, stop_after, trace)
    (progress,) = runs.progress
    return result(config, progress)


def open_data(config: Config) -> Prepared:
    """The prepared folder of a configuration."""
    if not config.data.path:
        raise UserError("data.path is needed: a folder that `pwiser prepare` wrote")
    return Prepared(Path(config.data.path))


def epoch_steps(config: Config, rows: Rows) -> int:
    """Steps of an epoch."""
    data = config.data
    return steps_per_epoch(
        rows, data.batch_size, min_conversions=data.min_conversions, order=data.order
    )


def split_rows(configs: Sequence[Config], prepared: Prepared) -> tuple[Rows, Rows]:
    """The rows to train on, with the columns of the losses, and to validate on."""
    train, valid = protocol.rows_of(configs[0].protocol, prepared)
    losses = [config.loss for config in configs]
    columns = [loss.pair_value for loss in losses if loss.pair_value]
    train = train.with_pair_columns(
        groups=any(loss.segments == "group" for loss in losses),
        pair_value=columns[0] if columns else None,
    )
    return train, valid


def group_notes(config: Config, rows: Rows) -> list[str]:
    """Lines about groups and batches for the start of a run."""
    data, notes = config.data, []
    if data.order == "groups":
        cut = rows.by_group.packing(data.batch_size).cut_groups
        if cut:
            notes.append(
                f"{cut:,} groups have more than {data.batch_size} rows: each is cut "
                "into several batches"
            )
    if config.loss.segments == "group":
        share = paired_conversions(
            rows,
            data.batch_size,
            seed=config.train.seed,
            min_conversions=data.min_conversions,
            order=data.order,
        )
        if share is not None:
            warn = data.order == "rows"
            notes.append(
                f"{'warning: ' if warn else ''}{share:.1%} of the conversions share "
                "their batch with a lower row of their group"
                + ("; with data.order groups more of them would" if warn else "")
            )
    return notes


def opening_lines(runs: Runs, manifest: Manifest) -> Iterator[str]:
    """Lines that a group of runs prints once, before its first step."""
    config, steps = runs.config, runs.epoch_steps
    params = jax.tree.leaves(runs.programs.template().params)
    parameters = sum(leaf.size for leaf in params) // len(runs.configs)
    count = jax.device_count()
    devices = f"{count} {jax.default_backend()} device{'s' if count > 1 else ''}"
    yield header(runs.configs, manifest, steps, parameters, devices)
    if config.warm_start is not None:
        yield f"warm start from the best checkpoint of {config.warm_start}"
    for text in cautions(config, manifest, steps):
        yield f"warning: {text}"
    yield from protocol.lines(config)
    if len(runs.configs) == 1:
        yield from objectives.notes(config.loss, runs.objectives[0])


def train_runs(
    runs: Runs, manifest: Manifest, stop_after: int | None, trace: Trace
) -> None:
    """Trains a group of runs to the end, from its last checkpoint if it has one."""
    reporter, config = runs.reporter, runs.config
    for text in opening_lines(runs, manifest):
        reporter.line(text)
    try:
        runs.restore()
        start, train = runs.step, config.train
        schedule = Schedule(
            epoch_steps=runs.epoch_steps,
            log_every=train.log_every,
            checkpoint_every=train.checkpoint_interval,
            most_steps_lost=train.most_steps_lost,
            start=start,
            stop_at=None if stop_after is None else start + stop_after,
        )
        saves, watch = BackgroundSaves(start), Stopwatch()
        try:
            runs.open_records(schedule, watch)
            with StopSignals(reporter.line) as signals, trace:
                run_loop(runs, schedule, saves, watch, signals, trace)
            saves.wait()
        finally:
            runs.close_records()
            saves.close()
        if processes.first():
            for output in runs.outputs:
                refuse_other_data(output, Path(config.data.path))
        runs.finish()
    finally:
        runs.store.close()


def run_loop(
    runs: Runs,
    schedule: Schedule,
    saves: BackgroundSaves,
    watch: Stopwatch,
    signals: StopSignals,
    trace: Trace,
) -> None:
    """Trains until every run has stopped.

    Raises:
        Interrupted: a signal arrived or `schedule` says to stop; a checkpoint is saved.
    """
    reporter, train = runs.reporter, runs.config.train
    # All processes must make the same calls, so their clocks cannot choose the length.
    fixed = train.steps_per_call or (MOST_STEPS if processes.count() > 1 else 0)
    pace, step, signum = Pace(fixed), runs.step, 0

    def read(call: Any) -> int:
        """Waits for a call and records its metrics. Returns the signal, or 0."""
        dispatched, count, values, signal = call
        loss = runs.read(values, count)
        rows = runs.config.data.batch_size * max(len(runs.active), 1)
        watch.count(count, count * runs.config.data.batch_size)
        reporter.steps(count, loss, rows / pace.note(dispatched, count))
        signals.stepped = True
        return int(signal)

    while runs.active:
        reporter.epoch(runs.epoch, schedule.epoch_steps, step % schedule.epoch_steps)
        pace.restart()
        pending: deque[Any] = deque()
        with prefetched(_calls(runs, schedule, pace)) as calls, watch.running():
            for batches, count in watch.waited_for(calls):
                # Dispatch call k, and read call k - 1 while it computes. More calls in
                # flight gain nothing, and deadlock several devices of a CPU.
                pending.append(runs.dispatch(batches, count, signals.received))
                step += count
                trace.at(count, runs.states)
                while len(pending) > 1:
                    signum = read(pending.popleft())
                # A signal takes effect when its call is read: then all processes know
                # it.
                stop = bool(signum) or schedule.stops(step)
                if stop or schedule.due(step):
                    signum = read(pending.popleft()) or signum
                    stop = stop or bool(signum)
                if not runs.active:
                    break
                # Evaluate if an epoch ends; save if that is due; stop if asked to.
                better: Sequence[int] = ()
                if schedule.ends_epoch(step):
                    with watch.paused():
                        better = runs.validate()
                    if runs.failed:
                        break
                    reporter.line(runs.epoch_line(better))
                if stop or schedule.due(step):
                    with watch.measured("checkpoint"):
                        _checkpoint(runs, schedule, saves, step, stop, better)
                if stop and runs.active:
                    raise Interrupted(step, signum)


def _calls(runs: Runs, schedule: Schedule, pace: Pace) -> Iterator[tuple[Any, int]]:
    """Yields the batches and the number of steps of each remaining call of an epoch."""
    step = runs.step
    end = step + schedule.epoch_steps - step % schedule.epoch_steps
    batches = runs.programs.batches(runs.epoch, step % schedule.epoch_steps)
    while step < end:
        count = min(pace.steps, schedule.next_stop(step) - step)
        step += count
        yield batches(count), count


def _checkpoint(
    runs: Runs,
    schedule: Schedule,
    saves: BackgroundSaves,
    step: int,
    stop: bool,
    better: Sequence[int],
) -> None:
    """Begins a checkpoint if one is due; waits for it where it must be on disk."""
    if schedule.must_wait(step, saves.finished):
        saves.wait()
    due = stop or schedule.ends_epoch(step)
    if not due and schedule.saves(step):
        # All processes or none: each may hold a part of the state.
        due = not processes.from_first(saves.in_flight())
    if due:
        tree = runs.tree()

        def write(state: Any) -> None:
            runs.store.save(step, state, tree, better)

        saves.begin(step, runs.programs.whole(runs.states), write)
    if stop or schedule.must_wait(step, saves.finished):
        saves.wait()
