"""How many programs a command compiles, and how many of them it finds again."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from pwiser_jax.cli import main

SMALL = [
    "--model.name=shared_bottom",
    "--model.embedding_dim=4",
    "--model.bottom=[8]",
    "--model.tower=[4]",
    "--data.batch_size=1024",
    "--train.epochs=1",
]
# Runs a command and prints the names of the programs that it compiles and finds.
COUNTED = """
import collections, json, logging, sys
import jax
from pwiser_jax.cli import main

class Names(logging.Handler):
    def emit(self, record):
        words = record.getMessage()
        for kind, start in (("compiled", "Compiling "), ("hits", "Persistent compil")):
            if words.startswith(start):
                seen[kind].append(words)

seen = {"compiled": [], "hits": []}
for name in ("jax._src.interpreters.pxla", "jax._src.compiler"):
    logger = logging.getLogger(name)
    logger.addHandler(Names())
    logger.setLevel(logging.DEBUG)
    logger.propagate = False
code = main(sys.argv[1:])
print("SEEN" + json.dumps(seen))
sys.exit(code)
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "funnel"
    assert main(["prepare", "synthetic", "--rows=8000", f"--output={folder}"]) == 0
    return folder


def counts(cache: Path, *command: str) -> tuple[int, int]:
    """The programs that a command compiled, and those that it read from the cache."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("JAX_")}
    environment |= {"PWISER_COMPILATION_CACHE": str(cache), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, *command],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (found,) = re.findall(r"^SEEN(.*)$", done.stdout, re.MULTILINE)
    seen = json.loads(found)
    hits = len([line for line in seen["hits"] if "cache hit" in line])
    return len(seen["compiled"]) - hits, hits


@pytest.mark.long
def test_a_run_compiles_three_programs_and_nothing_again(data: Path, tmp_path: Path):
    cache, run = tmp_path / "compiled", tmp_path / "run"
    train = ["train", f"--data.path={data}", *SMALL]
    # Initial state, steps, evaluation; the evaluation at its end compiles nothing.
    assert counts(cache, *train, f"--output={run}") == (3, 0)
    assert counts(cache, *train, f"--output={tmp_path / 'again'}") == (0, 3)
    # Evaluation and prediction run the program that training has evaluated with.
    assert counts(cache, "evaluate", f"--run={run}") == (0, 1)
    table = [f"--input={data}", f"--output={tmp_path / 'predictions.csv'}"]
    assert counts(cache, "predict", f"--run={run}", *table) == (0, 1)
    # Export moves arrays by small programs; the scorer itself is lowered only.
    export = ["export", f"--run={run}", f"--output={tmp_path / 'scorer'}"]
    compiled, hits = counts(cache, *export)
    assert counts(cache, *export, "--overwrite=true") == (1, compiled + hits - 1)


@pytest.mark.long
def test_a_sweep_compiles_four_programs_and_nothing_again(data: Path, tmp_path: Path):
    cache = tmp_path / "compiled"
    over = ["--over", "loss.lambdas=0,0.1", "--loss.ranking=pwiser", "--seeds=2"]
    sweep = ["sweep", f"--data.path={data}", *SMALL, *over]
    # Those of a run, for all runs together, and the evaluation of one run alone.
    assert counts(cache, *sweep, f"--output={tmp_path / 'runs'}") == (4, 0)
    assert counts(cache, *sweep, f"--output={tmp_path / 'again'}") == (0, 4)
