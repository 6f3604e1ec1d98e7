"""The wheel: its contents, and a loss in a new environment."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"flax", "optax", "orbax-checkpoint", "polars", "matplotlib", "numba", "rich"}
ONE_LOSS = """
import sys
import jax.numpy as jnp
import pwiser_jax
from pwiser_jax.losses import pwiser_loss
from pwiser_jax.metrics import auc

scores, clicks = jnp.array([0.3, 0.2, 0.1]), jnp.array([1, 1, 0])
loss = pwiser_loss(scores, clicks, jnp.array([1, 0, 0]), margins=(0.2, 0.3))
print(f"{loss:.4f}", pwiser_jax.__file__)
"""


def run(*command: object, cwd: Path, check: bool = True) -> subprocess.CompletedProcess:
    return subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        check=check,
        capture_output=True,
        text=True,
    )


@pytest.mark.long
def test_the_wheel_holds_the_package_and_a_loss_needs_four_packages(tmp_path: Path):
    run(
        sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", tmp_path, ".", cwd=ROOT
    )
    (wheel,) = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0].split("-")[0] for name in names} == {"pwiser_jax"}
    assert "pwiser_jax/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)

    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", wheel, cwd=tmp_path)
    said = run(python, "-W", "error", "-c", ONE_LOSS, cwd=tmp_path).stdout
    # (0.2 - 0.1)^2 + (0.3 - 0.2)^2
    assert said.startswith("0.0200 ")
    assert str(tmp_path) in said
    listed = run(python, "-m", "pip", "freeze", cwd=tmp_path).stdout.lower()
    assert not HEAVY & {line.split("==")[0] for line in listed.split()}
    site = next((tmp_path / "env" / "lib").glob("python*/site-packages"))
    size = sum(file.stat().st_size for file in site.rglob("*") if file.is_file())
    print(f"site-packages of the light install: {size / 1e6:.0f} MB")


@pytest.mark.long
def test_a_command_names_the_extra_that_it_needs(tmp_path: Path):
    run(sys.executable, "-m", "venv", tmp_path / "env", cwd=tmp_path)
    python = tmp_path / "env" / "bin" / "python"
    run(python, "-m", "pip", "install", "--quiet", ROOT, cwd=tmp_path)
    for command in ("train", "--help"), ("prepare", "synthetic"), ("--help",):
        done = run(
            tmp_path / "env" / "bin" / "pwiser", *command, cwd=tmp_path, check=False
        )
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1
        assert "pip install 'pwiser-jax[train]'" in done.stderr
