"""Writes a run's numbers to metrics.jsonl and TensorBoard event files."""

import json
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto import event_pb2
from tensorboardX.summary import scalar

from pwiser_jax.atomic import write_whole
from pwiser_jax.training.devices import processes

TIMING = "timing"
EVENTS: Any = event_pb2  # protobuf creates its classes at import


class MetricsWriter:
    """Appends lines to metrics.jsonl and scalars to event files.

    Lines of kind "timing" depend on the machine; all others depend only on the
    configuration.

    A run that resumes at step `start` first removes the lines after it and then writes
    them again, so the file equals that of an uninterrupted run. Only process 0 writes.

    Events are written synchronously: the thread of tensorboardX's SummaryWriter prints
    tracebacks on a full disk.
    """

    def __init__(self, run: Path, start: int) -> None:
        self._writes = processes.first()
        if not self._writes:
            return
        path = run / "metrics.jsonl"
        kept = read_metrics(run, upto=start, timing=True)
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._file = path.open("a", encoding="utf-8")
        board = run / "tensorboard"
        board.mkdir(exist_ok=True)
        self._events = EventsWriter(str(board / "events"))
        if start:  # TensorBoard drops the events of later steps
            log = EVENTS.SessionLog(status=EVENTS.SessionLog.START)
            self._events.write_event(EVENTS.Event(step=start + 1, session_log=log))

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line, {"kind", "step", **values}; event files join names with "/".

        Raises:
            OSError: it cannot be written.
        """
        if not self._writes:
            return
        line = {"kind": kind, "step": step, **values}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            scalars = value if isinstance(value, dict) else {"": value}
            for key, number in scalars.items():
                tag = "/".join(part for part in (kind, name, key) if part)
                if isinstance(number, int | float):
                    summary = scalar(tag, number)
                    self._events.write_event(
                        EVENTS.Event(step=step, wall_time=time.time(), summary=summary)
                    )
        self._events.flush()

    def close(self) -> None:
        """Closes the files and ignores errors."""
        if not self._writes:
            return
        for file in (self._file, self._events):
            with suppress(OSError):
                file.close()


def read_metrics(
    run: Path, upto: int | None = None, *, timing: bool = False
) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl up to step `upto`, without a truncated last line.

    Lines of kind "timing" are omitted by default.
    """
    path = run / "metrics.jsonl"
    lines = []
    for text in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            break
        if (timing or line["kind"] != TIMING) and (
            upto is None or line["step"] <= upto
        ):
            lines.append(line)
    return lines
