"""Command lines of the benchmarks and of the demo."""

import re
from collections.abc import Callable, Sequence
from datetime import date
from pathlib import Path

import pytest

from experiments import demo
from experiments.bench import (
    accelerator as bench_accelerator,
)
from experiments.bench import (
    evaluation as bench_evaluation,
)
from experiments.bench import (
    first_result as bench_first,
)
from experiments.bench import (
    losses as bench_losses,
)
from experiments.bench import (
    many_ids as bench_many_ids,
)
from experiments.bench import (
    prepare as bench_prepare,
)
from experiments.bench import (
    programs as bench_programs,
)
from experiments.bench import (
    reading as bench_reading,
)
from experiments.bench import (
    training as bench_training,
)
from experiments.bench.tables import origin, spread

Main = Callable[[Sequence[str]], int]


def test_a_spread_is_the_median_and_minimum_to_maximum() -> None:
    assert spread([2000.0, 1000.0, 4000.0], 1) == "2,000.0 (1,000.0 to 4,000.0)"
    assert spread([0.5, 0.25], 0, "%") == "38% (25% to 50%)"
    assert spread([2.0]) == "2.00"
    assert spread([]) == "-"


def test_a_table_names_its_command_date_and_machine() -> None:
    text = origin("reading --work DIR", rounds=3)
    assert text.startswith("Made by `python -m experiments.bench.reading --work DIR`")
    for part in (str(date.today()), "3 rounds", "CPU cores", "load average"):
        assert part in text


@pytest.mark.parametrize(
    ("main", "wrong", "word"),
    [
        (bench_training.main, "--rounds=0", "rounds"),
        (bench_training.main, "--dims=[16, 0]", "dims"),
        (bench_training.main, "--large_models=[mmo]", "mmo"),
        (bench_training.main, "--parts=[loss]", "loss"),
        (bench_evaluation.main, "--parts=[measure]", "measure"),
        (bench_first.main, "--rounds=0", "rounds"),
        (bench_first.main, "--models=[aitm]", "aitm"),
        (bench_many_ids.main, "--rows_per_user=0", "rows_per_user"),
        (bench_many_ids.main, "--budget_rows=[9999]", "10000"),
        (bench_prepare.main, "--repeats=0", "repeats"),
        (bench_reading.main, "--rows=[0, 10]", "rows"),
        (bench_losses.main, "--sizes=[-1]", "sizes"),
        (bench_programs.main, "--sizes=[0]", "sizes"),
        (bench_accelerator.main, "--sizes=[0]", "sizes"),
        (bench_accelerator.main, "--models=[mmo]", "mmo"),
        (demo.main, "--rows=9", "rows"),
    ],
)
def test_a_wrong_option_is_one_sentence_and_writes_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    main: Main,
    wrong: str,
    word: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    modules = (bench_losses, bench_programs, bench_accelerator, demo)
    without_work = [module.main for module in modules]
    work = [] if main in without_work else ["--work=work"]
    with pytest.raises(SystemExit) as stopped:
        main([*work, wrong])
    assert stopped.value.code == 2
    message = capsys.readouterr().err
    assert word in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_benchmarks_leave_origin_and_files_to_one_module() -> None:
    for path in Path(bench_losses.__file__).parent.rglob("*.py"):
        if path.name != "tables.py":
            text = path.read_text()
            assert "date.today" not in text, path
            assert not re.search(r"import .*\bwrite_csv\b", text), path
