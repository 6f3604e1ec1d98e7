"""Four CPU devices and strict flags, set before any test imports jax.

Programs are compiled without optimisation: tests spend their time compiling. With
JAX_PLATFORMS set, tests of losses and models run on another device.
"""

import os

os.environ["JAX_PLATFORMS"] = os.environ.get("JAX_PLATFORMS") or "cpu"
if os.environ["JAX_PLATFORMS"] == "cpu":
    os.environ["XLA_FLAGS"] = (
        "--xla_force_host_platform_device_count=4 "
        "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    )

from collections.abc import Iterator
from pathlib import Path

# Programs are compiled once for all workers, processes and runs of the tests.
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(__file__).resolve().parents[1] / "build" / "compiled_for_tests"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")

import jax
import pytest
from hypothesis import HealthCheck, settings

from pwiser_jax.host import free_programs

jax.config.update("jax_numpy_rank_promotion", "raise")

# Always the same examples, and nothing that depends on time.
EXAMPLES = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile(
    "tests", max_examples=20, derandomize=True, database=None, **EXAMPLES
)
settings.register_profile("explore", max_examples=500, **EXAMPLES)
settings.load_profile("tests")

REAL_ROWS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True, scope="module")
def programs_are_freed() -> Iterator[None]:
    """After a file of tests, if the process holds many compiled programs."""
    yield
    free_programs()


@pytest.fixture(scope="session")
def four_devices() -> None:
    """On CPUs there are always four: a test that finds fewer there is to fail."""
    if jax.default_backend() != "cpu" and jax.local_device_count() < 4:
        pytest.skip("needs four devices")


@pytest.fixture(scope="session")
def real_rows() -> Path:
    """The folder of real rows beside the checkout; tests skip where it is absent."""
    if not REAL_ROWS.is_dir():
        pytest.skip("no folder of real rows beside this checkout")
    return REAL_ROWS
