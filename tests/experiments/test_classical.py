"""Classical models of the experiment: their columns, their fits, what is missing."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from threadpoolctl import threadpool_limits

from experiments import classical
from experiments.classical import HEADS, Table, fit_logistic, fit_trees, one_hot
from pwiser_jax.data.datasets.synthetic import prepare_synthetic
from pwiser_jax.metrics import auc


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    folder = tmp_path_factory.mktemp("classical") / "data"
    rates = {"click_rate": 0.3, "conversion_rate": 0.3, "valid": 0.3}
    prepare_synthetic(folder, rows=6_000, users=50, items=50, **rates)
    return Table(folder)


def test_each_id_is_a_column_of_its_own(table: Table):
    rows, fields = table.valid, table.schema.categorical
    got = one_hot(rows, table.schema).toarray()
    ids = [np.eye(field.rows)[rows.categorical[:, k]] for k, field in enumerate(fields)]
    np.testing.assert_array_equal(got, np.hstack([*ids, rows.numerical]))


@pytest.mark.parametrize(
    ("fit", "point"),
    [
        (fit_logistic, {"C": 0.01}),
        (
            fit_trees,
            {"learning_rate": 0.1, "leaves": 6.0, "leaf_rows": 30.0, "l2": 1.0},
        ),
    ],
)
def test_a_fit_ranks_rows_that_it_has_not_seen(fit, point, table: Table):
    for head in HEADS:
        with threadpool_limits(1):  # threads that wait for each other spin
            p = fit(table, head, point)(table.valid)
        labels = table.labels(table.valid, head)
        assert labels.sum() == (table.valid.labels.sum(1) > HEADS.index(head)).sum()
        assert ((p > 0) & (p < 1)).all()
        assert p.mean() == pytest.approx(labels.mean(), rel=0.3)
        assert auc(labels, p) > 0.6


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    finding = classical.find(SimpleNamespace(tables=None))
    assert "scikit-learn is missing" in finding.answer
    assert "pwiser-jax[classical]" in finding.answer


def test_a_ladder_of_three_labels_is_left_out(tmp_path: Path):
    folder = tmp_path / "data"
    prepare_synthetic(folder, rows=3_000, labels=3)
    dataset = SimpleNamespace(ready=lambda: folder)
    assert "3 labels" in classical.unreadable(SimpleNamespace(tables=None), dataset)
