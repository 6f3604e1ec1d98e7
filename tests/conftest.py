"""Four CPU devices and strict flags, set before any test imports jax.

Programs are compiled without optimisation: tests spend their time compiling.
"""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    "--xla_force_host_platform_device_count=4 "
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
)

from pathlib import Path

import jax
import pytest

jax.config.update("jax_numpy_rank_promotion", "raise")

REAL_ROWS = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def real_rows() -> Path:
    """The folder of real rows beside the checkout; tests skip where it is absent."""
    if not REAL_ROWS.is_dir():
        pytest.skip("no folder of real rows beside this checkout")
    return REAL_ROWS
