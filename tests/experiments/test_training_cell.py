"""Cells of the training benchmark: one run and a sweep of runs take the same steps."""

import numpy as np

from experiments.bench.training_cell import Cell, compiled


def test_runs_of_a_sweep_have_the_losses_of_one_run():
    losses = []
    for runs in (1, 3):
        changes = '{"dropout": 0.0}'
        parts = compiled(Cell(dim=4, batch=64, runs=runs, steps=2, changes=changes))
        state, of_calls = parts.place(parts.draw(0)), []
        for batch in parts.batches[:2]:
            state, metrics = parts.program(state, *batch, *parts.rest)
            of_calls.append(np.asarray(metrics[0]["loss"]))
        losses.append(np.concatenate(of_calls, axis=-1))
        assert parts.work["flops"] > 0
    one, many = losses
    assert many.shape[-1] == 4
    assert len(set(one.ravel())) > 1
    for of_run in many:
        np.testing.assert_allclose(of_run, one.reshape(-1, 4)[0], rtol=1e-3)
