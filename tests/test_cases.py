"""The small cases beside the checkout, compared with what they say is right.

Each prints what a user would see. Two read what `evaluate` prints as JSON, so that
`--json` is added to their command.
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CASES = ROOT.parent / "shared" / "cases"
PYTHON = """\
#!/bin/sh
case " $* " in *" pwiser_jax evaluate "*) exec {python} "$@" --json;; esac
exec {python} "$@"
"""


def leaks(out: str) -> None:
    sections = dict(re.findall(r"## (\w+) \w+\n((?:.*\n)*?)(?=##|d_|\Z)", out))
    for name in ("ctcvr_label", "neg"):
        assert "is a copy of the label" in sections[name]
    for name in ("paid", "order_id", "dwell"):
        assert "alone predicts the label" in sections[name]


def single_classes(out: str) -> None:
    assert (
        len(re.findall(r"rc=2\n  err: pwiser: error: the \w+ split has no", out)) == 2
    )
    assert "test evaluate rc 2" not in out
    # Validation clicks that all convert do not end a run of any space.
    measured = re.findall(r"test evaluate rc (\d)", out)
    assert measured == ["0"] * 5
    assert "'reason': " in out


def inputs(out: str) -> None:
    differences = re.findall(r"max difference to the whole file: (\S+)", out)
    assert len(differences) == 7
    assert all(float(text) <= 1e-6 for text in differences)
    assert "gz True" in out
    assert out.count("shape: (0, 3)") == 2
    assert re.search(r"moved +rc 2 .*prepare has encoded", out)
    assert out.count(": rc 2") == 2
    assert "output .csv: rc 0 b'ctr,'" in out


def nulls(out: str) -> None:
    codes = re.findall(r"rc=(\d)", out)
    assert len(codes) == 23
    assert set(codes) <= {"0", "2"}


def types(out: str) -> None:
    assert re.findall(r"same: (\w+)", out) == ["True"] * 8


def prepared_again(out: str) -> None:
    assert re.search(r"as trained: CTR AUC 0\.\d+ rc 0", out)
    assert "other rows than" in out
    assert out.count("rc 2 pwiser: error: ") == 4


def two_at_once(out: str) -> None:
    assert out.count("own folders: rc 0") == 2
    assert "equal results: True" in out
    assert sorted(re.findall(r"one folder: rc (\d)", out)) == ["0", "2"]
    assert "result equal to a run alone: True" in out
    assert "steps repeated: 0" in out


def shards(out: str) -> None:
    assert re.search(r"rc=0\n  out: 300 rows", out)
    assert re.search(r"rc=2\n  err: .*(prepare has encoded|exists)", out)


def silent(out: str) -> None:
    assert "lambda 0.5, every margin null: rc 0" not in out


def brackets(out: str) -> None:
    assert re.findall(r"source '.*' +rc (\d)", out) == ["0"] * 6
    assert "train: 210 rows" in out
    assert re.findall(r"prepare rc (\d)", out) == ["0"] * 3
    assert re.findall(r"train rc (\d)", out) == ["0"] * 6
    assert re.findall(r"evaluate rc (\d)", out) == ["0"] * 3
    assert re.findall(r"predict output '.*': rc (\d)", out) == ["0"] * 2


CHECKS: dict[str, Callable[[str], None]] = {
    "02_label_leaks": leaks,
    "08_single_class": single_classes,
    "14_predict_inputs": inputs,
    "15_nulls_in_config": nulls,
    "26_dtype_change_between_formats": types,
    "32_prepared_again_then_evaluate": prepared_again,
    "33_two_at_once": two_at_once,
    "34_shard_read_as_raw": shards,
    "39_silent_options": silent,
    "42_brackets_in_paths": brackets,
}


@pytest.mark.long
@pytest.mark.parametrize("name", CHECKS)
def test_a_case_ends_as_it_should(name: str, tmp_path: Path) -> None:
    case = CASES / name / "case.py"
    if not case.is_file():
        pytest.skip("no folder of cases beside this checkout")
    python = tmp_path / "python"
    python.write_text(PYTHON.format(python=sys.executable))
    python.chmod(0o755)
    environment = {
        **{key: text for key, text in os.environ.items() if key != "XLA_FLAGS"},
        "REPO": str(ROOT),
        "PY": str(python),
        "PYTHONPATH": str(CASES),
    }
    ended = subprocess.run(
        [sys.executable, str(case)],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    if name != "39_silent_options":  # it reads the metrics of a run that is refused
        assert ended.returncode == 0, ended.stderr
    assert "TRACEBACK" not in ended.stdout
    assert "Traceback" not in ended.stdout
    CHECKS[name](ended.stdout)
