"""Where a run's numbers go: metrics.jsonl and TensorBoard event files."""

import json
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from pwiser_jax.training.devices import processes

TIMING = "timing"


class MetricsWriter:
    """Appends lines to metrics.jsonl and scalars to event files.

    Lines of the kind "timing" hold what depends on the machine and its moment; all
    other lines are the same for every run of one configuration.

    A run that goes on from step `start` first cuts off the lines after it: they will be
    written again, so the file ends up as if nothing had happened. Of several processes
    the first alone writes.
    """

    def __init__(self, run: Path, start: int) -> None:
        self._writes = processes.first()
        if not self._writes:
            return
        path = run / "metrics.jsonl"
        kept = read_metrics(run, upto=start, timing=True)
        with path.open("w", encoding="utf-8") as file:
            file.writelines(json.dumps(line) + "\n" for line in kept)
        self._file = path.open("a", encoding="utf-8")
        self._board = SummaryWriter(
            str(run / "tensorboard"), purge_step=start + 1 if start else None
        )

    def write(self, kind: str, step: int, values: dict[str, Any]) -> None:
        """One line, {"kind", "step", **values}; event files join names with "/"."""
        if not self._writes:
            return
        line = {"kind": kind, "step": step, **values}
        self._file.write(json.dumps(line, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in values.items():
            scalars = value if isinstance(value, dict) else {"": value}
            for key, number in scalars.items():
                tag = "/".join(part for part in (kind, name, key) if part)
                if number is not None:
                    self._board.add_scalar(tag, number, step)

    def close(self) -> None:
        if not self._writes:
            return
        self._file.close()
        self._board.close()


def read_metrics(
    run: Path, upto: int | None = None, *, timing: bool = False
) -> list[dict[str, Any]]:
    """A run's lines of metrics.jsonl, to step `upto`; a line cut off is left out.

    Lines of the kind "timing" are among them only if asked for.
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
