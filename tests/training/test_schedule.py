"""The steps at which logs, checkpoints and ends of epochs are due."""

import pytest

from pwiser_jax.training.schedule import Schedule


def schedule(**changes: int) -> Schedule:
    sizes = {"epoch_steps": 10, "log_every": 3, "checkpoint_every": 4}
    return Schedule(**(sizes | {"most_steps_lost": 100} | changes))


def test_every_kind_is_due_at_its_own_steps() -> None:
    each = schedule(stop_at=13)
    steps = range(1, 25)
    assert [s for s in steps if each.logs(s)] == list(range(3, 25, 3))
    assert [s for s in steps if each.saves(s)] == [4, 8, 12, 16, 20, 24]
    assert [s for s in steps if each.ends_epoch(s)] == [10, 20]
    assert [s for s in steps if each.stops(s)] == [13]
    # Log lines are written in the middle of calls; for all else a call ends.
    assert [s for s in steps if each.due(s)] == [4, 8, 10, 12, 13, 16, 20, 24]


@pytest.mark.parametrize("start", [0, 3, 7])
@pytest.mark.parametrize("lost", [1, 5, 6])
def test_a_call_ends_before_a_kill_could_lose_too_much(start: int, lost: int) -> None:
    every = max(1, lost // 2)
    each = schedule(checkpoint_every=every, most_steps_lost=lost, start=start)
    for saved in [start, *range(start - start % every + every, start + 40, every)]:
        # The step from which the loop must wait for a checkpoint after `saved`.
        assert each.due(saved + lost)
        assert each.must_wait(saved + lost, saved)
        assert not each.must_wait(saved + lost - 1, saved)


def test_the_next_stop_is_the_next_step_with_something_due() -> None:
    each = schedule(start=2, most_steps_lost=7, stop_at=17)
    for step in range(2, 40):
        stop = each.next_stop(step)
        assert each.due(stop)
        assert not any(each.due(between) for between in range(step + 1, stop))
