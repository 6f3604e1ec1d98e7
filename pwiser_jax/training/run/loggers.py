"""Where the scalars of a run go, besides metrics.jsonl: `train --logger NAME`.

A logger is written once, in `LOGGERS`. MLflow and Weights & Biases find their server,
project and experiment through their own environment variables.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import yaml

from pwiser_jax.errors import UserError, first_line, listed

PROJECT = "pwiser_jax"


class LoggerWarning(UserWarning):
    """A logger failed; the run goes on without it."""


class Logger(Protocol):
    """Receives the scalars of one run."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """The values of a step, by tags such as "train/loss"."""
        ...

    def close(self, finished: bool) -> None:
        """The end of the run, or of this call if it is to be resumed."""
        ...


@contextmanager
def _without_torch() -> Iterator[None]:
    """Hides torch from tensorboardX.

    It imports torch, where that is installed, for a type that is not needed here: that
    takes seconds and hundreds of MiB.
    """
    modules: dict[str, Any] = sys.modules
    hide = "torch" not in modules
    if hide:
        modules["torch"] = None  # so `import torch` raises ImportError
    try:
        yield
    finally:
        if hide:
            del modules["torch"]


class TensorBoard:
    """Event files in RUN/tensorboard.

    They are written synchronously: the thread of tensorboardX's SummaryWriter prints
    tracebacks on a full disk.
    """

    def __init__(self, run: Path, start: int) -> None:
        with _without_torch():
            from tensorboardX.event_file_writer import EventsWriter
            from tensorboardX.proto import event_pb2
            from tensorboardX.summary import scalar

        self._proto: Any = event_pb2  # protobuf creates its classes at import
        self._scalar = scalar
        board = run / "tensorboard"
        board.mkdir(exist_ok=True)
        self._events = EventsWriter(str(board / "events"))
        if start:  # makes TensorBoard drop the events of later steps
            log = self._proto.SessionLog(status=self._proto.SessionLog.START)
            event = self._proto.Event(step=start + 1, session_log=log)
            self._events.write_event(event)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for tag, value in values.items():
            self._events.write_event(
                self._proto.Event(
                    step=step, wall_time=time.time(), summary=self._scalar(tag, value)
                )
            )
        self._events.flush()

    def close(self, finished: bool) -> None:
        with suppress(OSError):
            self._events.close()


class Mlflow:
    """A run of the experiment MLFLOW_EXPERIMENT_NAME at MLFLOW_TRACKING_URI.

    Its id is kept in RUN/mlflow.txt: a resumed run goes on there, and logs the steps
    after its checkpoint again, with the same values.
    """

    def __init__(self, run: Path, start: int) -> None:
        entities: Any = import_module("mlflow.entities")
        self._metric = entities.Metric
        self._client: Any = import_module("mlflow.tracking").MlflowClient()
        path = run / "mlflow.txt"
        if path.exists():
            self._id = path.read_text().strip()
            self._client.update_run(self._id, status="RUNNING")
            return
        created = self._client.create_run(self._experiment(), run_name=run.name)
        self._id = created.info.run_id
        params = [
            entities.Param(name, str(value)) for name, value in options(run).items()
        ]
        self._client.log_batch(self._id, params=params)
        path.write_text(self._id + "\n")

    def _experiment(self) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        known = self._client.get_experiment_by_name(name)
        return known.experiment_id if known else self._client.create_experiment(name)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        metrics = [
            self._metric(tag.replace(">", "_over_"), value, now, step)
            for tag, value in values.items()
        ]
        self._client.log_batch(self._id, metrics=metrics)

    def close(self, finished: bool) -> None:
        status = "FINISHED" if finished else "KILLED"
        self._client.set_terminated(self._id, status)


class WandB:
    """A run of the project WANDB_PROJECT; its files lie in RUN/wandb.

    Its id is kept in RUN/wandb.txt: a resumed run goes on there.
    """

    def __init__(self, run: Path, start: int) -> None:
        wandb: Any = import_module("wandb")
        path = run / "wandb.txt"
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", PROJECT),
            id=path.read_text().strip() if path.exists() else None,
            name=run.name,
            dir=run,
            config=options(run),
            resume="allow",
            reinit="create_new",  # the runs of a sweep are open together
            settings=wandb.Settings(silent=True),
        )
        path.write_text(self._run.id + "\n")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)


LOGGERS: dict[str, Callable[[Path, int], Logger]] = {
    "tensorboard": TensorBoard,
    "mlflow": Mlflow,
    "wandb": WandB,
}


class Remote:
    """MLflow or Weights & Biases: a failure costs its numbers, not the run.

    Raises:
        UserError: it cannot start.
    """

    def __init__(self, name: str, run: Path, start: int) -> None:
        self._name, self._run = name, run
        try:
            self._logger: Logger | None = LOGGERS[name](run, start)
        except Exception as error:
            raise UserError(f"--logger {name}: {first_line(error)}") from error

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._call(lambda logger: logger.log(step, values))

    def close(self, finished: bool) -> None:
        self._call(lambda logger: logger.close(finished))

    def _call(self, action: Callable[[Logger], None]) -> None:
        if self._logger is None:
            return
        try:
            action(self._logger)
        except Exception as error:
            self._logger = None
            warnings.warn(
                f"--logger {self._name}: {first_line(error)}; {self._run} goes on "
                "without it, and metrics.jsonl has its numbers",
                LoggerWarning,
                stacklevel=1,
            )


def open_logger(name: str, run: Path, start: int) -> Logger:
    """The logger of a run that starts, or resumes, at step `start`."""
    if name == "tensorboard":
        return TensorBoard(run, start)
    return Remote(name, run, start)


def check_logger(name: str) -> None:
    """Refuses an unknown logger, or one whose package is not installed."""
    if name not in LOGGERS:
        raise UserError(f"--logger is {name}; expected {listed(LOGGERS)}")
    if name != "tensorboard":
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise UserError(
                f"--logger {name} needs {error.name}, which is not installed: "
                f"pip install 'pwiser-jax[{name}]'"
            ) from None
        except Exception as error:  # an old release beside new packages
            raise UserError(
                f"--logger {name}: {name} does not load: {first_line(error)}"
            ) from error


def options(run: Path) -> dict[str, Any]:
    """The configuration of a run, flat: {"loss.ranking": "pwiser"}."""
    tree = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    return {
        f"{section}.{name}": value
        for section, values in tree.items()
        for name, value in (
            values.items() if isinstance(values, dict) else [("", values)]
        )
    }
