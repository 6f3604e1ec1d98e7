"""Measurements in turns, and the count of a program's products."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from experiments.bench.training import split_groups, split_table
from experiments.bench.training_cell import Cell
from experiments.bench.turns import Group, Measured, Measurements, chunks
from experiments.lib.measure import product_operations

SLOW, OTHER, FAST = (Cell(engine="torch", allocator=name) for name in "abc")
PRODUCT = Cell(engine="product")


def test_a_ratio_is_of_rounds_and_of_the_best_of_some():
    # The machine is twice as slow in the second round and four times in the third.
    group = Group(
        {
            SLOW: Measured([3.0, 6.0, 12.0]),
            OTHER: Measured([9.0, 9.0, 9.0]),
            FAST: Measured([1.0, 2.0, 4.0], flops=6.0),
            PRODUCT: Measured([1.0, 2.0, 4.0], flops=10.0),
        }
    )
    assert group.ratios([OTHER, SLOW], FAST) == [3, 3, 3]
    assert group.seconds(OTHER, SLOW) == 6
    assert group.ratios([FAST], SLOW) == pytest.approx([1 / 3] * 3)
    assert group.shares("flops", FAST, PRODUCT) == pytest.approx([0.6] * 3)


def test_the_parts_of_a_step_and_the_rest_are_all_of_it():
    name, (product, cell, no_norm, no_dropout, tables) = next(split_groups())
    group = Group(
        {
            product: Measured([1.0, 1.0], flops=100.0),
            cell: Measured([2.0, 4.0], flops=50.0),
            no_norm: Measured([1.6, 3.2]),
            no_dropout: Measured([1.8, 3.6]),
            tables: Measured([0.2, 0.4]),
        }
    )
    (line,) = split_table({name: group}).rows()
    assert line[2:] == (
        "19% (12% to 25%)",
        "20% (20% to 20%)",
        "10% (10% to 10%)",
        "10% (10% to 10%)",
        "41% (35% to 48%)",
    )


def test_what_died_has_no_figure():
    group = Group({SLOW: Measured([]), FAST: Measured([1.0])})
    assert group.ratios([SLOW], FAST) == []
    assert group.seconds(SLOW) is None
    assert group.seconds(SLOW, FAST) == 1
    assert group.shares("flops", SLOW, PRODUCT) == []


def test_a_group_is_measured_once_and_read_again(tmp_path: Path, monkeypatch):
    broken = Cell(model="no such model")
    Measurements(tmp_path, 2).make("one", [PRODUCT, broken])
    again = Measurements(tmp_path, 2)
    measured = again.groups["one"]
    assert len(measured[PRODUCT].seconds) == 2
    assert measured[PRODUCT].flops == 2 * 2048**3
    assert measured[broken] == Measured([])

    def never(*_: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr("experiments.bench.turns.in_turns", never)
    again.make("one", [PRODUCT, broken])
    with pytest.raises(AssertionError, match="measured again"):
        again.make("another", [PRODUCT])


def test_chunks_hold_what_memory_holds(monkeypatch):
    cells = [SLOW, OTHER, FAST]
    monkeypatch.setattr("experiments.bench.turns.MOST_MEMORY", 0.0)
    assert list(chunks(cells)) == [[SLOW], [OTHER], [FAST]]
    monkeypatch.setattr("experiments.bench.turns.MOST_MEMORY", 1e6)
    assert list(chunks(cells)) == [cells]


def test_products_are_counted_also_in_loops_and_gradients():
    def loss(a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.sum(jax.lax.fori_loop(0, 9, lambda _, x: jnp.tanh(x @ b), a))

    a, b = jnp.ones((4, 3)), jnp.ones((3, 3))
    one = 2 * 4 * 3 * 3
    traced = jax.make_jaxpr(jax.jit(loss))(a, b)
    assert product_operations(traced.jaxpr) == one
    batched = jax.make_jaxpr(jnp.matmul)(jnp.ones((5, 4, 3)), jnp.ones((5, 3, 2)))
    assert product_operations(batched.jaxpr) == 5 * 2 * 4 * 3 * 2
    gradient = jax.make_jaxpr(jax.grad(lambda a, b: jnp.sum((a @ b) ** 2)))(a, b)
    assert product_operations(gradient.jaxpr) == 2 * one
