"""Rows from device memory equal rows from files, bit for bit."""

from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from pwiser_jax.data.batches.batches import (
    epoch_order,
    sequential_batches,
    steps_per_epoch,
)
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.data.prepared.folder import Prepared
from pwiser_jax.training.devices.source import Resident, Streamed, size, source
from tests.data.multi_valued import write_folder


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("grouped", [False, True])
def test_both_sources_give_the_same_batches(
    shared: bool, grouped: bool, tmp_path: Path
) -> None:
    folder = tmp_path / "data"
    if shared:
        write_folder(folder)
    else:
        prepare_synthetic(folder, rows=6_000, seed=3)
    rows = Prepared(folder).load("train")
    if grouped:
        weight = np.random.default_rng(0).random(len(rows)).astype(np.float32)
        column = "p" if shared else "true_ctr"
        rows = replace(rows, weight=weight).with_pair_columns(
            groups=True, pair_value=column
        )
    # 90 rows are not shared evenly by 4 devices, nor an epoch by batches.
    kind: dict[str, Any] = {"order": "groups"} if grouped else {"min_conversions": 8}
    taken = epoch_order(rows, 90, seed=1, epoch=2, **kind)
    files, device = Streamed(rows), Resident(rows)
    left = steps_per_epoch(rows, 90, **kind)
    while left:
        calls = list(islice(taken, 3))
        left -= len(calls)
        expected, got = files(calls, 4), device(calls, 4)
        assert jax.tree.structure(expected) == jax.tree.structure(got)
        for a, b in zip(*map(jax.tree.leaves, (expected, got)), strict=True):
            assert (a.dtype, a.shape, a.sharding) == (b.dtype, b.shape, b.sharding)
            real = len(calls)
            np.testing.assert_array_equal(a[:, :real], b[:, :real])
    assert not np.asarray(got.mask)[:, len(calls) :].any()


def test_shared_fields_are_not_expanded(tmp_path: Path) -> None:
    rows = Prepared(write_folder(tmp_path / "data")).load("train")
    whole = sum(
        array.nbytes for array in next(sequential_batches(rows, 700)).inputs.values()
    )
    assert size(rows) < whole


def test_a_cpu_reads_the_files_unless_told_otherwise(tmp_path: Path) -> None:
    rows = Prepared(write_folder(tmp_path / "data")).load("train")
    assert isinstance(source(rows, "auto"), Streamed)
    assert isinstance(source(rows, "device"), Resident)
