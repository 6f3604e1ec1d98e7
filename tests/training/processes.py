"""Starts processes with a number of CPU devices each."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
BOUND = 120  # seconds; what ends in a few on an idle machine


def free_port() -> int:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        return bound.getsockname()[1]


def start(devices: int, *command: str) -> subprocess.Popen[str]:
    flags = os.environ["XLA_FLAGS"].split()
    flags = [flag for flag in flags if "device_count" not in flag]
    flags.append(f"--xla_force_host_platform_device_count={devices}")
    environment = {**os.environ, "XLA_FLAGS": " ".join(flags), "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Its exit code and what it said on stderr, jax's own words left out."""
    try:
        _, errors = process.communicate(timeout=BOUND)
    finally:
        process.kill()
    lines = [line for line in errors.splitlines() if line.startswith("pwiser:")]
    return process.returncode, "\n".join(lines) or errors[-2000:]
