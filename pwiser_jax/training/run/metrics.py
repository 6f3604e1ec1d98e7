"""Writes a run's numbers to metrics.jsonl and to a logger."""

import json
from contextlib import suppress
from pathlib import Path
from typing import Any

from pwiser_jax.atomic import write_whole
from pwiser_jax.training.devices import processes
from pwiser_jax.training.run.loggers import open_logger

TIMING = "timing"


class MetricsWriter:
    """Appends lines to metrics.jsonl and sends their scalars to a logger.

    Lines of kind "timing" depend on the machine; all others depend only on the
    configuration.

    A run that resumes at step `start` first removes the lines after it and then writes
    them again, so the file equals that of an uninterrupted run. Only process 0 writes.
    """

    def __init__(self, run: Path, start: int, logger: str = "tensorboard") -> None:
        self._writes = processes.first()
        if not self._writes:
            return
        path = run / "metrics.jsonl"
        kept = read_metrics(run, upto=start, timing=True)
        write_whole(path, "".join(json.dumps(line) + "\n" for line in kept))
        self._logger = open_logger(logger, run, start)
        self._file = path.open("a", encoding="utf-8")

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line, {"kind", "step", **values}; the logger's tags join names with "/".

        Raises:
            OSError: it cannot be written.
        """
        if not self._writes:
            return
        line = {"kind": kind, "step": step, **values}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        tags = {}
        for name, value in values.items():
            scalars = value if isinstance(value, dict) else {"": value}
            for key, number in scalars.items():
                if isinstance(number, int | float):
                    tags["/".join(part for part in (kind, name, key) if part)] = number
        self._logger.log(step, tags)

    def close(self, finished: bool = True) -> None:
        """Closes the file and the logger; ignores errors.

        Args:
            finished: False if the run is to be resumed.
        """
        if not self._writes:
            return
        with suppress(OSError):
            self._file.close()
        self._logger.close(finished)


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
