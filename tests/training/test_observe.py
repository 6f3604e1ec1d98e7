"""Diagnostics of a step, against their definitions."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from pwiser_jax.models.gates import softmax_gate
from pwiser_jax.training import observe
from pwiser_jax.training.run.record import numbers


def sown(gate: np.ndarray) -> Any:
    """What a model with two gates sows."""

    class Level(nn.Module):
        @nn.compact
        def __call__(self) -> None:
            softmax_gate(self, "ctr", jnp.asarray(gate))
            softmax_gate(self, "shared", jnp.asarray(gate[:, ::-1]))

    _, found = Level().apply({}, mutable=["intermediates"])
    return {"level_0": found["intermediates"]}


def test_gate_entropy_and_dead_experts() -> None:
    # Row by row: all alike, one expert alone, and padding.
    gate = np.float32([[0, 0, 0, 0], [9e9, 0, 0, 0], [np.nan, 0, 0, 0]])
    mask = np.array([True, True, False])
    found = observe.gates(sown(gate), mask, None)
    assert set(found) == {
        f"gate/{what}/level_0/{gate}"
        for what in ("entropy", "dead")
        for gate in ("ctr", "shared")
    }
    np.testing.assert_allclose(found["gate/entropy/level_0/ctr"], np.log(4) / 2)
    assert int(found["gate/dead/level_0/ctr"]) == 0
    found = observe.gates(sown(gate[1:]), mask[1:], None)
    np.testing.assert_allclose(found["gate/entropy/level_0/shared"], 0)
    assert int(found["gate/dead/level_0/shared"]) == 3


def test_dead_is_below_a_hundredth_of_an_equal_share() -> None:
    for share, dead in ((0.0049, 1), (0.0051, 0)):
        weights = np.log(np.float32([[share, 1 - share]]))
        found = observe.gates(sown(weights), np.array([True]), None)
        assert int(found["gate/dead/level_0/ctr"]) == dead


def test_devices_observe_the_whole_batch() -> None:
    gate = np.random.default_rng(0).normal(size=(16, 3)).astype(np.float32)
    mask = np.arange(16) < 13
    whole = observe.gates(sown(gate), mask, None)

    def parts(gate: Any, mask: Any) -> Any:
        weights = {"mix_ctr": (jax.nn.softmax(gate),)}
        return observe.gates(weights, mask, "devices")

    got = jax.pmap(parts, "devices")(gate.reshape(4, 4, 3), mask.reshape(4, 4))
    for name, values in got.items():
        expected = whole[name.replace("/ctr", "/level_0/ctr")]
        np.testing.assert_allclose(values, np.full(4, expected), rtol=1e-6)


def test_nothing_is_observed_on_other_steps() -> None:
    def step(number: Any) -> Any:
        return observe.when(number % 3 == 0, lambda: observe.norms([number], {}, 1.0))

    program = jax.jit(step)
    norms = [float(program(jnp.float32(n))["norm/gradient"]) for n in range(7)]
    assert norms == [0, 0, 0, 3, 0, 0, 6]


def test_numbers_are_fit_for_json() -> None:
    values = {"active/x": np.uint32(4_000_000_000), "norm/x": np.float32(np.inf)}
    assert numbers(values) == {"active/x": 4_000_000_000, "norm/x": None}
