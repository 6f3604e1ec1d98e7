"""Decides what is due after each training step."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Schedule:
    """The steps of log lines, checkpoints, ends of epochs and the stop.

    Steps count over all epochs: step s is the s-th step of the run, from 1 on.

    Args:
        epoch_steps: steps of an epoch.
        log_every: steps between two lines of metrics.
        checkpoint_every: steps between two checkpoints.
        most_steps_lost: upper bound on steps lost by a kill; see `must_wait`.
        start: the step that this process started from.
        stop_at: the step after which this process stops; None: at the end of the run.
    """

    epoch_steps: int
    log_every: int
    checkpoint_every: int
    most_steps_lost: int
    start: int = 0
    stop_at: int | None = None

    def logs(self, step: int) -> bool:
        """Whether a line of metrics is written after `step`."""
        return step % self.log_every == 0

    def saves(self, step: int) -> bool:
        """Whether a checkpoint begins after `step`, if none is being written."""
        return step % self.checkpoint_every == 0

    def ends_epoch(self, step: int) -> bool:
        """Whether `step` is the last of an epoch: validation, then a checkpoint."""
        return step % self.epoch_steps == 0

    def stops(self, step: int) -> bool:
        """Whether this process stops after `step`."""
        return step == self.stop_at

    def must_wait(self, step: int, saved: int) -> bool:
        """Whether the loop waits after `step` for the checkpoint being written.

        Args:
            step: the step just taken.
            saved: the step of the last checkpoint on disk.
        """
        return step - saved >= self.most_steps_lost

    def next_stop(self, step: int) -> int:
        """The next step after `step` with something due besides a log line.

        A call of the compiled program takes several steps, but none beyond this one.
        """
        every, most_lost = self.checkpoint_every, self.most_steps_lost
        stops = [
            step + self.epoch_steps - step % self.epoch_steps,
            step + every - step % every,
            # A checkpoint begun at a multiple of `every` may have to be waited for.
            step + every - (step - most_lost) % every,
            self.start + most_lost,
            *([] if self.stop_at is None else [self.stop_at]),
        ]
        return min(stop for stop in stops if stop > step)

    def due(self, step: int) -> bool:
        """Whether anything besides a log line is due after `step`."""
        return self.next_stop(step - 1) == step
