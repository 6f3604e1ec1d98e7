"""The benchmark of clusters: what it counts, and what it makes of it."""

from pathlib import Path

import polars as pl
import pytest

from experiments.bench import cluster
from experiments.bench.exchange import exchanged

PROGRAM = """
  %a = (f32[8]{0}, f32[4,2]{1,0}) all-reduce(%x, %y), op_name="jit(f)/body/(psum:psum)"
  %b = f32[100]{0} all-gather(%x), op_name="jit(f)/while/body/jvp()/all_gather"
  %c = bf16[25]{0} reduce-scatter(%x), op_name="jit(f)/while/body/transpose(jvp())/rs"
  %d = f32[6]{0} all-reduce-start(%x), op_name="jit(f)/body/jvp(M)/M.f/norm_0/psum"
  %e = f32[101,3]{1,0} all-reduce(%x), op_name="jit(f)/while/body/psum"
  %f = f32[9]{0} all-reduce(%x), op_name="jit(f)/body/cond/branch_1_fun/psum"
  %g = f32[9]{0} add(%x, %x), op_name="jit(f)/while/body/psum"
"""


def test_collectives_are_counted_by_what_they_serve() -> None:
    sums = exchanged(PROGRAM, rows=100, devices=4)
    assert sums == {
        "gradient": {"reduce": 64, "gather": 0, "count": 1},
        "statistics": {"reduce": 24, "gather": 0, "count": 1},
        "losses": {"reduce": 0, "gather": 600, "count": 2},
        "tables": {"reduce": 1212, "gather": 0, "count": 1},
    }
    assert exchanged(PROGRAM, rows=0, devices=4)["tables"]["count"] == 0


def test_what_grows_with_the_devices_is_extrapolated() -> None:
    lines = [
        {"model": "mmoe", "sharded": False, "devices": devices, "kind": kind}
        | {"reduce": 1e6 if kind == "gradient" else 0.0, "count": 1.0}
        | {"gather": 1000.0 * devices if kind == "losses" else 0.0}
        for devices in (2, 4)
        for kind in cluster.KINDS
    ]
    at = cluster.exchange_at(lines, "mmoe", False, 64)
    assert at["gradient"]["reduce"] == 1e6
    assert at["losses"]["gather"] == 64_000
    assert cluster.sent(at["gradient"], 64) == 2e6 * 63 / 64
    table = cluster.estimate(lines)
    assert table["accelerators"].to_list() == ["8", "64", "512"] * 2
    assert table["gradient [ms]"][1] == "0.07"  # 2 MB over 50 GB/s, and 30 us


def test_the_efficiency_of_a_study_is_against_the_first_line() -> None:
    line = {"runs": 8, "start": 5.0, "part_seconds": 10.0, "in_parts": 80.0}
    table = cluster.study_table(
        [
            line | {"workers": 1, "seconds": 100.0},
            line | {"workers": 2, "seconds": 62.5},
        ]
    )
    assert table["runs an hour"].to_list() == ["288", "461"]
    assert table["efficiency"].to_list() == ["100%", "80%"]
    assert table["workers' time in parts"].to_list() == ["80%", "64%"]


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
def test_it_measures_and_writes_its_tables(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="needs Ray: pip install '.[cluster]'")
    options = ["--rows=6_000", "--workers=[1,2]", "--seeds=1", "--part=2"]
    options += ["--processes=[1,2]", "--models=[shared_bottom]", "--batch=64"]
    places = [f"--work={tmp_path / 'work'}", f"--output={tmp_path / 'out'}"]
    assert cluster.main([*places, *options]) == 0
    text = (tmp_path / "out.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        f"## {title}" for title in cluster.TITLES.values()
    ]
    command = "experiments.bench.cluster --work DIR --models [shared_bottom]`"
    assert f"Made by `python -m {command} on 2" in text
    table = pl.read_csv(tmp_path / "out.csv")
    assert table.filter(part="study")["runs"].to_list() == [4, 4]
    assert all(step > 0 for step in table.filter(part="run")["step"])
    gradient = table.filter(kind="gradient", sharded=False)["reduce"].to_list()
    assert gradient[0] == gradient[1] > 1e6
