"""The benchmark of accelerators runs on a CPU, and its table names every claim."""

from pathlib import Path

import polars as pl

from experiments.bench.accelerator import Options, goals, main, step_groups
from experiments.bench.turns import Group, Measured


def test_the_loss_is_measured_at_all_shares(tmp_path: Path):
    sizes = ["--parts=[loss]", "--sizes=[16]", "--calls=2"]
    assert main([*sizes, f"--output={tmp_path}"]) == 0
    rows = pl.read_csv(tmp_path / "accelerator_cpu.csv")
    assert rows["seconds"].min() > 0
    assert rows["of many"].min() > 0
    assert sorted(rows["conversions"].unique()) == [0.001, 0.005, 0.05, 0.5]
    assert set(rows["program"]) == {"broadcast", "blocked", "sorted"}
    text = (tmp_path / "accelerator_cpu.md").read_text()
    assert "loss, 16 rows, 0.5% conversions, `auto` [ms]" in text
    assert "Made by `python -m experiments.bench.accelerator` on 2" in text
    assert "load average at the start" in text


def test_every_claim_has_a_goal_and_a_figure():
    losses = [
        {"program": form, "rows": 4096, "conversions": share, "auto": auto}
        | {"seconds": seconds}
        for form, share, auto, seconds in (
            ("broadcast", 0.005, True, 2e-4),
            ("sorted", 0.005, False, 1e-4),
            ("broadcast", 0.5, True, 5e-4),
        )
    ]
    groups = {
        name: Group(
            {
                # A half of the first, a third, and so on.
                cell: Measured([1 / (1 + at), 2 / (1 + at)], flops=1.0, bytes=3.0)
                for at, cell in enumerate(cells)
            }
        )
        for name, cells in step_groups(Options(models=("mmoe",)))
    }
    found = {row["Claim"]: row for row in goals(losses, groups).to_dicts()}
    measured = {claim: (row["goal"], row["measured"]) for claim, row in found.items()}
    assert measured == {
        "loss, 4,096 rows, 0.5% conversions, `auto` [ms]": ("at most 0.15", "0.200"),
        "loss, 4,096 rows: the slowest share of conversions over 0.5%": (
            "at most 3",
            "2.50",
        ),
        "loss, 4,096 rows: `auto` over the fastest form, at any share": (
            "about 1",
            "2.00",
        ),
        "mmoe, 2,048 rows: 8 steps in a call over one, a step": ("below 1", "0.50"),
        "mmoe, 2,048 rows: 32 steps in a call over one, a step": ("below 1", "0.33"),
        "mmoe, 65,536 rows: share of the copy's bandwidth": ("at least 0.80", "1.50"),
        "mmoe, 65,536 rows: bfloat16, times float32": ("at least 1.30", "1.33"),
        "mmoe: 16 runs in one program over one": ("at most 4", "0.50"),
    }
