"""What compiled programs launch: the count, and ceilings of our programs."""

import jax
import pytest

from experiments.bench.programs import CPU, compiled, loss_program, step_program
from experiments.bench.training_cell import Cell
from experiments.lib.kernels import Work, work

# A loop of 3 rounds around a fusion and an addition; then a choice between a copy and
# a sort of 4 keys.
PROGRAM = """HloModule jit_f, is_scheduled=true

%fused (p: f32[4]) -> f32[4] {
  %p = f32[4]{0} parameter(0)
  %s = f32[4]{0} scatter(%p, %p, %p), to_apply=%add
  ROOT %n = f32[4]{0} negate(%s)
}

%body (b: (s32[], f32[4])) -> (s32[], f32[4]) {
  %b = (s32[], f32[4]{0}) parameter(0)
  %i = s32[] get-tuple-element(%b), index=0
  %one = s32[] constant(1)
  %next = s32[] add(%i, %one)
  %x = f32[4]{0} get-tuple-element(%b), index=1
  %f = f32[4]{0} fusion(%x), kind=kLoop, calls=%fused, metadata={op_name="a(b)"}
  ROOT %t = (s32[], f32[4]{0}) tuple(%next, %f)
}

%condition (c: (s32[], f32[4])) -> pred[] {
  %c = (s32[], f32[4]{0}) parameter(0)
  %k = s32[] get-tuple-element(%c), index=0
  %three = s32[] constant(3)
  ROOT %less = pred[] compare(%k, %three), direction=LT
}

%copied (d: f32[4]) -> f32[4] {
  %d = f32[4]{0} parameter(0)
  ROOT %copy = f32[4]{0} copy(%d)
}

%sorted (e: f32[4]) -> f32[4] {
  %e = f32[4]{0} parameter(0)
  ROOT %sort = f32[4]{0} sort(%e), dimensions={0}, to_apply=%less_than
}

ENTRY %main (a: (s32[], f32[4]), which: s32[]) -> f32[4] {
  %a = (s32[], f32[4]{0}) parameter(0)
  %which = s32[] parameter(1)
  %loop = (s32[], /*index=1*/f32[4]{0}) while(%a), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  %y = f32[4]{0} get-tuple-element(%loop), index=1
  ROOT %z = f32[4]{0} conditional(%which, %y, %y), \
branch_computations={%copied, %sorted}
}
"""


def test_loops_count_as_often_as_they_run_and_one_branch_of_a_choice():
    # A round adds two numbers of 4 bytes, and reads and writes 4 of them.
    rounds = 3 * (3 * 4 + 2 * 16)
    assert work(PROGRAM) == Work(
        kernels=3 * 2 + 1, bytes=rounds + 2 * 16, loops=1, sorts=[], scatters=3
    )
    assert work(PROGRAM, -1) == Work(
        kernels=3 * 2 + 1, bytes=rounds + 2 * 16, loops=1, sorts=[4], scatters=3
    )
    # In a loop of unknown length, the test and one round.
    unknown = PROGRAM.replace('"known_trip_count"', '"another"')
    assert work(unknown).kernels == 2 + 1 + 1


# Ceilings are a little above the larger of the counts with jax 0.10.2 and 0.12.


def test_kernels_of_the_loss():
    rows = 4096
    program = compiled(loss_program("sorted", rows), jax.devices("cpu")[0], CPU)
    few, many = (work(program.as_text(), pack) for pack in (0, -1))
    assert 0 < few.kernels <= 260
    assert 0 < many.kernels <= 235
    # Nothing but the conversions is sorted, once, and few of them in a small pack.
    assert (few.sorts, many.sorts) == ([rows // 8], [rows])
    assert 0 < few.bytes <= 90 * 10 * rows
    assert 0 < many.bytes <= 160 * 10 * rows


@pytest.mark.parametrize(
    ("model", "kernels"),
    [
        ("shared_bottom", 1110),
        ("mmoe", 1165),
        pytest.param("single_task", 1600, marks=pytest.mark.long),
        pytest.param("ple", 2180, marks=pytest.mark.long),
    ],
)
def test_kernels_of_a_step(model, kernels):
    program = step_program(Cell(model=model, batch=16, dim=4))
    cpu = jax.devices("cpu")[0]
    found = work(compiled(program, cpu, CPU, donate=True).as_text())
    assert 0 < found.kernels <= kernels
